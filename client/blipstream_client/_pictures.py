# SPDX-License-Identifier: Apache-2.0
"""Draws heatmaps over the picture that they belong to, and contact sheets."""

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from blipstream_client._images import opened

Heatmap = npt.NDArray[np.float32]  # [P, P] over what the model saw, or [H, W] over a picture

LARGEST, SMALLEST = 1024, 384  # pixels of a picture's longer side
LONGEST = 32  # times as long as wide: a line shows nothing
TILE = 256  # pixels of the longer side in a sheet
COLUMNS = (5, 4, 3)  # of a sheet: the first of those that leave the fewest places empty
FRAME = 480  # pixels of the longer side in an animation
FRAME_MILLISECONDS = 900
MARGIN, GAP = 20, 10  # pixels
FONT_SIZE = 20  # pixels
INK, PALE, PAPER = "#24292f", "#8c959f", "white"

# matplotlib's inferno at nine even steps (S. van der Walt and N. Smith, CC0). Its brightness rises evenly, so that
# people who confuse red and green, and printers without color, see the same
INFERNO = np.array(
    [
        (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85),
        (227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164),
    ],
    np.float32,
)  # fmt: skip
DARKEST = 0.25  # of the colors: the darker ones would only hide the picture
OPAQUE = 0.85  # how much of the picture the strongest color covers
GREY = (40, 150)  # the darkest and the brightest of the picture where there is no color
SMOOTH = 40.0  # the blur's radius is the picture's shorter side divided by this
FULL = 4.0  # times as much as an even spread: weaker heatmaps do not get the strongest color


def upright_picture(encoded: bytes) -> Image.Image:
    """The picture in RGB, as its EXIF orientation says, on white where it is transparent, in a size to draw on.

    Raises any of PIL's exceptions, and ValueError if it is almost a line.
    """
    with opened(encoded) as image:
        if max(image.size) > LONGEST * min(image.size):
            width, height = image.size
            raise ValueError(f"{width} x {height} pixels is thinner than 1 to {LONGEST}: crop it")
        image.draft("RGB", (LARGEST, LARGEST))  # JPEG files can be decoded smaller, and much faster
        picture = ImageOps.exif_transpose(image)
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return _scaled(picture.convert("RGB"), min(max(*picture.size, SMALLEST), LARGEST))


def overlay(picture: Image.Image, heatmap: Heatmap, resize_mode: str) -> Image.Image:
    """The picture in grey, with the heatmap [P, P] in color where it is strong.

    Its strongest place has the strongest color. A heatmap that is spread over the whole picture stays dim.
    """
    heat = on_picture(heatmap / max(float(heatmap.max()), FULL / heatmap.size), picture.size, resize_mode)
    shade = np.asarray(ImageOps.grayscale(picture), np.float32)[:, :, None] / 255
    grey = GREY[0] + (GREY[1] - GREY[0]) * shade
    position: Heatmap = (DARKEST + (1 - DARKEST) * heat) * (len(INFERNO) - 1)
    color = np.stack([np.interp(position, range(len(INFERNO)), channel) for channel in INFERNO.T], 2)
    cover = OPAQUE * heat[:, :, None]
    mixed = grey * (1 - cover) + (0.7 + 0.3 * shade) * color * cover
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def on_picture(heatmap: Heatmap, size: tuple[int, int], resize_mode: str) -> Heatmap:
    """A heatmap [P, P] of the model's square as [H, W] of a picture, from 0 to 1, given the picture's width and height.

    What the model did not see, since `center_crop` cuts it off, gets zeros. What `letterbox` adds is left out.
    """
    width, height = size
    edges = {"center_crop": (min(size), min(size)), "letterbox": (max(size), max(size))}
    seen = edges.get(resize_mode, size)  # of the picture, or more
    # bicubic interpolation would dig ditches around the peaks
    strongest = float(heatmap.max())
    levels = Image.fromarray((heatmap * 255 / (strongest or 1)).round().astype(np.uint8))
    large = levels.resize(seen, Image.Resampling.BILINEAR).filter(ImageFilter.GaussianBlur(min(seen) / SMOOTH))
    left, top = (seen[0] - width) // 2, (seen[1] - height) // 2
    placed = large.crop((left, top, left + width, top + height))  # beyond the edges there are zeros
    result: Heatmap = np.asarray(placed, np.float32) * (strongest / max(float(np.asarray(large).max()), 1.0))
    return result


def strip(picture: Image.Image, words: Sequence[str], heatmaps: Sequence[Heatmap], resize_mode: str) -> Image.Image:
    """The picture, and once again for each word with its heatmap, in rows, the words beneath."""
    small = _scaled(picture, TILE)
    tiles = [small, *(overlay(small, heatmap, resize_mode) for heatmap in heatmaps)]
    return _grid(tiles, [("",), *((word,) for word in words)], TILE // 2)


def tile(encoded: bytes) -> Image.Image:
    """An image as it stands on a contact sheet. Raises any of PIL's exceptions."""
    return _scaled(upright_picture(encoded), TILE)


def contact_sheet(tiles: Sequence[Image.Image | None], labels: Sequence[Sequence[str]]) -> Image.Image:
    """The tiles in rows, each with its lines of text beneath, as many for each. None leaves a grey place."""
    nothing = Image.new("RGB", (TILE, TILE), PALE)
    return _grid([tile or nothing for tile in tiles], labels, TILE)


def _grid(tiles: Sequence[Image.Image], labels: Sequence[Sequence[str]], narrowest: int) -> Image.Image:
    """The tiles in rows, with their labels beneath, in columns of at least so many pixels."""
    columns = min(min(COLUMNS, key=lambda count: -len(tiles) % count), len(tiles))
    rows = -(-len(tiles) // columns)
    font = _font(FONT_SIZE)
    height = max(tile.height for tile in tiles)
    cell_width = max(narrowest, *(tile.width for tile in tiles)) + MARGIN
    cell_height = height + 2 * GAP + len(labels[0]) * (FONT_SIZE + GAP)
    sheet = Image.new("RGB", (columns * cell_width + MARGIN, rows * cell_height + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (tile, lines) in enumerate(zip(tiles, labels, strict=True)):
        left, top = MARGIN + number % columns * cell_width, MARGIN + number // columns * cell_height
        sheet.paste(tile, (left + (cell_width - MARGIN - tile.width) // 2, top + height - tile.height))
        middle = left + (cell_width - MARGIN) / 2
        for line, text in enumerate(lines):
            place = (middle, top + height + GAP + line * (FONT_SIZE + GAP))
            draw.text(place, _shortened(text, font, cell_width - GAP), INK, font, anchor="ma")
    return sheet


def animation(
    picture: Image.Image, words: Sequence[str], heatmaps: Sequence[Heatmap], resize_mode: str
) -> list[Image.Image]:
    """A frame for each word: its heatmap, and the caption with the word set off."""
    small = _scaled(picture, FRAME)
    font = _font(FONT_SIZE)
    width = max(small.width, TILE)
    lines = _lines(words, font, width - 2 * GAP)
    height = small.height + len(lines) * (FONT_SIZE + GAP) + 2 * GAP
    frames = []
    for number, heatmap in enumerate(heatmaps):
        frame = Image.new("RGB", (width, height), PAPER)
        frame.paste(overlay(small, heatmap, resize_mode), ((width - small.width) // 2, 0))
        draw, top = ImageDraw.Draw(frame), float(small.height + GAP)
        for line in lines:
            left = (width - font.getlength(" ".join(words[at] for at in line))) / 2
            for at in line:
                draw.text((left, top), words[at], INK if at == number else PALE, font)
                left += font.getlength(f"{words[at]} ")
            top += FONT_SIZE + GAP
        frames.append(frame)
    return frames


def save_animation(frames: Sequence[Image.Image], file: BinaryIO) -> None:
    """Write frames as a GIF that repeats."""
    first, *others = frames
    first.save(file, "GIF", save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0)


def _scaled(picture: Image.Image, longer: int) -> Image.Image:
    """The picture with a longer side of so many pixels."""
    factor = longer / max(picture.size)
    width, height = (max(1, round(side * factor)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's built-in font, without the text shaping that some systems lack."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # noqa: S101  # only a Pillow without FreeType gives another
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)


def _shortened(word: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    while font.getlength(word) > width and len(word) > 1:
        word = f"{word.removesuffix('...')[:-1]}..." if len(word) > 4 else word[:-1]
    return word


def _lines(words: Sequence[str], font: ImageFont.FreeTypeFont, width: int) -> list[list[int]]:
    """The numbers of the words on each line of at most so many pixels."""
    lines: list[list[int]] = [[]]
    for number in range(len(words)):
        longer = " ".join(words[at] for at in [*lines[-1], number])
        if lines[-1] and font.getlength(longer) > width:
            lines.append([])
        lines[-1].append(number)
    return lines
