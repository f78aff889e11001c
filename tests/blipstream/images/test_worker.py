# SPDX-License-Identifier: Apache-2.0
"""What a process of its own decodes comes out as here; however that process ends, its owner has one sentence."""

import gc
import os
import resource
import signal
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from blipstream.deadline import Deadline
from blipstream.errors import FAILED, BlipstreamError, Gone, InvalidInput, TimedOut
from blipstream.images.pixels import JPEG_SCALING, RESIZE_MODES, TOO_SLOW, ImageLimits, load_pixels
from blipstream.images.worker import MEMORY, ImageWorker
from tests.blipstream.images.bad_images import BAD_IMAGES, encode, run_length_encoded_bmp
from tests.blipstream.images.test_gpu_resize import noise

# pytest's "error" comes after, so goes before, the filter that blipstream.images.pixels sets for PIL
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

SIDE = 64
SMALL = encode(noise(30, 50), "PNG")
# libwebp decodes it in one piece, for a second and more
LARGE = encode(Image.new("RGB", (8000, 8000)), "WEBP", lossless=True, quality=0, method=0)


@pytest.fixture(scope="module")
def worker() -> Iterator[ImageWorker]:
    worker = ImageWorker(SIDE)
    yield worker
    worker.close()


def pid_of(worker: ImageWorker) -> int:
    assert worker._process is not None
    return worker._process.pid


def at_first_look(act: Callable[[], bool]) -> Deadline:
    """Of somebody whom `act` does something to, and takes away if it says so, once the work is under way."""
    looks = iter([False])
    return Deadline(0, lambda: next(looks, None) is None and act())


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_pixels_are_the_same(worker: ImageWorker, mode: str) -> None:
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        data = encode(noise(120, 90), kind)
        pixels = worker.load(data, mode)
        np.testing.assert_array_equal(pixels, load_pixels(data, SIDE, mode))
        assert pixels.flags.writeable


def test_jpeg_scaling_is_passed_on() -> None:
    data = encode(noise(4 * SIDE, 4 * SIDE), "JPEG")
    for how in JPEG_SCALING:
        worker = ImageWorker(SIDE, how)
        np.testing.assert_array_equal(worker.load(data, "stretch"), load_pixels(data, SIDE, jpeg_scaling=how))
        worker.close()


def test_refusals_are_the_same(worker: ImageWorker) -> None:
    worker.load(SMALL, "stretch")
    pid = pid_of(worker)
    for bad in BAD_IMAGES.values():
        with pytest.raises(InvalidInput) as ours:
            load_pixels(bad.data, SIDE)
        with pytest.raises(InvalidInput) as theirs:
            worker.load(bad.data, "stretch")
        assert str(theirs.value) == str(ours.value)
    assert pid_of(worker) == pid


@pytest.mark.parametrize("data", [LARGE, run_length_encoded_bmp(20_000, 1_000)], ids=["in one piece", "in pieces"])
def test_what_takes_too_long_is_ended(data: bytes) -> None:
    """Wherever its decoder is."""
    worker = ImageWorker(SIDE, limits=ImageLimits(seconds=0.1, seconds_for_pixels=0))
    with pytest.raises(InvalidInput, match=TOO_SLOW):
        worker.load(data, "stretch")
    assert worker.load(SMALL, "stretch").shape == (SIDE, SIDE, 3)
    worker.close()


@pytest.mark.parametrize(("timeout", "error"), [(0, Gone), (1, TimedOut)])
def test_nothing_is_done_for_who_has_gone(worker: ImageWorker, timeout: int, error: type[BlipstreamError]) -> None:
    """Nor begun: its process would be another one."""
    worker.load(SMALL, "stretch")
    pid = pid_of(worker)
    with pytest.raises(error):
        worker.load(LARGE, "stretch", Deadline(timeout, lambda: timeout == 0))
    worker.load(SMALL, "stretch")
    assert pid_of(worker) == pid


def test_who_goes_while_it_decodes_ends_it(worker: ImageWorker) -> None:
    with pytest.raises(Gone):
        worker.load(LARGE, "stretch", at_first_look(lambda: True))
    assert worker._process is None
    assert worker.load(SMALL, "stretch").shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_process_that_dies_fails_one_image(worker: ImageWorker, number: signal.Signals) -> None:
    """As where memory runs out, or a decoder is at fault: which of the two, nobody can tell."""

    def kill() -> bool:
        os.kill(pid_of(worker), number)
        return False

    with pytest.raises(BlipstreamError) as caught:
        worker.load(LARGE, "stretch", at_first_look(kill))
    assert not isinstance(caught.value, InvalidInput)
    assert str(caught.value).startswith(f"{FAILED} (its decoder ended with {number.name})")
    assert worker.load(SMALL, "stretch").shape == (SIDE, SIDE, 3)


def test_a_process_that_died_before_is_replaced(worker: ImageWorker) -> None:
    worker.load(SMALL, "stretch")
    os.kill(pid_of(worker), signal.SIGKILL)
    os.waitid(os.P_PID, pid_of(worker), os.WEXITED | os.WNOWAIT)
    assert worker.load(SMALL, "stretch").shape == (SIDE, SIDE, 3)


def test_memory_is_bounded(worker: ImageWorker) -> None:
    worker.load(SMALL, "stretch")
    assert resource.prlimit(pid_of(worker), resource.RLIMIT_AS) == (MEMORY, MEMORY)


def test_it_goes_with_its_owner(worker: ImageWorker) -> None:
    """Whose end of the pipe closes, however it ends."""
    worker.load(SMALL, "stretch")
    worker._connection.close()
    assert worker._process is not None
    assert worker._process.wait(60) == 0


def test_one_that_is_forgotten_takes_its_process_along() -> None:
    """In a circle, too, whose parts Python ends in any order."""
    forgotten: list[object] = [ImageWorker(SIDE)]
    forgotten.append(forgotten)
    assert isinstance(forgotten[0], ImageWorker)
    forgotten[0].load(SMALL, "stretch")
    pid = pid_of(forgotten[0])
    del forgotten
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
