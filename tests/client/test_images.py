# SPDX-License-Identifier: Apache-2.0
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from blipstream_client import InvalidImage
from blipstream_client._images import encode, shrink

RNG = np.random.default_rng(0)


def decode(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded), formats=["PNG"])


def test_encoded_images_travel_untouched(tmp_path: Path, jpeg: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg)
    assert encode(path) == encode(str(path)) == jpeg
    assert encode(jpeg) == encode(bytearray(jpeg)) == encode(memoryview(jpeg)) == jpeg
    assert encode(io.BytesIO(jpeg)) == jpeg
    with path.open("rb") as file:
        assert encode(file) == jpeg


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7)])
def test_arrays_travel_without_loss(shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(decode(encode(array))), array)
    np.testing.assert_array_equal(np.asarray(decode(encode(array[::2, ::-1]))), array[::2, ::-1])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "YCbCr", "I", "F"])
def test_pil_images_look_the_same_as_rgb(mode: str) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    image = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
    assert decode(encode(image)).convert("RGB").tobytes() == image.convert("RGB").tobytes()


def test_the_orientation_of_a_photograph_travels() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turned by a quarter
    Image.new("RGB", (8, 6)).save(buffer, "JPEG", exif=exif)
    assert decode(encode(Image.open(buffer))).getexif()[0x0112] == 6


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 7, 3), np.float32),
        np.zeros((3, 5, 7), np.uint8),
        np.zeros((5, 7, 4), np.uint8),
        np.zeros((0, 7, 3), np.uint8),
        np.zeros(7, np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_wrong_arrays_are_told_what_was_expected(array: npt.NDArray[Any]) -> None:
    with pytest.raises(InvalidImage, match=r"uint8 array of shape \[H, W, 3\] or \[H, W\]") as caught:
        encode(array)
    assert f"got {array.dtype} of shape {list(array.shape)}" in str(caught.value)


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
    odd = Image.new("RGB", (8, 6))
    odd.getexif()[0x0112] = "up"
    with pytest.raises(InvalidImage, match="Cannot encode the PIL image as PNG"):
        encode(odd)


@pytest.mark.parametrize("wrong", [None, 7, ["a.jpg"]])
def test_other_kinds(wrong: Any) -> None:
    with pytest.raises(InvalidImage, match=f"got {type(wrong).__name__}"):
        encode(wrong)


def test_empty_images() -> None:
    with pytest.raises(InvalidImage, match="got 0 bytes"):
        encode(b"")


def encoded(image: Image.Image, kind: str, **arguments: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **arguments)
    return buffer.getvalue()


def picture(width: int, height: int) -> Image.Image:
    """A smooth one: red from left to right, green from top to bottom."""
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


def test_images_that_are_small_enough_are_not_touched(jpeg: bytes) -> None:
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


def test_what_is_no_image_is_left_for_the_server_to_judge() -> None:
    drawing = encoded(picture(600, 400), "EPS")  # PIL would call Ghostscript
    for wrong in (b"not an image", encoded(picture(600, 400), "JPEG")[:2000], drawing):
        assert shrink(wrong, 10) is wrong


def test_what_cannot_be_written_is_left_for_the_server_to_judge() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    odd = exif.tobytes().replace(b"\x01\x12\x00\x03", b"\x01\x12\x00\x01")  # a byte, where there are two
    photograph = encoded(picture(600, 400), "JPEG", exif=odd)
    assert shrink(photograph, 10) is photograph


def test_a_telephones_photograph_stays_jpeg() -> None:
    two = encoded(picture(600, 400), "MPO", save_all=True, append_images=[picture(60, 40)])
    assert Image.open(io.BytesIO(two)).format == "MPO"
    small = Image.open(io.BytesIO(shrink(two, 150)))
    assert (small.format, small.size) == ("JPEG", (150, 100))
