# SPDX-License-Identifier: Apache-2.0
"""Pixels are the reference's, bit for bit; bad images are refused, each with its own sentence."""

import itertools
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from base64 import b64encode, encodebytes, urlsafe_b64encode
from collections.abc import Callable
from contextlib import ExitStack
from io import BytesIO
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from skimage import data as photographs
from sklearn.datasets import load_sample_images
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from blipstream.errors import InvalidInput
from blipstream.images import pixels as images
from blipstream.images.pixels import (
    DEFAULT_LIMITS,
    LETTERBOX_COLOR,
    RESIZE_MODES,
    TOO_SLOW,
    ImageLimits,
    Slow,
    load_pixels,
    opened,
)
from tests.blipstream.images.bad_images import (
    BAD_IMAGES,
    BadImage,
    encode,
    png,
    png_chunk,
    run_length_encoded_bmp,
    tiff_of_one_strip,
)
from tests.conftest import SAMPLES

# pytest's "error" comes after, so goes before, the filter that blipstream.images.pixels sets for PIL
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")


def photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(photographs, name)())


CHINA, FLOWER = map(Image.fromarray, load_sample_images().images)  # 640 x 427
ASTRONAUT = photograph("astronaut")  # 512 x 512
SMALL = ASTRONAUT.crop((150, 20, 250, 80))  # 100 x 60
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
SIDE = 96


def reference(image: Image.Image, side: int = SIDE) -> Any:
    """What transformers makes of an image before it rescales: uint8 [side, side, 3]."""
    processor = BlipImageProcessorPil(size={"height": side, "width": side}, do_rescale=False, do_normalize=False)
    return np.moveaxis(np.asarray(processor(image)["pixel_values"][0]), 0, -1)


def assert_as_reference(data: bytes, side: int = SIDE) -> None:
    pixels = load_pixels(data, side)
    assert pixels.shape == (side, side, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, reference(Image.open(BytesIO(data)), side))


def with_alpha(image: Image.Image) -> Image.Image:
    """Opaque at the left, clear at the right."""
    image = image.copy()
    image.putalpha(Image.linear_gradient("L").rotate(90).resize(image.size))
    return image


FORMATS: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
    "jpeg": (CHINA, "JPEG", {}),
    "jpeg progressive": (CHINA, "JPEG", {"progressive": True}),
    "jpeg 4:4:4": (CHINA, "JPEG", {"subsampling": 0, "quality": 95}),
    "jpeg grey": (CHINA.convert("L"), "JPEG", {}),
    "jpeg cmyk": (CHINA.convert("CMYK"), "JPEG", {}),
    "mpo": (CHINA, "MPO", {"save_all": True, "append_images": [FLOWER]}),
    "png": (CHINA, "PNG", {}),
    "png grey": (CHINA.convert("L"), "PNG", {}),
    "png 1 bit": (CHINA.convert("1"), "PNG", {}),
    "png palette": (CHINA.quantize(64), "PNG", {}),
    "png palette, one clear": (CHINA.quantize(64), "PNG", {"transparency": 3}),
    "png palette, many clear": (CHINA.quantize(64), "PNG", {"transparency": bytes(range(0, 256, 4))}),
    "png palette from alpha": (with_alpha(CHINA).quantize(64), "PNG", {}),
    "png alpha": (with_alpha(CHINA), "PNG", {}),
    "png grey alpha": (with_alpha(CHINA).convert("LA"), "PNG", {}),
    "png clear color": (CHINA, "PNG", {"transparency": CHINA.getpixel((5, 5))}),
    "png clear grey": (CHINA.convert("L"), "PNG", {"transparency": 200}),
    "webp": (CHINA, "WEBP", {}),
    "webp lossless": (CHINA, "WEBP", {"lossless": True}),
    "webp alpha": (with_alpha(CHINA), "WEBP", {}),
    "bmp": (CHINA, "BMP", {}),
    "bmp grey": (CHINA.convert("L"), "BMP", {}),
    "bmp 1 bit": (CHINA.convert("1"), "BMP", {}),
    "bmp alpha": (with_alpha(CHINA), "BMP", {}),
    "gif": (CHINA, "GIF", {}),
    "gif clear": (CHINA.quantize(64), "GIF", {"transparency": 3}),
    "tiff": (CHINA, "TIFF", {}),
    "tiff lzw": (CHINA, "TIFF", {"compression": "tiff_lzw"}),
    "tiff jpeg": (CHINA, "TIFF", {"compression": "jpeg"}),
    "tiff fax": (CHINA.convert("1"), "TIFF", {"compression": "group4"}),
    "tiff palette": (CHINA.quantize(64), "TIFF", {}),
    "tiff cmyk": (CHINA.convert("CMYK"), "TIFF", {}),
    "tiff alpha": (with_alpha(CHINA), "TIFF", {}),
    "tiff ycbcr": (CHINA.convert("YCbCr"), "TIFF", {}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_as_reference(name: str) -> None:
    image, kind, options = FORMATS[name]
    assert_as_reference(encode(image, kind, **options))


@pytest.mark.parametrize("image", [CHINA, FLOWER, ASTRONAUT, SMALL, SMALL.resize((7, 300)), SMALL.resize((1, 1))])
@pytest.mark.parametrize("side", [1, 64, 224, 384, 512])
def test_sizes_as_reference(image: Image.Image, side: int) -> None:
    assert_as_reference(encode(image, "PNG"), side)


@pytest.mark.parametrize("name", ["coffee", "chelsea", "camera", "rocket"])
def test_photographs_as_reference(name: str) -> None:
    assert_as_reference(encode(photograph(name), "JPEG", quality=90), 384)


BOOK = (SAMPLES / "a-book.jpg").read_bytes()
TEXTS = {  # as which JSON carries a file
    "data URL": b"data:image/jpeg;base64," + b64encode(BOOK),
    "data URL with parameters": b"DATA:image/jpeg;name=a-book.jpg; BASE64," + b64encode(BOOK),
    "data URL without a type": b"data:;base64," + b64encode(BOOK),
    "unpadded data URL": b"data:image/jpeg;base64," + b64encode(BOOK).rstrip(b"="),
    "wrapped data URL": b"data:image/jpeg;base64," + encodebytes(BOOK),
    "escaped data URL": b"data:image/jpeg;base64," + quote(b64encode(BOOK), safe="").encode(),
    "URL-safe data URL": b"data:image/jpeg;base64," + urlsafe_b64encode(BOOK),
    "base64": b64encode(BOOK),
    "wrapped base64": encodebytes(BOOK).replace(b"\n", b"\r\n"),
    "URL-safe base64, unpadded": urlsafe_b64encode(BOOK).rstrip(b"="),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_base64(text: bytes) -> None:
    """Every form in which tools write it; what it holds has the limits of a file."""
    assert b64encode(BOOK).endswith(b"=")
    assert {b"+", b"/"} < {bytes([byte]) for byte in b64encode(BOOK)}
    assert np.array_equal(load_pixels(text, 64), load_pixels(BOOK, 64))
    load_pixels(text, 64, limits=ImageLimits(max_bytes=len(BOOK)))
    with pytest.raises(InvalidInput, match=f"must have at most {len(BOOK) - 1:,} bytes, not {len(BOOK):,}"):
        load_pixels(text, 64, limits=ImageLimits(max_bytes=len(BOOK) - 1))


def test_base64_is_measured_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "b64decode", lambda *_, **__: pytest.fail("it was decoded"))
    for start in (b"data:;base64,", b""):
        with pytest.raises(InvalidInput, match="at most 33,554,432 bytes, not 33,554,433"):
            load_pixels(start + b"/9j/" + b"A" * (2**27 // 3 - 2), 64)


@pytest.mark.parametrize("name", FORMATS)
def test_base64_of_every_format(name: str) -> None:
    """It is told by how it begins, and no file itself begins so."""
    image, kind, options = FORMATS[name]
    data = encode(image.resize((40, 30)), kind, **options)
    np.testing.assert_array_equal(load_pixels(b64encode(data), SIDE), load_pixels(data, SIDE))
    assert not re.match(rb"[\w/+-]{8}", data)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (b"data:image/png,abc", "a data URL must begin as data:image/jpeg;base64, and not with b'data:image/png,abc'"),
        (b"data:", "a data URL must begin as data:image/jpeg;base64, and not with b'data:'"),
        (b"data:image/png;base64,abc@", "where it is text, but 26 bytes are not (Only base64 data is allowed): "),
        (b"data:image/png;base64,abcd=abc", "where it is text, but 30 bytes are not ("),
        (b"data:text/plain;base64," + b64encode(b"hello there"), "its 11 bytes start with 68 65 6c 6c 6f"),
        (b"data:" + b"\xff" * 5000, r"and not with b'data:\xff"),
    ],
)
def test_bad_data_url(url: bytes, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(sentence)) as caught:
        load_pixels(url, 224)
    assert len(str(caught.value)) < 160


def test_pixels_are_writable() -> None:
    assert load_pixels(encode(SMALL, "PNG"), SIDE).flags.writeable  # torch.from_numpy warns of others


@settings(max_examples=30)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 120), st.integers(0, 2**32))
def test_any_size_as_reference(width: int, height: int, side: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    assert_as_reference(encode(Image.fromarray(pixels), "BMP"), side)


# What the reference does not do, or not well


@pytest.mark.parametrize("adobe_transform", [0, 2])
def test_cmyk_jpeg_looks_like_its_source(adobe_transform: int) -> None:
    data = encode(CHINA.convert("CMYK"), "JPEG", quality=95)
    marker = data.index(b"Adobe")
    if adobe_transform == 2:  # the same four channels, told to be YCCK: other colors, the same path
        data = data[: marker + 11] + b"\2" + data[marker + 12 :]
        assert_as_reference(data)
    else:
        difference = load_pixels(data, SIDE).astype(int) - reference(CHINA)
        assert np.abs(difference).mean() < 3


ORIENTATIONS = range(1, 9)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    data = encode(SMALL, kind, exif=exif, **options)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    np.testing.assert_array_equal(load_pixels(data, SIDE), reference(upright))


def test_orientation_six_turns_clockwise() -> None:
    exif = Image.Exif()
    exif[274] = 6
    red_above_blue = Image.new("RGB", (8, 8), "red")
    red_above_blue.paste("blue", (0, 4, 8, 8))
    pixels = load_pixels(encode(red_above_blue, "PNG", exif=exif), 8)
    assert (pixels[:, -1] == (255, 0, 0)).all()
    assert (pixels[:, 0] == (0, 0, 255)).all()


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"])
def test_bad_exif_is_no_bad_image(exif: bytes) -> None:
    data = encode(SMALL, "JPEG", exif=exif)
    np.testing.assert_array_equal(load_pixels(data, SIDE), load_pixels(encode(SMALL, "JPEG"), SIDE))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    assert_as_reference(encode(SMALL, "JPEG", exif=exif))


def test_transparent_is_white() -> None:
    assert (load_pixels(encode(Image.new("RGBA", (9, 9), (255, 0, 0, 0)), "PNG"), SIDE) == 255).all()
    half = load_pixels(encode(Image.new("LA", (9, 9), (0, 128)), "PNG"), SIDE)
    assert (half == 127).all()


def sixteen_bit(kind: str) -> bytes:
    """GREY, each value v as the 16-bit sample 257 v."""
    samples = GREY.astype(np.uint16) * 257
    big = samples.astype(">u2")
    colors = np.repeat(big[..., None], 4, axis=-1)
    colors[..., 3] = 65535
    rows = {
        "png grey": (0, big),
        "png grey alpha": (4, colors[..., [0, 3]]),
        "png rgb": (2, colors[..., :3]),
        "png rgba": (6, colors),
    }
    if kind in rows:
        color_type, values = rows[kind]
        lines = b"".join(b"\0" + line.tobytes() for line in values)
        return png(16, 16, lines, bits=16, color_type=color_type)
    if kind == "tiff white is zero":
        return encode(Image.fromarray(~samples), "TIFF", tiffinfo={262: 0})
    if kind == "tiff big-endian":
        return encode(Image.frombytes("I;16B", (16, 16), big.tobytes()), "TIFF")
    return encode(Image.fromarray(samples), "TIFF")


@pytest.mark.parametrize(
    "kind",
    ["png grey", "png grey alpha", "png rgb", "png rgba", "tiff", "tiff big-endian", "tiff white is zero"],
)
def test_sixteen_bits_are_scaled(kind: str) -> None:
    expected = np.repeat(GREY[..., None], 3, axis=-1)
    np.testing.assert_array_equal(load_pixels(sixteen_bit(kind), 16), expected)


def tiff(bits: int, samples: bytes, *extra: tuple[int, int, int, int]) -> bytes:
    """A little-endian grey TIFF of 2 x 1 pixels; `extra` are entries (tag, type, count, value)."""
    fixed = [(256, 3, 1, 2), (257, 3, 1, 1), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (278, 3, 1, 1)]
    entries = sorted([*fixed, (279, 4, 1, len(samples)), *(extra or [(258, 3, 1, bits)])])
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    start = 8 + len(samples)
    return b"II*\0" + struct.pack("<I", start) + samples + struct.pack("<H", len(entries)) + directory + bytes(4)


def test_twelve_bits_are_scaled() -> None:
    samples = bytes([0x12, 0x3F, 0xFF])  # 0x123, 0xFFF
    assert load_pixels(tiff(12, samples), 2)[0, :, 0].tolist() == [0x12, 0xFF]


def test_premultiplied_grey_is_laid_on_white() -> None:
    samples = bytes([100, 200, 0, 0])  # grey 100/200 at alpha 200, and clear
    data = tiff(8, samples, (258, 3, 2, 8 | 8 << 16), (277, 3, 1, 2), (338, 3, 1, 1))
    assert load_pixels(data, 2)[0, :, 0].tolist() == pytest.approx([155, 255], abs=1)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_frame_counts(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    data = encode(first, kind, save_all=True, append_images=[second], **options)
    assert Image.open(BytesIO(data)).n_frames == 2  # type: ignore[attr-defined]
    assert (load_pixels(data, SIDE) == (255, 0, 0)).all()


def bmp_with_alpha(pixels: Any) -> bytes:
    """32 bits a pixel, [height, width, 4], with a mask that says that the last eight are alpha."""
    body = np.ascontiguousarray(pixels[::-1, :, [2, 1, 0, 3]]).tobytes()
    height, width, _ = pixels.shape
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(body), 0, 0, 0, 0)
    header += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(52)
    return b"BM" + struct.pack("<III", 14 + len(header) + len(body), 0, 14 + len(header)) + header + body


def test_bmp_without_any_alpha_is_opaque() -> None:
    """As every viewer shows it; to the reference it is white. With alpha somewhere, it is as there."""
    pixels = np.dstack([np.asarray(SMALL), np.zeros((60, 100), np.uint8)])
    clear = bmp_with_alpha(pixels)
    assert (reference(Image.open(BytesIO(clear))) == 255).all()
    np.testing.assert_array_equal(load_pixels(clear, SIDE), load_pixels(encode(SMALL, "BMP"), SIDE))
    pixels[30:, 50:, 3] = 200
    assert_as_reference(bmp_with_alpha(pixels))


# Metadata is no pixel


def text_bomb(key: bytes) -> bytes:
    return png_chunk(b"zTXt", key + b"\0\0" + zlib.compress(bytes(16 * 2**20)))


LARGE = bytes(2 * 2**20)
METADATA = {
    "zTXt": text_bomb(b"Comment"),
    "zTXt with orientation": text_bomb(b"Raw profile type exif"),
    "iTXt": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LARGE)),
    "tEXt": png_chunk(b"tEXt", b"Comment\0" + LARGE),
    "iCCP": png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(LARGE)),
    "much of it": png_chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(LARGE[: 2**20])) * 100,
    "of no known compression": png_chunk(b"zTXt", b"XML:com.adobe.xmp\0\7abc") + png_chunk(b"iCCP", b"a\0\7abc"),
    "damaged": png_chunk(b"eXIf", b"MM\0*")[:-1] + b"?" + png_chunk(b"tEXt", b"a\0b")[:-1] + b"?",
    "too short": b"".join(png_chunk(name, b"\0") for name in (b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"acTL", b"fcTL")),
    "frames out of order": png_chunk(b"acTL", bytes([0, 0, 0, 2]) + bytes(4)) + png_chunk(b"fcTL", bytes([9] * 26)),
}


@pytest.mark.parametrize("name", METADATA)
def test_png_metadata_is_no_reason_to_refuse_it(name: str) -> None:
    """Neither before the pixels nor behind them."""
    data = encode(SMALL, "PNG")
    expected = load_pixels(data, SIDE)
    for at in (33, len(data) - 12):  # behind the header; before the end
        np.testing.assert_array_equal(load_pixels(data[:at] + METADATA[name] + data[at:], SIDE), expected)


@pytest.mark.parametrize("key", [b"Comment", b"Raw profile type exif", b"XML:com.adobe.xmp"])
def test_png_text_takes_no_memory(key: bytes) -> None:
    chunk = png_chunk(b"zTXt", key + b"\0\0" + zlib.compress(LARGE[: 2**20]))
    data = png(1, 1, bytes(4), before=chunk * 50)
    tracemalloc.start()
    try:
        load_pixels(data, SIDE)
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("way", ["eXIf", "zTXt", "iTXt"])
def test_orientation_is_found_among_large_metadata(way: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    plain = exif.tobytes()[6:]
    chunk = {
        "eXIf": png_chunk(b"eXIf", plain),
        "zTXt": png_chunk(
            b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n{len(plain)}\n{plain.hex()}\n".encode())
        ),
        "iTXt": png_chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + b'<x tiff:Orientation="6"/>'),
    }[way]
    data = encode(SMALL, "PNG")
    for at in (33, len(data) - 12):
        mixed = data[:at] + METADATA["zTXt"] + chunk + METADATA["iCCP"] + data[at:]
        np.testing.assert_array_equal(load_pixels(mixed, SIDE), reference(SMALL.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_large_metadata_of_other_formats(kind: str) -> None:
    """Of a size that the format has room for."""
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    exif = Image.Exif()
    exif[270] = "description " * 2**12
    data = encode(SMALL, kind, icc_profile=LARGE, exif=exif, **options)
    np.testing.assert_array_equal(load_pixels(data, SIDE), load_pixels(encode(SMALL, kind, **options), SIDE))


# Geometry


def test_center_crop_is_resize_then_crop() -> None:
    data = encode(CHINA.resize((640, 480)), "PNG")
    resized = CHINA.resize((640, 480)).resize((512, 384), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((64, 0, 448, 384)))
    np.testing.assert_array_equal(load_pixels(data, 384, "center_crop"), expected)


@pytest.mark.parametrize("size", [(90, 30), (30, 90)])
def test_center_crop_keeps_the_middle(size: tuple[int, int]) -> None:
    width, height = size
    image = Image.new("RGB", size, "red")
    image.paste("blue", ((width - 30) // 2, (height - 30) // 2, (width + 30) // 2, (height + 30) // 2))
    pixels = load_pixels(encode(image, "PNG"), 60, "center_crop")
    assert (pixels[5:-5, 5:-5] == (0, 0, 255)).all()


@pytest.mark.parametrize(("size", "inside"), [((90, 30), np.s_[20:40, :]), ((30, 90), np.s_[:, 20:40])])
def test_letterbox_pads_evenly(size: tuple[int, int], inside: tuple[slice, slice]) -> None:
    pixels = load_pixels(encode(Image.new("RGB", size, "blue"), "PNG"), 60, "letterbox")
    expected = np.full((60, 60, 3), LETTERBOX_COLOR, np.uint8)
    expected[inside] = (0, 0, 255)
    np.testing.assert_array_equal(pixels, expected)


def test_letterbox_resizes_as_the_others_do() -> None:
    pixels = load_pixels(encode(CHINA.resize((640, 480)), "PNG"), 384, "letterbox")
    expected = CHINA.resize((640, 480)).resize((384, 288), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pixels[48:336], np.asarray(expected))


def test_letterbox_color_normalises_to_nothing() -> None:
    mean, std = np.array(BlipImageProcessorPil.image_mean), np.array(BlipImageProcessorPil.image_std)
    assert np.abs((np.array(LETTERBOX_COLOR) / 255 - mean) / std).max() < 0.01  # half a step is 0.007


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_square_is_the_same_in_every_mode(mode: str) -> None:
    np.testing.assert_array_equal(load_pixels(encode(ASTRONAUT, "PNG"), SIDE, mode), reference(ASTRONAUT))


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("size", [(1, 65_535), (65_535, 1), (1, 1)])
def test_extreme_shapes(mode: str, size: tuple[int, int]) -> None:
    pixels = load_pixels(encode(Image.new("RGB", size, "red"), "PNG"), SIDE, mode)
    red = (pixels == (255, 0, 0)).all(axis=-1)
    assert red.sum() == (SIDE if mode == "letterbox" and size != (1, 1) else SIDE * SIDE)


# JPEG files decoded at a fraction of their size


def psnr(ours: Any, theirs: Any) -> float:
    error = float(np.square(ours.astype(float) - theirs).mean())
    return 10 * float(np.log10(255**2 / max(error, 1e-9)))


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("size", [(640, 480), (397, 803), (801, 1601)])
def test_fast_jpeg_scaling_shows(size: tuple[int, int], orientation: int, mode: str) -> None:
    """A shift by a fraction of a pixel, as last rows that are not whole could cause, would cost 10 dB and more."""
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(FLOWER.resize(size), "JPEG", quality=90, exif=exif)
    exact, fast = (load_pixels(data, SIDE, mode, jpeg_scaling=how) for how in ("exact", "fast"))
    assert not np.array_equal(exact, fast)
    assert psnr(exact, fast) > 46


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_fast_jpeg_scaling_is_for_jpeg(kind: str) -> None:
    data = encode(CHINA, kind)
    np.testing.assert_array_equal(load_pixels(data, SIDE), load_pixels(data, SIDE, jpeg_scaling="fast"))


def test_fast_jpeg_scaling_keeps_twice_the_pixels() -> None:
    side = 427 // 4  # of CHINA's height
    data = encode(CHINA, "JPEG")
    for image_size, scaled in [(side, True), (side + 1, False)]:
        exact, fast = (load_pixels(data, image_size, jpeg_scaling=how) for how in ("exact", "fast"))
        assert np.array_equal(exact, fast) is not scaled


def test_fast_jpeg_scaling_refuses_the_same() -> None:
    for bad in BAD_IMAGES.values():
        with pytest.raises(InvalidInput) as caught:
            load_pixels(bad.data, SIDE, jpeg_scaling="fast")
        assert re.fullmatch(bad.sentence, str(caught.value))


# What is refused


@pytest.mark.parametrize("bad", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_image_is_refused(bad: BadImage) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_pixels(bad.data, SIDE)
    assert re.fullmatch(bad.sentence, str(caught.value))


@pytest.mark.parametrize("mode", ["", "crop", "Stretch", "x" * 1000])
def test_unknown_resize_mode_is_refused(mode: str) -> None:
    with pytest.raises(InvalidInput, match=r"^resize_mode must be one of stretch, center_crop, letterbox, not '"):
        load_pixels(encode(SMALL, "PNG"), SIDE, mode)


def test_limits_are_inclusive() -> None:
    data = encode(SMALL, "PNG")
    load_pixels(data, SIDE, limits=ImageLimits(max_bytes=len(data), max_pixels=6000, max_side=100))
    for limits in (
        ImageLimits(max_bytes=len(data) - 1),
        ImageLimits(max_pixels=5999),
        ImageLimits(max_side=99),
    ):
        with pytest.raises(InvalidInput, match="image must have at most"):
            load_pixels(data, SIDE, limits=limits)


def test_limits_are_not_pils(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("JPEG", "PNG", "BMP", "GIF"):  # WebP and TIFF look at it once more, at twice the value
        load_pixels(encode(SMALL, kind), SIDE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_what_takes_too_long_is_refused(kind: str) -> None:
    data = encode(CHINA, kind)
    load_pixels(data, 64)
    with pytest.raises(InvalidInput, match=TOO_SLOW):
        load_pixels(data, 64, limits=ImageLimits(seconds=0, seconds_for_pixels=0, seconds_for_bytes=0))


@pytest.mark.parametrize(("quick", "error"), [(False, InvalidInput), (True, Slow)])
def test_time_is_counted_from_piece_to_piece(
    monkeypatch: pytest.MonkeyPatch, quick: bool, error: type[Exception]
) -> None:
    with ExitStack() as stack:
        image = stack.enter_context(opened(encode(ASTRONAUT, "PNG"), DEFAULT_LIMITS, quick=quick))
        monkeypatch.setattr("time.thread_time", lambda: 1e9)
        with pytest.raises(error):
            image.load()


def test_an_image_may_take_what_it_is_worth() -> None:
    """The alarm is set before its header is read, and set anew after that."""
    limits = ImageLimits(seconds=1, seconds_for_pixels=10, seconds_for_bytes=100, max_pixels=10**6, max_bytes=10**5)
    heard: list[float] = []
    png = encode(Image.new("RGB", (200, 100)), "PNG")
    load_pixels(png, 64, limits=limits, alarm=heard.append)
    assert heard == pytest.approx([1 + len(png) / 1000, 1 + len(png) / 1000 + 0.2])
    bmp = run_length_encoded_bmp(200, 100)
    load_pixels(bmp, 64, limits=limits, alarm=heard.append)
    assert heard[3] - heard[2] == pytest.approx(0.05)  # in Python, pixels for which there are no bytes are dear


def test_seven_kilobytes_are_not_worth_eight_seconds() -> None:
    """Which PIL takes to decode them."""
    bomb = run_length_encoded_bmp(65_535, 1_525)
    assert len(bomb) < 8_000
    heard: list[float] = []
    with opened(bomb, DEFAULT_LIMITS, alarm=heard.append):
        assert heard[-1] < 4


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
    "tiff that has strips read again": tiff_of_one_strip(1000),
    "tiff that does not say how long its strips are": tiff_of_one_strip(2).replace(struct.pack("<H", 279), b"\x17\x02"),
}


@pytest.mark.parametrize("name", SLOW)
def test_what_may_take_long_is_not_quick(name: str) -> None:
    with pytest.raises(Slow):
        load_pixels(SLOW[name], 16, quick=True)
    assert load_pixels(SLOW[name], 16).shape == (16, 16, 3)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_quick_is_the_same(name: str) -> None:
    image, kind, options = FORMATS[name]
    data = encode(image, kind, **options)
    np.testing.assert_array_equal(load_pixels(data, SIDE, quick=True), load_pixels(data, SIDE))


def test_what_fills_a_screen_is_quick() -> None:
    for kind in ("JPEG", "PNG", "WebP"):
        load_pixels(encode(Image.new("RGB", (1600, 1200)), kind), 16, quick=True)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), np.uint8))


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.new("RGB", (4032, 3024)), "JPEG"),  # the photograph of a telephone
        encode(Image.new("RGB", (1800, 1800)), "JPEG", progressive=True),
        encode(NOISE, "PNG"),  # bytes take time, too
        run_length_encoded_bmp(300, 300),
    ],
    ids=["pixels", "passes", "bytes", "python"],
)
def test_what_may_take_a_tenth_of_a_second_is_not_quick(data: bytes) -> None:
    with pytest.raises(Slow):
        load_pixels(data, 16, quick=True)


JPEG, GIF = encode(SMALL, "JPEG"), encode(SMALL, "GIF")
PALETTE_END = 13 + 3 * 256
ENDLESS: dict[str, Callable[[int], bytes]] = {  # headers that PIL reads in Python
    "jpeg segments": lambda count: JPEG[:2] + b"\xff\xfe\0\2" * count + JPEG[2:],
    "png chunks": lambda count: png(1, 1, bytes(4), before=png_chunk(b"abCd", b"") * count),
    "gif blocks": lambda count: GIF[:PALETTE_END] + b"!\xfe" + b"\1a" * count + b"\0" + GIF[PALETTE_END:],
}


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_headers_are_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read, and the time is looked at in between."""
    looks = itertools.count()
    monkeypatch.setattr("time.thread_time", lambda: next(looks) / 10_000)  # a second in ten thousand looks
    load_pixels(ENDLESS[name](100), 16, quick=True)
    with pytest.raises(Slow):
        load_pixels(ENDLESS[name](10_000), 16, quick=True)
    with pytest.raises(InvalidInput, match=TOO_SLOW):
        load_pixels(ENDLESS[name](30_000), 16)


def test_tiff_of_many_scans_is_refused() -> None:
    """A progressive JPEG in its one strip, whose last scan comes again and again."""
    progressive = encode(CHINA.convert("L"), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    load_pixels(jpeg_in_tiff(CHINA.size, progressive), 64)
    with pytest.raises(InvalidInput, match="must be a whole TIFF file"):
        load_pixels(jpeg_in_tiff(CHINA.size, progressive[:-2] + 20 * scan + progressive[-2:]), 64)


def jpeg_in_tiff(size: tuple[int, int], strip: bytes) -> bytes:
    width, height = size
    tags = {256: width, 257: height, 258: 8, 259: 7, 262: 1, 273: 0, 277: 1, 278: height, 279: len(strip)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4  # where the strip begins
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    return b"".join([struct.pack("<4sIH", b"II*", 8, len(tags)), *entries, bytes(4), strip])


def test_jpeg_of_endless_scans_is_refused() -> None:
    """Each costs a few bytes, and a pass over all pixels."""
    few = encode(SMALL, "JPEG", progressive=True)
    with pytest.raises(InvalidInput, match="a progressive JPEG must have fewer scans than 1001: save it anew"):
        load_pixels(few + b"\xff\xda" * (1001 - few.count(b"\xff\xda")), SIDE)
    tight = ImageLimits(max_pixels=SMALL.width * SMALL.height, max_scans=3)
    with pytest.raises(InvalidInput, match="fewer scans"):
        load_pixels(few, SIDE, limits=tight)


def test_odd_metadata_is_silent_even_where_warnings_are_errors() -> None:
    no_frames = png(1, 1, bytes(4), before=png_chunk(b"acTL", bytes(8)))
    bad_exif = encode(SMALL.resize((2, 2)), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    code = (
        f"from blipstream.images.pixels import load_pixels\nfor data in {[no_frames, bad_exif]}: load_pixels(data, 2)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# Anything at all gives pixels or InvalidInput

VALID = [encode(SMALL.resize((24, 16)), kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")] + [
    encode(SMALL.resize((24, 16)), "JPEG", progressive=True),
    encode(SMALL.resize((24, 16)), "TIFF", compression="tiff_lzw"),
    encode(with_alpha(SMALL.resize((24, 16))), "WEBP"),
    encode(SMALL.resize((24, 16)).quantize(8), "PNG", transparency=2),
    sixteen_bit("tiff"),
]
FUZZ = settings(max_examples=300)


def assert_pixels_or_invalid_input(data: bytes) -> None:
    try:
        pixels = load_pixels(data, 16, limits=ImageLimits(max_pixels=1_000_000))
    except InvalidInput as exc:
        assert "\n" not in str(exc)  # noqa: PT017
    else:
        assert pixels.shape == (16, 16, 3)


@FUZZ
@given(st.sampled_from([b"", *(valid[:n] for valid in VALID for n in (8, 12, 30))]), st.binary(max_size=200))
def test_random_bytes(head: bytes, tail: bytes) -> None:
    assert_pixels_or_invalid_input(head + tail)


@FUZZ
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.floats(0, 1),
    st.booleans(),
)
def test_mutated_files(valid: bytes, edits: list[tuple[float, int]], end: float, cut: bool) -> None:
    data = bytearray(valid)
    for place, value in edits:
        data[int(place**2 * (len(data) - 1))] = value  # more often near the header
    assert_pixels_or_invalid_input(bytes(data[: int(end * len(data))] if cut else data))
