# SPDX-License-Identifier: Apache-2.0
"""Caption the sample images through a real Triton server, over gRPC and over HTTP, and show them.

Exit status 0 only if every caption is right over both. Writes a contact sheet, demo.png.
"""

import json
import sys
from pathlib import Path

import click
from PIL import Image, ImageDraw, ImageFont, ImageOps
from rich.console import Console
from rich.table import Table

from blipstream.errors import BlipstreamError
from blipstream.server import TritonServer
from blipstream_client import BlipstreamError as ClientError
from blipstream_client import Caption, Client

ROOT = Path(__file__).resolve().parent.parent.parent
SAMPLES = ROOT / "build" / "demo" / "samples"
SHEET = ROOT / "demo.png"
COLUMNS = 4
TILE = 288  # pixels
CAPTION_HEIGHT = 60  # pixels
MARGIN = 16  # pixels
FONT_SIZE = 17  # pixels

Answers = dict[str, Caption | ClientError]  # by file name


def ask(url: str, files: list[Path]) -> Answers:
    """What the server at `url` says of each file."""
    with Client(url) as client:
        return {file.name: answer for file, answer in zip(files, client.caption_many(files), strict=True)}


def is_right(answer: Caption | ClientError, expected: str) -> bool:
    """Whether a caption came, to the letter."""
    return isinstance(answer, Caption) and answer.text == expected


def table(expected: dict[str, str], over_grpc: Answers, over_http: Answers) -> Table:
    """One line an image: what came over gRPC, and whether each way was right."""
    result = Table("image", "caption", "score", "gRPC", "HTTP", title="Eight scenes, captioned by Triton")
    for name, caption in expected.items():
        answer = over_grpc[name]
        text, score = (answer.text, f"{answer.score:.4f}") if isinstance(answer, Caption) else (str(answer), "")
        marks = ("✓" if is_right(answers[name], caption) else "✗" for answers in (over_grpc, over_http))
        result.add_row(name, text, score, *marks)
    return result


def contact_sheet(files: list[Path], answers: Answers) -> Image.Image:
    """The images with their captions beneath them."""
    rows = -(-len(files) // COLUMNS)
    cell_width, cell_height = TILE + MARGIN, TILE + CAPTION_HEIGHT + MARGIN
    sheet = Image.new("RGB", (COLUMNS * cell_width + MARGIN, rows * cell_height + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for i, file in enumerate(files):
        left, top = MARGIN + i % COLUMNS * cell_width, MARGIN + i // COLUMNS * cell_height
        with Image.open(file) as image:
            sheet.paste(ImageOps.fit(image.convert("RGB"), (TILE, TILE)), (left, top))
        draw.rectangle((left, top, left + TILE, top + TILE), outline="lightgrey")
        answer = answers[file.name]
        lines = _wrap(answer.text if isinstance(answer, Caption) else str(answer), font)
        draw.multiline_text((left, top + TILE + 6), lines, fill="black", font=font)
    return sheet


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= TILE:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


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
    contact_sheet(files, over_grpc).save(sheet)
    console.print(f"images and captions: {sheet}", markup=False)
    right = sum(is_right(answers[name], expected[name]) for answers in (over_grpc, over_http) for name in expected)
    if right < 2 * len(expected):
        console.print(f"error: {2 * len(expected) - right} of {2 * len(expected)} captions are not the expected ones")
        sys.exit(1)


if __name__ == "__main__":
    main()
