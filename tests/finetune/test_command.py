# SPDX-License-Identifier: Apache-2.0
"""`blipstream finetune`: what is wrong with a command is one sentence."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from blipstream_finetune.command import main
from tests.conftest import CHECKPOINT, DEMO_RETRIEVAL_CHECKPOINT, SAMPLES
from tests.support.terminal import sentence


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "there is no file or folder nowhere"),
        (["--data", "{english}", "--images", "{english}"], "--images is for COCO's JSON"),
        (["--data", "{json}"], "give the folder that has them as --images"),
        (["--data", "{english}", "--validation-data", "nowhere"], "there is no file or folder nowhere"),
        (["--data", "{english}", "--new-tokens", "9", "--tokenizer", "{english}"], "--new-tokens or --tokenizer"),
        (["--data", "{english}", "--lowercase"], "--lowercase is for --new-tokens"),
        (["--data", "{english}", "--checkpoint", str(DEMO_RETRIEVAL_CHECKPOINT)], "is a retrieval checkpoint"),
        (["--data", "{english}", "--output", "{english}"], "has other files: choose a new folder"),
        (["--data", str(SAMPLES), "--strict"], "the data have faults, as listed above"),
        (["--data", str(SAMPLES)], "0 images are left to learn from"),
        (["--data", "{kana}"], "0 images are left to learn from"),
        (["--data", "{columns}"], "Expected a column image"),
    ],
)
def test_one_sentence(arguments: list[str], message: str, english: Path, kana: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text("{}")
    (tmp_path / "columns.csv").write_text("file,words\na.jpg,a dog\n")
    places = {
        "english": english,
        "kana": kana,
        "json": tmp_path / "captions.json",
        "columns": tmp_path / "columns.csv",
    }
    given = ["--checkpoint", str(CHECKPOINT), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(main, given + [each.format(**places) for each in arguments])
    assert message in sentence(result.output.rpartition("Error: ")[2])
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)


def test_what_is_left_out_is_told(kana: Path, tmp_path: Path) -> None:
    given = ["--checkpoint", str(CHECKPOINT), "--output", str(tmp_path / "out"), "--data", str(kana)]
    result = CliRunner().invoke(main, given)
    assert "captions with characters that the vocabulary lacks (see --new-tokens): 48, such as" in result.output
