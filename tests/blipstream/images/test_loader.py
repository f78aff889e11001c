# SPDX-License-Identifier: Apache-2.0
"""Many images loaded at once are the same as each loaded alone."""

import gc
import subprocess
import sys
from concurrent.futures import Future
from threading import Event
from typing import Any

import numpy as np
import pytest

from blipstream.deadline import Deadline
from blipstream.errors import (
    FAILED,
    BlipstreamError,
    Gone,
    InvalidImage,
    InvalidInput,
    Overloaded,
    ServerError,
    format_error,
    parse_error,
)
from blipstream.images import loader
from blipstream.images.loader import ImageLoader, ImageRequest, Loaded
from blipstream.images.pixels import JPEG_SCALING, load_pixels
from blipstream.images.resize import RESIZE_MODES
from blipstream.images.shapes import Pixels
from tests.conftest import ROOT
from tests.support.bad_images import BAD_IMAGES
from tests.support.image_files import encode, ignore_pil_warnings, noise, tiff_of_one_strip
from tests.support.image_loading import load_each

pytestmark = ignore_pil_warnings

SIDE = 64
PIXELS = np.zeros((1, SIDE, SIDE, 3), np.uint8)
QUICK = encode(noise(30, 50), "PNG")


def pixels_of(loaded: Loaded | Future[Loaded]) -> Pixels:
    assert isinstance(loaded, np.ndarray), loaded
    return loaded


def waits_for(event: Event) -> Deadline:
    """A deadline whose second check waits for an event: the work has entered, and does not begin."""
    checks = iter([True])
    return Deadline(0, lambda: not next(checks, False) and not event.wait(60))


def test_each_image_gets_its_own_result() -> None:
    """Good and bad images take turns, in every mode and in one that does not exist."""
    good = [encode(noise(30 + i, 50, i), "PNG") for i in range(len(BAD_IMAGES))]
    images = [image for pair in zip(good, (bad.data for bad in BAD_IMAGES.values()), strict=True) for image in pair]
    modes = [(*RESIZE_MODES, "zoom")[i // 2 % 4] for i in range(len(images))]
    loaded = load_each(ImageLoader(SIDE), images, modes)
    assert len(loaded) == len(images)
    for image, mode, result in zip(images, modes, loaded, strict=True):
        if isinstance(result, BlipstreamError):
            with pytest.raises(InvalidInput) as caught:
                load_pixels(image, SIDE, mode)
            assert str(caught.value) == str(result)
        else:
            np.testing.assert_array_equal(result, load_pixels(image, SIDE, mode))
    assert sum(isinstance(result, InvalidInput) for result in loaded) >= len(BAD_IMAGES)


def test_no_requests() -> None:
    assert ImageLoader(SIDE).load_requests([]) == []


SLOW = tiff_of_one_strip(1000)  # it decodes fast, but its header says that it may not


def test_quick_images_do_not_wait_for_slow_ones() -> None:
    """They are loaded while the slow ones have not even begun."""
    quick = encode(noise(30, 50), "PNG")
    may_begin = Event()
    slow = ImageRequest([quick, SLOW], ["center_crop", "letterbox"], deadline=waits_for(may_begin))
    loader = ImageLoader(SIDE)
    later, now = loader.load_requests([slow, ImageRequest([quick])])
    np.testing.assert_array_equal(pixels_of(now)[0], load_pixels(quick, SIDE))
    for _ in range(3):
        np.testing.assert_array_equal(pixels_of(loader.load_requests([ImageRequest([quick])])[0])[0], pixels_of(now)[0])
    assert isinstance(later, Future)
    assert not later.done()
    may_begin.set()
    expected = [load_pixels(quick, SIDE, "center_crop"), load_pixels(SLOW, SIDE, "letterbox")]
    np.testing.assert_array_equal(pixels_of(later.result()), expected)


def test_a_bad_image_beside_a_slow_one_is_refused_at_once() -> None:
    (refused,) = ImageLoader(SIDE).load_requests([ImageRequest([SLOW, b"no image"])])
    assert isinstance(refused, InvalidInput)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ([QUICK, b"no image"], "image 2 of 2 must be a JPEG"),
        ([b"data:x,", QUICK, QUICK], "image 1 of 3: a data URL must begin like"),
        ([QUICK, SLOW, SLOW[: len(SLOW) // 2]], "image 3 of 3 must be a whole TIFF file"),
        ([b"no image"], "image must be a JPEG"),
    ],
    ids=["no image", "data URL", "slow", "alone"],
)
def test_an_error_says_which_of_several_images(images: list[bytes], told: str) -> None:
    (loaded,) = ImageLoader(SIDE).load_requests([ImageRequest(images)])
    error = loaded.result() if isinstance(loaded, Future) else loaded
    assert isinstance(error, InvalidImage)
    assert str(error).startswith(told)


def test_cancelled_requests_do_not_load_slow_images() -> None:
    checks = iter([False])  # cancelled from the second check on
    deadline = Deadline(0, lambda: next(checks, True))
    (later,) = ImageLoader(SIDE).load_requests([ImageRequest([SLOW], deadline=deadline)])
    assert isinstance(later, Future)
    assert isinstance(later.result(), Gone)


@pytest.mark.parametrize("bound", ["MAX_SLOW_IMAGES", "MAX_SLOW_BYTES"])
def test_slow_images_are_bounded(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In number and in bytes. A request that is alone may exceed both."""
    monkeypatch.setattr(loader, bound, {"MAX_SLOW_IMAGES": 3, "MAX_SLOW_BYTES": 3 * len(SLOW)}[bound])
    may_begin = Event()
    images = ImageLoader(SIDE)
    first = images.load_requests([ImageRequest([SLOW] * count, deadline=waits_for(may_begin)) for count in (1, 2, 1)])
    assert [isinstance(each, Future) for each in first] == [True, True, False]
    assert isinstance(first[2], Overloaded)
    assert isinstance(parse_error(format_error(first[2])), Overloaded)
    may_begin.set()
    for each in first[:2]:
        assert isinstance(each, Future)
        pixels_of(each.result())
    (alone,) = images.load_requests([ImageRequest([SLOW] * 4)])
    assert isinstance(alone, Future)
    assert pixels_of(alone.result()).shape == (4, SIDE, SIDE, 3)


def test_failures_stay_with_their_request(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Memory may run out after an image is decoded, and a process may not start."""

    def fail(image: bytes = b"large", *arguments: Any, **options: Any) -> Any:
        if image == b"large":
            raise MemoryError
        return load_pixels(image, *arguments, **options)

    monkeypatch.setattr(loader, "load_pixels", fail)
    monkeypatch.setattr("blipstream.images.worker.Pipe", fail)
    quick = encode(noise(30, 50), "PNG")
    failed, fine, slow = ImageLoader(SIDE).load_requests(
        [ImageRequest([b"large"]), ImageRequest([quick]), ImageRequest([SLOW])]
    )
    assert pixels_of(fine).shape == (1, SIDE, SIDE, 3)
    assert isinstance(slow, Future)
    for each in (failed, slow.result()):
        assert str(each) == f"{FAILED} (MemoryError): try again, or see its log"
    assert capfd.readouterr().err.count("Traceback") == 2


def test_invalid_requests_do_not_shift_others() -> None:
    """Every other request keeps its images and modes."""
    images = [encode(noise(30, 50, i), "PNG") for i in range(3)]
    pixels = np.stack([load_pixels(image, SIDE) for image in images])
    requests = [
        ImageRequest([], ["zoom", "zoom"]),
        ImageRequest(images[:2], ["letterbox", "center_crop"]),
        ImageRequest([images[0]], ["zoom", "stretch"]),
        ImageRequest([images[0], b"no image"], ["stretch", "stretch"]),
        ImageRequest(pixels=pixels),
        ImageRequest(),
        ImageRequest(pixels=pixels[:0]),
        ImageRequest(pixels=pixels[:, 1:]),
        ImageRequest([images[0]], ["stretch"], pixels),
        ImageRequest(images[2:], ["center_crop"]),
        ImageRequest(images[:1], deadline=Deadline(0, lambda: True)),
        ImageRequest(images[1:], deadline=Deadline(0, lambda: False)),
    ]
    loaded = [each for each in ImageLoader(SIDE).load_requests(requests) if not isinstance(each, Future)]
    assert len(loaded) == len(requests)
    refused = {number: str(each) for number, each in enumerate(loaded) if isinstance(each, BlipstreamError)}
    assert refused.keys() == {0, 2, 3, 5, 6, 7, 8, 10}
    assert refused[0] == refused[5] == refused[6] == "image must be given: send the bytes of at least one"
    assert refused[2] == "resize_mode must have a row for each image, 1, not 2"
    assert refused[3].startswith("image 2 of 2 must be a JPEG")
    assert refused[7] == f"pixels must have shape [{SIDE}, {SIDE}, 3], not [{SIDE - 1}, {SIDE}, 3]"
    assert refused[8] == "image or pixels must be given, not both: leave one out"
    assert refused[10] == "the client has gone"
    np.testing.assert_array_equal(np.asarray(loaded[4]), pixels)
    np.testing.assert_array_equal(np.asarray(loaded[11]), pixels[1:])
    for number in (1, 9):
        expected = [load_pixels(image, SIDE, mode) for image, mode in zip(*requests[number][:2], strict=True)]
        np.testing.assert_array_equal(np.asarray(loaded[number]), expected)


def test_refused_images_are_freed_at_once() -> None:
    """If only a full garbage collection freed what was decoded of them, the heap would get holes."""
    loader = ImageLoader(SIDE)
    bad = [each.data for each in BAD_IMAGES.values()]
    load_each(loader, bad)
    gc.collect()
    gc.disable()
    try:
        refused = load_each(loader, bad)
        assert all(isinstance(each, InvalidInput) for each in refused)
        del refused
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert not [each for each in gc.garbage if isinstance(each, InvalidInput)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_jpeg_scaling_is_passed_on() -> None:
    image = encode(noise(SIDE * 4, SIDE * 4), "JPEG")
    expected = {how: load_pixels(image, SIDE, jpeg_scaling=how) for how in JPEG_SCALING}
    assert not np.array_equal(expected["exact"], expected["fast"])
    for how, pixels in expected.items():
        (loaded,) = load_each(ImageLoader(SIDE, how), [image])
        np.testing.assert_array_equal(pixels_of(loaded), pixels)


def test_unknown_jpeg_scaling_is_refused() -> None:
    with pytest.raises(ServerError, match="jpeg_scaling must be one of exact, fast, not 'quick'"):
        ImageLoader(SIDE, jpeg_scaling="quick")


COUNT_MAPPED = """
import ctypes
from blipstream.images.loader import LARGE_BYTES, ImageLoader

class Mallinfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.mallinfo2.restype = ctypes.c_void_p, Mallinfo
ImageLoader(64)
libc.free(ctypes.c_void_p(libc.malloc(4 * LARGE_BYTES)))
before = libc.mallinfo2().hblks
libc.malloc(2 * LARGE_BYTES)
print(libc.mallinfo2().hblks - before)
"""


def test_large_buffers_go_back_to_the_system() -> None:
    """Even after larger ones: by default, glibc would then take the next from its heap, and may leave a hole there."""
    command = [sys.executable, "-c", COUNT_MAPPED]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "1\n"


def test_an_unexpected_error_stays_with_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be no memory for a large one."""
    images = [encode(noise(30, 50, i), "PNG") for i in range(4)]
    expected = [load_pixels(image, SIDE) for image in images]

    def fails(data: bytes, *rest: Any, **more: Any) -> Pixels:
        if data == images[2]:
            raise MemoryError
        return load_pixels(data, *rest, **more)

    monkeypatch.setattr(loader, "load_pixels", fails)
    loaded = ImageLoader(SIDE).load_requests([ImageRequest([image]) for image in images])
    for index, (result, pixels) in enumerate(zip(loaded, expected, strict=True)):
        if index == 2:
            assert str(result) == f"{FAILED} (MemoryError): try again, or see its log"
        else:
            np.testing.assert_array_equal(pixels_of(result), pixels[None])
