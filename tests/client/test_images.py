# SPDX-License-Identifier: Apache-2.0
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from blipstream.images.colors import to_rgb
from blipstream.images.pixels import load_pixels
from blipstream_client import InvalidImage
from blipstream_client._images import encode, shrink

RNG = np.random.default_rng(0)


def decode(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded), formats=["PNG"])


def test_encoded_images_are_sent_unchanged(tmp_path: Path, jpeg: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg)
    assert encode(path) == encode(str(path)) == jpeg
    assert encode(jpeg) == encode(bytearray(jpeg)) == encode(memoryview(jpeg)) == jpeg
    assert encode(io.BytesIO(jpeg)) == jpeg
    with path.open("rb") as file:
        assert encode(file) == jpeg


def seen(data: bytes) -> npt.NDArray[np.uint8]:
    """The pixels that the server decodes from a file: [8, 8, 3]."""
    return load_pixels(data, 8)


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7), (5, 7, 1), (5, 7, 4), (3, 5, 4)])
def test_arrays_are_sent_without_loss(shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    frozen = array.copy()
    frozen.flags.writeable = False
    for each in (array, array[::2, ::-1], np.asfortranarray(array), frozen):
        np.testing.assert_array_equal(np.asarray(decode(encode(each))), each[:, :, 0] if shape[2:] == (1,) else each)


def picture_in(mode: str) -> Image.Image:
    """Noise. Half of it is transparent if the mode has transparency."""
    colours = Image.fromarray(RNG.integers(0, 256, (8, 8, 4), dtype=np.uint8), "RGBA")
    match mode:
        case "I;16":
            return Image.fromarray(RNG.integers(0, 65536, (8, 8), dtype=np.uint16))
        case "I;16B" | "I;16L" | "I;16N":
            return Image.frombytes(mode, (8, 8), RNG.integers(0, 256, 128, dtype=np.uint8).tobytes())
        case "La":
            return colours.convert("LA").convert("La")
        case "PA":
            return colours.convert("RGB").convert("P").convert("PA")
        case "HSV" | "LAB" | "YCbCr" | "CMYK" | "P":
            return colours.convert("RGB").convert(mode)
        case _:
            return colours.convert(mode)


@pytest.mark.parametrize("mode", sorted({*Image.MODES} - {"F", "I"}))
def test_pil_images_look_like_their_file(mode: str) -> None:
    """They look as the server decodes their file, which is as the reference does."""
    image = picture_in(mode)
    expected = np.asarray(to_rgb(image))
    np.testing.assert_array_equal(seen(encode(image)), expected)
    if not mode.startswith("I;16") and mode not in (
        "La",
        "RGBa",
    ):  # PIL clips, refuses and darkens them
        reference = BlipImageProcessorPil(do_resize=False, do_rescale=False, do_normalize=False)
        pixels = reference(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_array_equal(expected, pixels)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_transparent_colours_are_sent(mode: str) -> None:
    image = picture_in(mode)
    image.info["transparency"] = image.getpixel((0, 0))
    np.testing.assert_array_equal(seen(encode(image)), np.asarray(to_rgb(image)))
    assert seen(encode(image))[0, 0].tolist() == [255, 255, 255]


def test_palettes_with_transparency_are_sent() -> None:
    image = picture_in("RGBA").quantize(16)
    assert (image.mode, image.has_transparency_data) == ("P", True)
    np.testing.assert_array_equal(seen(encode(image)), np.asarray(to_rgb(image)))


@pytest.mark.parametrize("values", ["12 bits", "white is zero"])
def test_tiff_files_of_16_bits_look_the_same_opened_or_not(values: str) -> None:
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * (64 if values == "12 bits" else 1000)
    file = bytearray(encoded(Image.fromarray(grey), "TIFF"))
    tag = 258 if values == "12 bits" else 262  # BitsPerSample, PhotometricInterpretation
    entry = file.index(tag.to_bytes(2, "little") + (3).to_bytes(2, "little"))
    file[entry + 8] = 12 if values == "12 bits" else 0
    if values == "12 bits":  # two samples in three bytes
        first, second = grey.ravel()[::2].astype(int), grey.ravel()[1::2].astype(int)
        packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8)
        offsets = file.index((273).to_bytes(2, "little"))
        start = int.from_bytes(file[offsets + 8 : offsets + 12], "little")
        file[start : start + packed.size] = packed.tobytes()
    opened = Image.open(io.BytesIO(file))
    assert opened.mode == "I;16"
    np.testing.assert_array_equal(seen(encode(opened)), seen(bytes(file)))
    np.testing.assert_array_equal(seen(shrink(bytes(file), 7)).mean().round(), seen(bytes(file)).mean().round())


def photograph(orientation: int, kind: str, **metadata: Any) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(picture(12, 8), kind, exif=exif, **metadata)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [*range(10), 65535])
def test_photographs_stand_upright_opened_or_not(orientation: int, kind: str) -> None:
    file = photograph(orientation, kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(seen(encode(Image.open(io.BytesIO(file)))), seen(file))


def test_an_invalid_orientation_is_ignored(jpeg: bytes) -> None:
    odd = Image.open(io.BytesIO(jpeg))
    odd.getexif()[ExifTags.Base.Orientation] = "up"
    np.testing.assert_array_equal(seen(encode(odd)), seen(jpeg))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_no_other_metadata_is_sent(kind: str) -> None:
    """Else a JPEG with a profile of megabytes would become a PNG that the server refuses."""
    words = PngInfo()
    words.add_text("secret", "secret" * 1000)
    file = photograph(6, kind, icc_profile=RNG.bytes(1_000_000), dpi=(300, 300), comment=b"secret", pnginfo=words)
    image = Image.open(io.BytesIO(file))
    for sent in (encode(image), shrink(file, 6)):
        found = Image.open(io.BytesIO(sent))
        found.load()
        assert set(found.info) <= {"exif", "dpi", "jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert dict(found.getexif()) == {ExifTags.Base.Orientation: 6}
        assert len(sent) < 2000
    assert "icc_profile" in image.info, "the caller's image keeps what it had"


def remedied(error: InvalidImage, **values: Any) -> Any:
    """The image after doing what the error says."""
    remedy = str(error).partition(": send ")[2].split(", if ")[0]
    return eval(remedy, values)  # noqa: S307


@pytest.mark.parametrize(("mode", "top"), [("F", 1.0), ("I", 65535)])
def test_pil_images_without_a_range_are_told_how_to_get_one(mode: str, top: float) -> None:
    """Converting them would make nearly all pixels black or white."""
    values = (np.linspace(0, 1, 64).reshape(8, 8) * top).astype(np.float32 if mode == "F" else np.int32)
    image = Image.fromarray(values)
    assert image.mode == mode
    with pytest.raises(InvalidImage, match=f"got mode {mode}, which says nothing of its range") as caught:
        encode(image)
    pixels = np.asarray(decode(encode(remedied(caught.value, image=image))), dtype=float)
    assert np.abs(pixels - values / top * 255).max() <= 1


def test_tiff_files_without_a_range_are_left_to_the_server() -> None:
    file = encoded(Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), "TIFF")
    assert shrink(file, 4) is file


GREY = np.linspace(0, 1, 35).reshape(5, 7)
COLOURS = np.linspace(0, 1, 105).reshape(5, 7, 3)


@pytest.mark.parametrize(
    ("array", "top"),
    [
        (GREY.astype(np.float16), 1),
        (COLOURS.astype(np.float32), 1),
        (COLOURS.astype(">f8"), 1),
        (COLOURS.transpose(2, 0, 1), 1),
        ((COLOURS * 255).astype(np.uint8).transpose(2, 0, 1), 255),
        (GREY > 0.5, 1),
        ((GREY * 255).astype(np.int64), 255),
        ((GREY * 127).astype(np.int8), 255),
        ((COLOURS * 65535).astype(np.uint16), 65535),
        ((COLOURS * 65535).astype(">u2"), 65535),
    ],
    ids=lambda value: f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else "",
)
def test_other_arrays_are_told_how_to_become_right(array: npt.NDArray[Any], top: int) -> None:
    with pytest.raises(InvalidImage, match=r"Expected a uint8 array of shape \[H, W\], \[H, W, 1\]") as caught:
        encode(array)
    assert f"got {array.dtype} of shape {list(array.shape)}: send " in str(caught.value)
    right = remedied(caught.value, array=array)
    pixels = np.asarray(decode(encode(right)), dtype=float)
    there = array.transpose(1, 2, 0) if pixels.shape != array.shape else array
    assert np.abs(pixels - there.astype(float) / top * 255).max() <= 1


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 7, 3), np.uint8),
        np.zeros((0, 7), np.float32),
        np.zeros(7, np.uint8),
        np.zeros((), np.uint8),
        np.zeros((5, 7, 2), np.uint8),
        np.zeros((2, 5, 7, 3), np.uint8),
        np.zeros((1, 5, 7, 3), np.float32),
        np.zeros((5, 7), complex),
        np.zeros((5, 7), object),
        np.zeros((5, 7), "M8[s]"),
        np.zeros((5, 7), [(f"a field with a long name {number}", "u1") for number in range(99)]),
        np.zeros([1] * 32, np.uint8),
    ],
    ids=lambda array: f"{array.dtype.str}{list(array.shape)}",
)
def test_arrays_that_are_no_image_are_told_what_was_expected(array: npt.NDArray[Any]) -> None:
    with pytest.raises(InvalidImage, match=r"Expected a uint8 array of shape \[H, W\], \[H, W, 1\]") as caught:
        encode(array)
    assert len(str(caught.value)) < 250


def test_nan_is_refused() -> None:
    with pytest.raises(InvalidImage, match="got float32"):
        encode(np.full((5, 7), np.nan, np.float32))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidImage, match=r"nowhere\.jpg': No such file or directory"):
        encode(tmp_path / "nowhere.jpg")
    with pytest.raises(InvalidImage, match="Is a directory"):
        encode(tmp_path)
    with pytest.raises(InvalidImage, match="null"):
        encode("a\0b.jpg")


def test_wrong_file_objects(jpeg: bytes) -> None:
    with pytest.raises(InvalidImage, match="open it as 'rb'"):
        encode(io.StringIO("text"))  # type: ignore[arg-type]
    closed = io.BytesIO(jpeg)
    closed.close()
    with pytest.raises(InvalidImage, match="closed file"):
        encode(closed)


def test_broken_pil_images() -> None:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    truncated = Image.open(io.BytesIO(buffer.getvalue()[:-1000]))
    with pytest.raises(InvalidImage, match="Cannot encode the PIL image as PNG"):
        encode(truncated)
    with pytest.raises(InvalidImage, match="Cannot encode the PIL image as PNG"):
        encode(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("wrong", [None, 7, ["a.jpg"]])
def test_other_kinds(wrong: Any) -> None:
    with pytest.raises(InvalidImage, match=f"got {type(wrong).__name__}"):
        encode(wrong)


def test_several_images_are_for_another_method() -> None:
    for several in (["a.jpg"], ("a.jpg",), iter(["a.jpg"])):
        with pytest.raises(InvalidImage, match=r"got .*: for several images, use caption_many$"):
            encode(several)  # type: ignore[arg-type]


def test_empty_images() -> None:
    with pytest.raises(InvalidImage, match="got 0 bytes"):
        encode(b"")


def encoded(image: Image.Image, kind: str, **arguments: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **arguments)
    return buffer.getvalue()


def picture(width: int, height: int) -> Image.Image:
    """A gradient: red from left to right, green from top to bottom."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [columns * 255 // width, rows * 255 // height, np.full((height, width), 128)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_large_images_shrink_and_keep_their_shape(kind: str) -> None:
    large = picture(600, 400)
    small = Image.open(io.BytesIO(shrink(encoded(large, kind), 150)))
    assert small.size == (150, 100)
    assert small.format == ("JPEG" if kind == "JPEG" else "PNG")
    expected = np.asarray(large.resize((150, 100), Image.Resampling.BICUBIC), dtype=float)
    difference = np.abs(np.asarray(small.convert("RGB"), dtype=float) - expected)
    assert difference.mean() < (8 if kind == "GIF" else 3)


def test_small_images_are_sent_unchanged(jpeg: bytes) -> None:
    assert shrink(jpeg, 8) is jpeg
    tall = encoded(picture(5, 9), "PNG")
    assert shrink(tall, 9) is tall
    assert Image.open(io.BytesIO(shrink(tall, 8))).size == (4, 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_the_orientation_survives_shrinking(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    large = encoded(picture(600, 400), kind, exif=exif)
    upright = [ImageOps.exif_transpose(Image.open(io.BytesIO(data))) for data in (large, shrink(large, 60))]
    assert [image.size for image in upright] == [(400, 600), (40, 60)]
    difference = np.asarray(upright[0].resize((40, 60)), dtype=float) - np.asarray(upright[1], dtype=float)
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_every_mode_shrinks(mode: str) -> None:
    image = picture(60, 40).convert("L" if mode == "I;16" else mode).convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    if mode == "P":
        image.info["transparency"] = 0
    small = Image.open(io.BytesIO(shrink(encoded(image, kind), 30)))
    assert small.size == (30, 20)
    assert ("A" in small.mode) == (mode in ("LA", "RGBA", "P"))


def test_files_that_are_no_image_are_left_to_the_server() -> None:
    drawing = encoded(picture(600, 400), "EPS")  # PIL would call Ghostscript
    for wrong in (b"not an image", encoded(picture(600, 400), "JPEG")[:2000], drawing):
        assert shrink(wrong, 10) is wrong


def test_metadata_that_cannot_be_read_is_lost_in_shrinking() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    odd = exif.tobytes().replace(b"\x01\x12\x00\x03", b"\x01\x12\x00\x01")  # a byte, where there are two
    small = Image.open(io.BytesIO(shrink(encoded(picture(600, 400), "JPEG", exif=odd), 150)))
    assert small.size == (150, 100)
    assert not small.getexif()


def test_a_phones_photograph_stays_jpeg() -> None:
    two = encoded(picture(600, 400), "MPO", save_all=True, append_images=[picture(60, 40)])
    assert Image.open(io.BytesIO(two)).format == "MPO"
    small = Image.open(io.BytesIO(shrink(two, 150)))
    assert (small.format, small.size) == ("JPEG", (150, 100))
