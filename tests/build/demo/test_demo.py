# SPDX-License-Identifier: Apache-2.0
"""What `make demo` runs, and the picture that the README shows."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image, ImageChops

import demo
from blipstream.server.triton import TritonServer
from blipstream_build.repository import materialise
from blipstream_client import Caption
from tests.conftest import ROOT, SAMPLES

SHEET = ROOT / "build/demo/contact-sheet.png"
REMEDY = "make it anew: .venv/bin/python build/demo/demo.py --sheet build/demo/contact-sheet.png"


def test_the_readmes_picture_says_what_the_server_says(
    server: TritonServer, samples: dict[str, str], tmp_path: Path
) -> None:
    """In its text, which does not depend on fonts, and in its pixels."""
    assert "(build/demo/contact-sheet.png)" in (ROOT / "README.md").read_text()
    files = [SAMPLES / name for name in samples]
    answers = demo.ask(server.grpc_url, files)
    demo.save_sheet(demo.contact_sheet(files, answers), answers, tmp_path / "sheet.png")
    with Image.open(SHEET) as shown, Image.open(tmp_path / "sheet.png") as right:
        assert json.loads(shown.info[demo.CAPTIONS]) == samples, REMEDY
        assert json.loads(right.info[demo.CAPTIONS]) == samples
        assert ImageChops.difference(shown, right).getbbox() is None, REMEDY


def test_each_caption_is_beneath_its_image(samples: dict[str, str]) -> None:
    """A changed caption changes the sheet there and nowhere else."""
    files = [SAMPLES / name for name in samples]
    answers: demo.Answers = {name: Caption(text, 0.0, 1) for name, text in samples.items()}
    number = list(samples).index("an-elephant-to-the-left-of-a-watch.jpg")
    wrong = answers | {files[number].name: Caption("a bicycle to the left of a watch on a pink background", 0.0, 1)}
    sheets = (demo.contact_sheet(files, each) for each in (answers, wrong))
    changed = ImageChops.difference(*sheets).getbbox()
    assert changed is not None
    left, top, right, bottom = changed
    row, column = divmod(number, demo.COLUMNS)
    cell_left = demo.MARGIN + column * (demo.TILE + demo.MARGIN)
    cell_top = demo.MARGIN + row * (demo.TILE + demo.CAPTION_HEIGHT)
    assert cell_left <= left < right <= cell_left + demo.TILE
    assert cell_top + demo.TILE <= top < bottom <= cell_top + demo.TILE + demo.CAPTION_HEIGHT


def test_long_words_and_captions_are_wrapped() -> None:
    font = demo._font()
    assert demo._wrap("", font) == ""
    assert demo._wrap("x" * 200, font) == "x" * 200
    lines = demo._wrap(" ".join(["word"] * 40), font).splitlines()
    assert len(lines) > 2
    assert all(font.getlength(line) <= demo.TILE for line in lines)


@pytest.mark.full  # `make demo` does the same
def test_all_right(artifacts: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    result = CliRunner().invoke(demo.main, ["--repository", str(artifacts), "--sheet", str(sheet)])
    assert result.exit_code == 0, result.output
    assert result.output.count("✓") == 16
    with Image.open(sheet) as image:
        assert image.width > 1000
        assert len(image.getcolors(maxcolors=1 << 24) or []) > 1000  # so it is no blank page


@pytest.mark.full
def test_a_wrong_caption_fails(artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    Image.new("RGB", (64, 64), "red").save(samples / "red.png")
    (samples / "captions.json").write_text('{"red.png": "a red square"}')
    monkeypatch.setattr(demo, "SAMPLES", samples)
    result = CliRunner().invoke(demo.main, ["--repository", str(artifacts), "--sheet", str(tmp_path / "sheet.png")])
    assert result.exit_code == 1
    assert "error: 2 of 2 captions are not the expected ones" in result.output


@pytest.mark.full
def test_no_artifacts(tmp_path: Path) -> None:
    materialise(tmp_path)
    result = CliRunner().invoke(demo.main, ["--repository", str(tmp_path)])
    assert result.exit_code == 1
    assert "there is no artifact in" in result.output
    assert "Traceback" not in result.output
