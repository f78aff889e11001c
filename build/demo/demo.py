# SPDX-License-Identifier: Apache-2.0
"""Caption the sample images through a real Triton server, over gRPC and over HTTP, and show them.

The exit status is 0 only if every caption is right over both. A contact sheet is written to demo.png. The one that the
README shows is made by `python build/demo/demo.py --sheet build/demo/contact-sheet.png`.
"""

import json
import sys
from pathlib import Path

import click
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from rich.table import Table

from blipstream.errors import BlipstreamError
from blipstream.server.triton import TritonServer
from blipstream_client import BlipstreamError as ClientError
from blipstream_client import Caption, Client

ROOT = Path(__file__).resolve().parent.parent.parent
SAMPLES = ROOT / "build" / "demo" / "samples"
SHEET = ROOT / "demo.png"
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

Answers = dict[str, Caption | ClientError]  # by file name


def ask(url: str, files: list[Path]) -> Answers:
    """The caption that the server at `url` gives each file, or the error."""
    with Client(url) as client:
        return {file.name: answer for file, answer in zip(files, client.caption_many(files), strict=True)}


def is_right(answer: Caption | ClientError, expected: str) -> bool:
    """Whether the answer is exactly the expected caption."""
    return isinstance(answer, Caption) and answer.text == expected


def table(expected: dict[str, str], over_grpc: Answers, over_http: Answers) -> Table:
    """A table of one line an image: the caption over gRPC, and whether it was right over gRPC and HTTP."""
    result = Table("image", "caption", "score", "gRPC", "HTTP", title="Eight scenes, captioned by Triton")
    for name, caption in expected.items():
        answer = over_grpc[name]
        text, score = (answer.text, f"{answer.score:.4f}") if isinstance(answer, Caption) else (str(answer), "")
        marks = ("✓" if is_right(answers[name], caption) else "✗" for answers in (over_grpc, over_http))
        result.add_row(name, text, score, *marks)
    return result


def contact_sheet(files: list[Path], answers: Answers) -> Image.Image:
    """The images with their captions beneath. The same images and captions give the same pixels."""
    rows = -(-len(files) // COLUMNS)
    cell_width, cell_height = TILE + MARGIN, TILE + CAPTION_HEIGHT
    sheet = Image.new("RGB", (COLUMNS * cell_width + MARGIN, rows * cell_height + MARGIN), "white")
    draw, font, rounded = ImageDraw.Draw(sheet), _font(), _rounded()
    for i, file in enumerate(files):
        left, top = MARGIN + i % COLUMNS * cell_width, MARGIN + i // COLUMNS * cell_height
        with Image.open(file) as image:
            sheet.paste(ImageOps.fit(image.convert("RGB"), (TILE, TILE)), (left, top), rounded)
        draw.rounded_rectangle((left, top, left + TILE - 1, top + TILE - 1), RADIUS, outline=EDGE)
        middle, lines = left + TILE / 2, _wrap(_words(answers[file.name]), font)
        draw.multiline_text((middle, top + TILE + GAP), lines, INK, font, anchor="ma", spacing=LEADING, align="center")
    return sheet


def save_sheet(sheet: Image.Image, answers: Answers, path: Path) -> None:
    """Write the sheet as a PNG file. Its text chunk maps image names to captions, for a test to read."""
    text = PngInfo()
    text.add_text(CAPTIONS, json.dumps({name: _words(answer) for name, answer in answers.items()}))
    sheet.save(path, "PNG", optimize=True, pnginfo=text)


def _words(answer: Caption | ClientError) -> str:
    return answer.text if isinstance(answer, Caption) else str(answer)


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


@click.command()
@click.option(
    "--repository",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=ROOT / "model_repository",
    show_default="model_repository",
    help="Model repository with the demo checkpoint's artifacts.",
)
@click.option("--sheet", type=click.Path(path_type=Path), default=SHEET, show_default="demo.png", help="To be written.")
def main(repository: Path, sheet: Path) -> None:
    """Caption the sample images through a real Triton server, over gRPC and over HTTP, and show them."""
    expected: dict[str, str] = json.loads((SAMPLES / "captions.json").read_text(encoding="utf-8"))
    files = [SAMPLES / name for name in expected]
    console = Console()
    try:
        with (
            console.status("starting Triton"),
            TritonServer(repository=repository, config="cpu", http_port=0, grpc_port=0, metrics_port=0) as server,
        ):
            over_grpc, over_http = ask(server.grpc_url, files), ask(server.http_url, files)
    except (BlipstreamError, ClientError) as exc:
        console.print(f"error: {exc}", markup=False)
        sys.exit(1)
    console.print(table(expected, over_grpc, over_http))
    save_sheet(contact_sheet(files, over_grpc), over_grpc, sheet)
    console.print(f"images and captions: {sheet}", markup=False)
    right = sum(is_right(answers[name], expected[name]) for answers in (over_grpc, over_http) for name in expected)
    if right < 2 * len(expected):
        console.print(f"error: {2 * len(expected) - right} of {2 * len(expected)} captions are not the expected ones")
        sys.exit(1)


if __name__ == "__main__":
    main()
