# SPDX-License-Identifier: Apache-2.0
"""Heatmaps over pictures: in the right place, in the picture's own shape, and readable."""

from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageDraw

from blipstream.images.pixels import load_pixels
from blipstream.images.resize import RESIZE_MODES
from blipstream_client import _pictures as pictures

SIDE, PATCH = 192, 16  # pixels of the model's square and of its patches
PATCHES = SIDE // PATCH


def peak(image: Image.Image) -> tuple[float, float]:
    """Where color is strongest, as fractions of width and height."""
    array = np.asarray(image, np.float32)
    colorful = array.max(2) - array.min(2)
    y, x = np.unravel_index(colorful.argmax(), colorful.shape)
    return (x + 0.5) / image.width, (y + 0.5) / image.height


def spotted(size: tuple[int, int], x: float, y: float) -> Image.Image:
    """A black picture with a white spot."""
    image = Image.new("RGB", size)
    radius = min(size) / 10
    at = (x * size[0], y * size[1])
    ImageDraw.Draw(image).ellipse((at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius), "white")
    return image


def encoded(image: Image.Image, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(file := BytesIO(), "PNG", exif=exif)
    return file.getvalue()


SPOTS = [
    (size, mode, x, y)
    for size, mode, (x, y) in product([(400, 400), (800, 300), (200, 700)], RESIZE_MODES, [(0.5, 0.5), (0.4, 0.6)])
]


@pytest.mark.parametrize(("size", "mode", "x", "y"), SPOTS)
def test_color_is_where_the_model_looked(size: tuple[int, int], mode: str, x: float, y: float) -> None:
    """A heatmap of what the model is shown lies on the same thing in the picture."""
    file = encoded(spotted(size, x, y))
    white = load_pixels(file, SIDE, mode).mean(2) > 128  # what letterbox adds is darker
    heatmap = white.reshape(PATCHES, PATCH, PATCHES, PATCH).mean((1, 3), dtype=np.float32)
    drawn = pictures.overlay(pictures.upright_picture(file), heatmap / heatmap.sum(), mode)
    assert drawn.width / drawn.height == pytest.approx(size[0] / size[1], rel=0.01)
    found = peak(drawn)
    assert abs(found[0] - x) * size[0] <= 0.1 * min(size)
    assert abs(found[1] - y) * size[1] <= 0.1 * min(size)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(orientation: int) -> None:
    """As the server turns them."""
    file = encoded(spotted((400, 300), 0.25, 0.25), orientation)
    upright = np.asarray(pictures.upright_picture(file).resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    assert np.abs(upright - load_pixels(file, SIDE)).mean() < 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK", "I;16", "RGB"])
def test_every_color_mode_is_drawn(mode: str) -> None:
    image = Image.new("I;16", (50, 40), 30000) if mode == "I;16" else spotted((50, 40), 0.5, 0.5).convert(mode)
    image.save(file := BytesIO(), "TIFF" if mode == "CMYK" else "PNG")
    picture = pictures.upright_picture(file.getvalue())
    assert (picture.mode, max(picture.size)) == ("RGB", pictures.SMALLEST)
    assert np.asarray(picture).std() > 0 or mode == "I;16"


def test_large_files_are_drawn_small() -> None:
    picture = pictures.upright_picture(encoded(Image.new("RGB", (3000, 2000))))
    assert picture.size == (1024, 683)


def test_brightness_alone_tells_the_colors_apart() -> None:
    """So that it does not matter which colors somebody confuses."""
    luminance = pictures.INFERNO @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > 10).all()


def test_a_heatmap_without_a_peak_stays_dim() -> None:
    picture = Image.new("RGB", (192, 192), "white")
    even = np.full((PATCHES, PATCHES), 1 / PATCHES**2, np.float32)
    sharp = np.eye(PATCHES, dtype=np.float32) / PATCHES
    brightest = [np.asarray(pictures.overlay(picture, heatmap, "stretch")).max() for heatmap in (even, sharp)]
    assert brightest[0] < brightest[1]
    nothing = pictures.overlay(picture, np.zeros((PATCHES, PATCHES), np.float32), "stretch")
    assert np.asarray(nothing).std() == 0


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 7, 13, 30])
@pytest.mark.parametrize("size", [(400, 300), (40, 900), (900, 40)])
def test_a_strip_has_room_for_every_word(count: int, size: tuple[int, int]) -> None:
    words = ["a-very-long-word-that-no-tile-has-room-for", "dog", *["on"] * 30][:count]
    heatmaps = [np.eye(PATCHES, dtype=np.float32) / PATCHES] * count
    sheet = pictures.strip(Image.new("RGB", size, "teal"), words, heatmaps, "stretch")
    assert sheet.width <= 5 * (pictures.TILE + pictures.MARGIN) + pictures.MARGIN
    edges = np.concatenate([np.asarray(edge).reshape(-1, 3) for edge in np.asarray(sheet)[:, [0, -1]]])
    assert (edges == 255).all()  # nothing is cut off


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_contact_sheet_keeps_shapes_and_shows_every_label(count: int) -> None:
    sizes = [(900, 300), (300, 900), (40, 40)] * 3
    tiles = [pictures.tile(encoded(Image.new("RGB", size, "teal"))) for size in sizes[:count]]
    label = ["1. a-name-that-is-far-too-long-for-its-place.jpg", "similarity -0.123", "match 0.97"]
    sheet = np.asarray(pictures.contact_sheet(tiles, [label] * count))
    assert (sheet[:, [0, -1]] == 255).all()  # nothing is cut off
    teal = (sheet == tiles[0].getpixel((0, 0))).all(2)
    assert teal.sum() == sum(tile.width * tile.height for tile in tiles)
    first = teal[: 20 + pictures.TILE, : 20 + pictures.TILE]
    assert [np.ptp(each) + 1 for each in np.nonzero(first)] == [tiles[0].height, tiles[0].width]
    assert tiles[0].width / tiles[0].height == pytest.approx(3, rel=0.02)


def test_a_picture_that_is_missing_leaves_a_place() -> None:
    tile = Image.new("RGB", (pictures.TILE, pictures.TILE), "teal")
    with_it, without = (pictures.contact_sheet([tile, each], [["a"], ["b"]]) for each in (tile, None))
    assert with_it.size == without.size
    assert (
        np.asarray(with_it)[:, : 20 + pictures.TILE].tolist() == np.asarray(without)[:, : 20 + pictures.TILE].tolist()
    )


def test_an_animation_has_a_frame_for_each_word(tmp_path: Path) -> None:
    words = ["a", "rather", "long", "caption", "of", "an", "alarm", "clock"] * 2
    heatmaps = [np.roll(np.eye(PATCHES, dtype=np.float32), number, 0) / PATCHES for number in range(len(words))]
    frames = pictures.animation(Image.new("RGB", (300, 400), "teal"), words, heatmaps, "letterbox")
    assert len(frames) == len(words)
    with (tmp_path / "words.gif").open("wb") as file:
        pictures.save_animation(frames, file)
    with Image.open(tmp_path / "words.gif") as written:
        assert (written.n_frames, written.size, written.info["loop"]) == (len(words), frames[0].size, 0)  # type: ignore[attr-defined]
