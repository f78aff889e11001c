# SPDX-License-Identifier: Apache-2.0
"""`blipstream demo`, and the picture that the README shows."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image, ImageChops

from blipstream.server.triton import TritonServer
from blipstream_client import Caption
from blipstream_demo import command
from blipstream_demo import contact_sheet as sheets
from blipstream_demo.answers import Answers, Found, ask, explain_longest
from blipstream_demo.heatmaps import WORDS
from tests.conftest import ROOT, SAMPLES
from tests.support.terminal import sentence

SHEET = ROOT / "build/demo/contact-sheet.png"
HEATMAPS = ROOT / "docs/heatmaps.png"
REMEDY = "make it anew: .venv/bin/blipstream demo --sheet build/demo/contact-sheet.png"

HEATMAPS_REMEDY = "make it anew: .venv/bin/blipstream demo --heatmaps docs/heatmaps.png"


def test_the_readmes_picture_says_what_the_server_says(
    server: TritonServer, samples: dict[str, str], tmp_path: Path
) -> None:
    """In its text, which does not depend on fonts, and in its pixels."""
    assert "(build/demo/contact-sheet.png)" in (ROOT / "README.md").read_text()
    files = [SAMPLES / name for name in samples]
    answers = ask(server.grpc_url, files)
    sheets.save_sheet(sheets.contact_sheet(files, answers), answers, tmp_path / "sheet.png")
    with Image.open(SHEET) as shown, Image.open(tmp_path / "sheet.png") as right:
        assert json.loads(shown.info[sheets.CAPTIONS]) == samples, REMEDY
        assert json.loads(right.info[sheets.CAPTIONS]) == samples
        assert ImageChops.difference(shown, right).getbbox() is None, REMEDY


def test_the_documents_heatmaps_are_those_of_the_server(server: TritonServer, samples: dict[str, str]) -> None:
    """Each object's heatmap has its peak where the committed picture has it."""
    files = [SAMPLES / name for name in samples]
    answers: Answers = {name: Caption(text, 0.0, 1) for name, text in samples.items()}
    explanation = explain_longest(server.grpc_url, files, answers)
    assert " ".join(explanation.words) == max(samples.values(), key=lambda text: len(text.split()))
    with Image.open(HEATMAPS) as shown:
        committed = json.loads(shown.info[WORDS])
        assert shown.size == explanation.strip().size, HEATMAPS_REMEDY
    assert [word for word, _ in committed] == list(explanation.words), HEATMAPS_REMEDY
    for number, (word, patch) in enumerate(committed):
        if word in ("bus", "alarm", "clock"):  # others are spread, and another dtype may move their peaks
            heatmap = explanation.attention[number].ravel()
            assert heatmap[patch] > 0.8 * heatmap.max(), HEATMAPS_REMEDY


def test_each_caption_is_beneath_its_image(samples: dict[str, str]) -> None:
    """A changed caption changes the sheet there and nowhere else."""
    files = [SAMPLES / name for name in samples]
    answers: Answers = {name: Caption(text, 0.0, 1) for name, text in samples.items()}
    number = list(samples).index("an-elephant-to-the-left-of-a-watch.jpg")
    wrong = answers | {files[number].name: Caption("a bicycle to the left of a watch on a pink background", 0.0, 1)}
    changed = ImageChops.difference(*(sheets.contact_sheet(files, each) for each in (answers, wrong))).getbbox()
    assert changed is not None
    left, top, right, bottom = changed
    row, column = divmod(number, sheets.COLUMNS)
    cell_left = sheets.MARGIN + column * (sheets.TILE + sheets.MARGIN)
    cell_top = sheets.MARGIN + row * (sheets.TILE + sheets.CAPTION_HEIGHT)
    assert cell_left <= left < right <= cell_left + sheets.TILE
    assert cell_top + sheets.TILE <= top < bottom <= cell_top + sheets.TILE + sheets.CAPTION_HEIGHT


def test_long_words_and_captions_are_wrapped() -> None:
    font = sheets._font()
    assert sheets._wrap("", font) == ""
    assert sheets._wrap("x" * 200, font) == "x" * 200
    lines = sheets._wrap(" ".join(["word"] * 40), font).splitlines()
    assert len(lines) > 2
    assert all(font.getlength(line) <= sheets.TILE for line in lines)


def test_what_a_text_found_is_above_it() -> None:
    """One image may be found twice. A changed text changes the picture beneath its image alone."""
    found = [Found(text, SAMPLES / "two-whales.jpg", 0.5, 0.97) for text in ("two whales", "a cat")]
    one, other = (sheets.search_sheet([found[0], each]) for each in (found[0], found[1]))
    changed = ImageChops.difference(one, other).getbbox()
    assert changed is not None
    assert changed[0] >= sheets.MARGIN + sheets.TILE + sheets.MARGIN
    assert changed[1] >= sheets.MARGIN + sheets.TILE


@pytest.fixture
def repository(artifacts: Path, tmp_path: Path) -> Path:
    """One of our own, since the demo builds its retrieval checkpoint into it."""
    return Path(shutil.copytree(artifacts, tmp_path / "repository"))


@pytest.mark.full  # `make demo` does the same
def test_all_right(repository: Path, tmp_path: Path) -> None:
    sheet, heatmaps, search = (tmp_path / f"{name}.png" for name in ("sheet", "heatmaps", "search"))
    options = ["--sheet", str(sheet), "--heatmaps", str(heatmaps), "--search", str(search)]
    result = CliRunner().invoke(command.main, ["--repository", str(repository), *options])
    assert result.exit_code == 0, result.output
    assert result.output.count("✓") == 16
    for text in command.TEXTS:
        file = "a-dog-above-a-door" if text == "a door above a dog" else text.replace(" ", "-")
        assert re.search(rf"│ {text} +│ {file}.jpg +│", result.output)
    for language, caption in {
        "de": "ein Bus links von einem Wecker auf grauem Hintergrund",
        "es": "un autobús a la izquierda de un despertador sobre un fondo gris",
        "fr": "un bus à gauche d'un réveil sur un fond gris",
        "ja": "灰色の背景で、目覚まし時計の左にバスがある",
        "zh": "灰色背景上，一辆公交车在一个闹钟的左边",
    }.items():
        assert re.search(rf"│ {language} +│ {caption} +│", result.output)
    assert re.search(r"^next: .*blipstream serve$", result.output, re.MULTILINE)
    assert all(len(line) <= 80 or str(tmp_path) in line for line in result.output.splitlines())
    for path, colors in ((sheet, 1000), (heatmaps, 100), (search, 1000)):
        with Image.open(path) as image:
            assert image.width > 1000
            assert len(image.getcolors(maxcolors=1 << 24) or []) > colors  # so it is no blank page


@pytest.mark.full
def test_a_wrong_caption_fails(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    Image.new("RGB", (64, 64), "red").save(samples / "red.png")
    (samples / "captions.json").write_text('{"red.png": "a red square"}')
    monkeypatch.setattr(command, "SAMPLES", samples)
    pictures = [each for name in ("sheet", "heatmaps", "search") for each in (f"--{name}", str(tmp_path / "a.png"))]
    result = CliRunner().invoke(command.main, ["--repository", str(repository), *pictures])
    assert result.exit_code == 1
    assert "Error: 2 of 2 captions are not the expected ones" in result.output


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    """The build refuses it, in one sentence."""
    (tmp_path / "file").touch()
    program = [sys.executable, "-m", "blipstream_demo", "--repository", str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert sentence(done.stderr).startswith(f"Error: {tmp_path} holds other files and no model repository: ")
