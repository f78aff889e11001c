# SPDX-License-Identifier: Apache-2.0
"""`make demo`, less the setting up."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import demo
from artifacts import materialise


@pytest.mark.full  # as `make demo` is
def test_all_right(artifacts: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    result = CliRunner().invoke(demo.main, ["--repository", str(artifacts), "--sheet", str(sheet)])
    assert result.exit_code == 0, result.output
    assert result.output.count("✓") == 16
    with Image.open(sheet) as image:
        assert image.width > 1000
        assert len(image.getcolors(maxcolors=1 << 24) or []) > 1000  # pictures, not a blank page


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
