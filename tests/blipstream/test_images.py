# SPDX-License-Identifier: Apache-2.0
"""Pixels are the reference's, bit for bit; bad images are refused, each with its own sentence."""

import re
import struct
import subprocess
import sys
from base64 import b64encode
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from skimage import data as photographs
from sklearn.datasets import load_sample_images
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from blipstream.errors import InvalidInput
from blipstream.images import DEFAULT_LIMITS, LETTERBOX_COLOR, RESIZE_MODES, ImageLimits, load_pixels, opened
from tests.blipstream.bad_images import BAD_IMAGES, BadImage, encode, png, png_chunk
from tests.conftest import SAMPLES

# pytest's "error" comes after, so goes before, the filter that blipstream.images sets for PIL
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


def test_data_url() -> None:
    """As JSON carries a file."""
    data = (SAMPLES / "a-book.jpg").read_bytes()
    url = b"data:image/jpeg;base64," + b64encode(data)
    assert np.array_equal(load_pixels(url, 224), load_pixels(data, 224))
    with pytest.raises(InvalidInput, match="at most 1,000 bytes"):
        load_pixels(url, 224, limits=ImageLimits(max_bytes=1000))


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (b"data:image/png,abc", "a data URL must begin as data:image/jpeg;base64, and not with b'data:image/png,abc'"),
        (b"data:", "a data URL must begin as data:image/jpeg;base64, and not with b'data:'"),
        (b"data:image/png;base64,abc@", "the data URL's image must be base64 text: "),
        (b"data:text/plain;base64," + b64encode(b"hello there"), "its 11 bytes start with 68 65 6c 6c 6f"),
    ],
)
def test_bad_data_url(url: bytes, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(sentence)):
        load_pixels(url, 224)


def test_pixels_are_writable() -> None:
    assert load_pixels(encode(SMALL, "PNG"), SIDE).flags.writeable  # torch.from_numpy warns of others


@settings(max_examples=30, deadline=None)
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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_what_takes_too_long_is_refused(kind: str) -> None:
    data = encode(CHINA, kind)
    load_pixels(data, 64)
    with pytest.raises(InvalidInput, match=r"image must decode within 1e-09 seconds: scale it down or save it anew"):
        load_pixels(data, 64, limits=ImageLimits(max_seconds=1e-9))


def test_time_is_counted_from_piece_to_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(encode(ASTRONAUT, "PNG"), DEFAULT_LIMITS) as image:
        monkeypatch.setattr("time.thread_time", lambda: 1e9)
        with pytest.raises(InvalidInput, match="must decode within 10 seconds"):
            image.load()


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
    code = f"from blipstream.images import load_pixels\nfor data in {[no_frames, bad_exif]}: load_pixels(data, 2)"
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
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


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
