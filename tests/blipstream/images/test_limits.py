# SPDX-License-Identifier: Apache-2.0
"""What costs too much is refused, and what may be slow is told apart from what is quick."""

import itertools
import struct
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import pytest
from PIL import Image

from blipstream.errors import InvalidImage
from blipstream.images.decode import open_image
from blipstream.images.limits import DEFAULT_LIMITS, TOO_SLOW, ImageLimits, MayBeSlow
from blipstream.images.pixels import load_pixels
from slow_images import run_length_encoded_bmp
from tests.support.image_files import (
    encode,
    ignore_pil_warnings,
    png,
    png_chunk,
    tiff_of_one_strip,
)
from tests.support.photographs import ASTRONAUT, CHINA, ENCODINGS, SMALL
from tests.support.reference_pixels import SIDE

pytestmark = ignore_pil_warnings


def test_limits_are_inclusive() -> None:
    data = encode(SMALL, "PNG")
    load_pixels(data, SIDE, limits=ImageLimits(max_bytes=len(data), max_pixels=6000, max_side=100))
    for limits in (
        ImageLimits(max_bytes=len(data) - 1),
        ImageLimits(max_pixels=5999),
        ImageLimits(max_side=99),
    ):
        with pytest.raises(InvalidImage, match="image must have at most"):
            load_pixels(data, SIDE, limits=limits)


def test_pils_own_size_limit_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("JPEG", "PNG", "BMP", "GIF"):  # PIL checks WebP and TIFF once more, at twice the value
        load_pixels(encode(SMALL, kind), SIDE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_an_image_over_its_time_budget_is_refused(kind: str) -> None:
    data = encode(CHINA, kind)
    load_pixels(data, 64)
    with pytest.raises(InvalidImage, match=TOO_SLOW):
        load_pixels(data, 64, limits=ImageLimits(seconds=0, seconds_for_pixels=0, seconds_for_bytes=0))


@pytest.mark.parametrize(("quick", "error"), [(False, InvalidImage), (True, MayBeSlow)])
def test_time_is_checked_at_each_read(monkeypatch: pytest.MonkeyPatch, quick: bool, error: type[Exception]) -> None:
    with ExitStack() as stack:
        image = stack.enter_context(open_image(encode(ASTRONAUT, "PNG"), DEFAULT_LIMITS, quick=quick))
        monkeypatch.setattr("time.thread_time", lambda: 1e9)
        with pytest.raises(error):
            image.load()


def test_time_budget_grows_with_size() -> None:
    """The alarm is set before the header is read, and again when the size is known."""
    limits = ImageLimits(seconds=1, seconds_for_pixels=10, seconds_for_bytes=100, max_pixels=10**6, max_bytes=10**5)
    budgets: list[float] = []
    png = encode(Image.new("RGB", (200, 100)), "PNG")
    load_pixels(png, 64, limits=limits, set_alarm=budgets.append)
    assert budgets == pytest.approx([1 + len(png) / 1000, 1 + len(png) / 1000 + 0.2])
    bmp = run_length_encoded_bmp(200, 100)
    load_pixels(bmp, 64, limits=limits, set_alarm=budgets.append)
    assert budgets[3] - budgets[2] == pytest.approx(0.05)  # pixels that PIL decodes in Python count for a quarter


def test_time_budget_of_a_run_length_encoded_bomb() -> None:
    """PIL takes eight seconds to decode these seven kilobytes."""
    bomb = run_length_encoded_bmp(65_535, 1_525)
    assert len(bomb) < 8_000
    budgets: list[float] = []
    with open_image(bomb, DEFAULT_LIMITS, set_alarm=budgets.append):
        assert budgets[-1] < 4


PROGRESSIVE = encode(Image.new("L", (1500, 1000)), "JPEG", progressive=True)
LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
SLOW = {
    "jpeg": encode(Image.new("L", (5000, 4000)), "JPEG"),
    "progressive jpeg": PROGRESSIVE[:-2] + 200 * LAST_SCAN + PROGRESSIVE[-2:],
    "png": encode(Image.new("1", (4000, 3000)), "PNG"),
    "webp": encode(Image.new("RGB", (4000, 3000)), "WEBP", lossless=True, quality=0, method=0),
    "gif": encode(Image.new("L", (4000, 3000)), "GIF"),
    "bmp": encode(Image.new("1", (4000, 3000)), "BMP"),
    "run-length encoded bmp": run_length_encoded_bmp(2000, 1000),
    "tiff": encode(Image.new("1", (4000, 3000)), "TIFF"),
    "tiff whose rows share a strip": tiff_of_one_strip(1000),
    "tiff without lengths of strips": tiff_of_one_strip(2).replace(struct.pack("<H", 279), b"\x17\x02"),
}


@pytest.mark.parametrize("name", SLOW)
def test_large_images_may_be_slow(name: str) -> None:
    with pytest.raises(MayBeSlow):
        load_pixels(SLOW[name], 16, quick=True)
    assert load_pixels(SLOW[name], 16).shape == (16, 16, 3)


@pytest.mark.parametrize("name", ENCODINGS)
def test_quick_pixels_are_the_same(name: str) -> None:
    image, kind, options = ENCODINGS[name]
    data = encode(image, kind, **options)
    np.testing.assert_array_equal(load_pixels(data, SIDE, quick=True), load_pixels(data, SIDE))


def test_images_of_screen_size_are_quick() -> None:
    for kind in ("JPEG", "PNG", "WebP"):
        load_pixels(encode(Image.new("RGB", (1600, 1200)), kind), 16, quick=True)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), np.uint8))


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.new("RGB", (4032, 3024)), "JPEG"),  # a phone's photograph
        encode(Image.new("RGB", (1800, 1800)), "JPEG", progressive=True),
        encode(NOISE, "PNG"),  # bytes take time as well
        run_length_encoded_bmp(300, 300),
    ],
    ids=["pixels", "passes", "bytes", "python"],
)
def test_images_that_take_a_tenth_of_a_second_may_be_slow(data: bytes) -> None:
    with pytest.raises(MayBeSlow):
        load_pixels(data, 16, quick=True)


JPEG, GIF = encode(SMALL, "JPEG"), encode(SMALL, "GIF")
PALETTE_END = 13 + 3 * 256
LONG_HEADERS: dict[str, Callable[[int], bytes]] = {  # PIL reads these in Python
    "jpeg segments": lambda count: JPEG[:2] + b"\xff\xfe\0\2" * count + JPEG[2:],
    "png chunks": lambda count: png(1, 1, bytes(4), before=png_chunk(b"abCd", b"") * count),
    "gif blocks": lambda count: GIF[:PALETTE_END] + b"!\xfe" + b"\1a" * count + b"\0" + GIF[PALETTE_END:],
}


@pytest.mark.parametrize("name", LONG_HEADERS)
def test_reading_a_header_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL reads one piece after the other, and the time is checked in between."""
    reads = itertools.count()
    monkeypatch.setattr("time.thread_time", lambda: next(reads) / 10_000)  # a second has ten thousand reads
    load_pixels(LONG_HEADERS[name](100), 16, quick=True)
    with pytest.raises(MayBeSlow):
        load_pixels(LONG_HEADERS[name](10_000), 16, quick=True)
    with pytest.raises(InvalidImage, match=TOO_SLOW):
        load_pixels(LONG_HEADERS[name](30_000), 16)


def jpeg_in_tiff(size: tuple[int, int], strip: bytes) -> bytes:
    width, height = size
    tags = {256: width, 257: height, 258: 8, 259: 7, 262: 1, 273: 0, 277: 1, 278: height, 279: len(strip)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4  # where the strip begins
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    return b"".join([struct.pack("<4sIH", b"II*", 8, len(tags)), *entries, bytes(4), strip])


def test_jpeg_in_tiff_of_many_scans_is_refused() -> None:
    """A progressive JPEG file in the one strip of a TIFF file. Its last scan is repeated."""
    progressive = encode(CHINA.convert("L"), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    load_pixels(jpeg_in_tiff(CHINA.size, progressive), 64)
    with pytest.raises(InvalidImage, match="must be a whole TIFF file"):
        load_pixels(jpeg_in_tiff(CHINA.size, progressive[:-2] + 20 * scan + progressive[-2:]), 64)


def test_jpeg_of_many_scans_is_refused() -> None:
    """A scan takes a few bytes, and a pass over all pixels."""
    few = encode(SMALL, "JPEG", progressive=True)
    with pytest.raises(InvalidImage, match="a progressive JPEG must have fewer scans than 1001: save it again"):
        load_pixels(few + b"\xff\xda" * (1001 - few.count(b"\xff\xda")), SIDE)
    tight = ImageLimits(max_pixels=SMALL.width * SMALL.height, max_scans=3)
    with pytest.raises(InvalidImage, match="fewer scans"):
        load_pixels(few, SIDE, limits=tight)
