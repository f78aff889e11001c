# SPDX-License-Identifier: Apache-2.0
"""A worker process gives the same pixels and errors; however it ends, its owner gets one clear error."""

import gc
import os
import resource
import signal
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from blipstream.deadline import Deadline
from blipstream.errors import FAILED, BlipstreamError, Gone, InvalidImage, InvalidInput, TimedOut
from blipstream.images.limits import TOO_SLOW, ImageLimits
from blipstream.images.pixels import JPEG_SCALING, load_pixels
from blipstream.images.resize import RESIZE_MODES
from blipstream.images.worker import MAX_MEMORY, ImageWorker
from slow_images import run_length_encoded_bmp
from tests.support.bad_images import BAD_IMAGES
from tests.support.image_files import encode, ignore_pil_warnings, noise

pytestmark = ignore_pil_warnings

SIDE = 64
SMALL = encode(noise(30, 50), "PNG")
# libwebp decodes it without reading on, for more than a second
LARGE = encode(Image.new("RGB", (8000, 8000)), "WEBP", lossless=True, quality=0, method=0)


@pytest.fixture(scope="module")
def worker() -> Iterator[ImageWorker]:
    worker = ImageWorker(SIDE)
    yield worker
    worker.close()


def pid_of(worker: ImageWorker) -> int:
    assert worker._process is not None
    return worker._process.pid


def acting_deadline(act: Callable[[], bool]) -> Deadline:
    """A deadline that calls `act` once the work has begun, and is cancelled if `act` returns true."""
    checks = iter([False])
    return Deadline(0, lambda: next(checks, None) is None and act())


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
        with pytest.raises(InvalidImage) as ours:
            load_pixels(bad.data, SIDE)
        with pytest.raises(InvalidImage) as theirs:
            worker.load(bad.data, "stretch")
        assert str(theirs.value) == str(ours.value)
    assert pid_of(worker) == pid


@pytest.mark.parametrize("data", [LARGE, run_length_encoded_bmp(20_000, 1_000)], ids=["one read", "many reads"])
def test_an_image_over_its_time_budget_is_ended(data: bytes) -> None:
    """Even if its decoder does not read on."""
    worker = ImageWorker(SIDE, limits=ImageLimits(seconds=0.1, seconds_for_pixels=0))
    with pytest.raises(InvalidImage, match=TOO_SLOW):
        worker.load(data, "stretch")
    assert worker.load(SMALL, "stretch").shape == (SIDE, SIDE, 3)
    worker.close()


@pytest.mark.parametrize(("timeout", "error"), [(0, Gone), (1, TimedOut)])
def test_cancelled_requests_do_not_begin(worker: ImageWorker, timeout: int, error: type[BlipstreamError]) -> None:
    """Else the process would have been ended, and be another one."""
    worker.load(SMALL, "stretch")
    pid = pid_of(worker)
    with pytest.raises(error):
        worker.load(LARGE, "stretch", Deadline(timeout, lambda: timeout == 0))
    worker.load(SMALL, "stretch")
    assert pid_of(worker) == pid


def test_cancelling_ends_a_decoder(worker: ImageWorker) -> None:
    with pytest.raises(Gone):
        worker.load(LARGE, "stretch", acting_deadline(lambda: True))
    assert worker._process is None
    assert worker.load(SMALL, "stretch").shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_process_that_dies_fails_one_image(worker: ImageWorker, number: signal.Signals) -> None:
    """Memory may have run out, or the decoder may be faulty: the status does not tell which."""

    def kill() -> bool:
        os.kill(pid_of(worker), number)
        return False

    with pytest.raises(BlipstreamError) as caught:
        worker.load(LARGE, "stretch", acting_deadline(kill))
    assert not isinstance(caught.value, InvalidInput)
    assert str(caught.value).startswith(f"{FAILED} (its decoder ended with {number.name})")
    assert worker.load(SMALL, "stretch").shape == (SIDE, SIDE, 3)


def test_a_dead_process_is_replaced(worker: ImageWorker) -> None:
    worker.load(SMALL, "stretch")
    os.kill(pid_of(worker), signal.SIGKILL)
    os.waitid(os.P_PID, pid_of(worker), os.WEXITED | os.WNOWAIT)
    assert worker.load(SMALL, "stretch").shape == (SIDE, SIDE, 3)


def test_memory_is_bounded(worker: ImageWorker) -> None:
    worker.load(SMALL, "stretch")
    assert resource.prlimit(pid_of(worker), resource.RLIMIT_AS) == (MAX_MEMORY, MAX_MEMORY)


def test_a_process_that_holds_much_memory_ends_with_its_answer(
    worker: ImageWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a refusal, too. The next image gets a new process."""
    worker.load(SMALL, "stretch")
    pid = pid_of(worker)
    worker.load(SMALL, "stretch")
    assert pid_of(worker) == pid  # a process holds little
    monkeypatch.setattr("blipstream.images.worker.MAX_IDLE_MEMORY", 1 << 20)
    expected = load_pixels(SMALL, SIDE, "stretch")
    np.testing.assert_array_equal(worker.load(SMALL, "stretch"), expected)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(InvalidImage):
        worker.load(b"no image", "stretch")
    assert worker._process is None
    np.testing.assert_array_equal(worker.load(SMALL, "stretch"), expected)


def test_a_process_ends_with_its_owner(worker: ImageWorker) -> None:
    """The owner's end of the pipe closes, however the owner ends."""
    worker.load(SMALL, "stretch")
    worker._connection.close()
    assert worker._process is not None
    assert worker._process.wait(60) == 0


def test_garbage_collection_ends_the_process() -> None:
    """Also within a reference cycle, which Python collects in any order."""
    forgotten: list[object] = [ImageWorker(SIDE)]
    forgotten.append(forgotten)
    assert isinstance(forgotten[0], ImageWorker)
    forgotten[0].load(SMALL, "stretch")
    pid = pid_of(forgotten[0])
    del forgotten
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
