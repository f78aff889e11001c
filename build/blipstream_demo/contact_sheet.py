# SPDX-License-Identifier: Apache-2.0
"""A contact sheet: images with words beneath."""

import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

from blipstream_demo.answers import Answers, Found, words

COLUMNS = 4
TILE = 288  # pixels
CAPTION_HEIGHT = 80  # pixels
MARGIN = 20  # pixels
GAP = 10  # pixels, between an image and its caption
RADIUS = 10  # pixels, of a tile's corners
FONT_SIZE = 18  # pixels
LEADING = 5  # pixels, between lines
INK, EDGE = "#24292f", "#d0d7de"
CAPTIONS = "captions"  # key of the PNG file's text: JSON, image name to caption


def contact_sheet(files: list[Path], answers: Answers) -> Image.Image:
    """The images with their captions beneath. The same images and captions give the same pixels."""
    return _sheet([(file, words(answers[file.name])) for file in files])


def search_sheet(found: list[Found]) -> Image.Image:
    """What was found for each text, with the text and the probability that it matches beneath."""
    return _sheet([(each.file, f"{each.text}: match {each.match:.2f}") for each in found])


def _sheet(tiles: list[tuple[Path, str]]) -> Image.Image:
    rows = -(-len(tiles) // COLUMNS)
    cell_width, cell_height = TILE + MARGIN, TILE + CAPTION_HEIGHT
    sheet = Image.new("RGB", (COLUMNS * cell_width + MARGIN, rows * cell_height + MARGIN), "white")
    draw, font, rounded = ImageDraw.Draw(sheet), _font(), _rounded()
    for i, (file, text) in enumerate(tiles):
        left, top = MARGIN + i % COLUMNS * cell_width, MARGIN + i // COLUMNS * cell_height
        with Image.open(file) as image:
            sheet.paste(ImageOps.fit(image.convert("RGB"), (TILE, TILE)), (left, top), rounded)
        draw.rounded_rectangle((left, top, left + TILE - 1, top + TILE - 1), RADIUS, outline=EDGE)
        middle, lines = left + TILE / 2, _wrap(text, font)
        draw.multiline_text((middle, top + TILE + GAP), lines, INK, font, anchor="ma", spacing=LEADING, align="center")
    return sheet


def save_sheet(sheet: Image.Image, answers: Answers, path: Path) -> None:
    """Write the sheet as a PNG file. Its text chunk maps image names to captions, for a test to read."""
    text = PngInfo()
    text.add_text(CAPTIONS, json.dumps({name: words(answer) for name, answer in answers.items()}))
    sheet.save(path, "PNG", optimize=True, pnginfo=text)


def _font() -> ImageFont.FreeTypeFont:
    """Pillow's built-in font, without the text shaping that some systems lack."""
    font = ImageFont.load_default(FONT_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont)  # noqa: S101  # only a Pillow without FreeType gives another
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)


def _rounded() -> Image.Image:
    """A tile's mask with rounded corners, drawn large and scaled down to be smooth."""
    scale = 4
    mask = Image.new("L", (TILE * scale, TILE * scale))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, TILE * scale - 1, TILE * scale - 1), RADIUS * scale, fill=255)
    return mask.resize((TILE, TILE), Image.Resampling.BOX)


def _wrap(text: str, font: ImageFont.FreeTypeFont) -> str:
    """Break a text into as few lines of a tile's width as possible, of about the same length."""
    lines = _lines(text, font, TILE)
    for width in range(TILE // 2, TILE):
        narrower = _lines(text, font, width)
        if len(narrower) == len(lines):
            return "\n".join(narrower)
    return "\n".join(lines)


def _lines(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break a text between words into lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
