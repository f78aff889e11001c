# SPDX-License-Identifier: Apache-2.0
"""The model configs, the client's options and the documents' table are what DecodingOptions says."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import generated_files
from blipstream.options import OPTION_NAMES
from client_options import client_options
from generated_files import CLIENT_MARKS, PAGE_MARKS, main, stale_files
from model_configs import model_configs
from options_table import options_table
from tests.conftest import ROOT

REPOSITORY = ROOT / "model_repository"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the generated files, in which a test may change them."""
    for name in model_configs():
        target = tmp_path / "model_repository" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, target)
    monkeypatch.setattr(generated_files, "ROOT", tmp_path)
    return tmp_path


def test_they_are_up_to_date() -> None:
    assert not stale_files(ROOT)


def test_the_clients_options_are_among_them() -> None:
    assert ROOT / "client/blipstream_client/_options.py" in generated_files.generated_files(ROOT)


def test_every_checked_in_config_is_generated() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "*.pbtxt"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    assert sorted(listed) == sorted(model_configs())


@pytest.mark.parametrize("name", model_configs())
def test_generated_and_checked_in_configs_say_the_same_to_triton(name: str) -> None:
    generated, checked_in = (
        text_format.Parse(text, model_config_pb2.ModelConfig())
        for text in (model_configs()[name], (REPOSITORY / name).read_text())
    )
    assert generated == checked_in


def test_a_config_that_drifts_is_reported_and_mended(copy: Path) -> None:
    drifting = copy / "model_repository/decoder/config.pbtxt"
    drifting.write_text(drifting.read_text().replace("max_tokens", "max_token"))
    checked = CliRunner().invoke(main, ["--check"])
    assert checked.exit_code == 1
    assert checked.output == "model_repository/decoder/config.pbtxt is stale: run `make configs`\n"
    assert CliRunner().invoke(main).output == "wrote model_repository/decoder/config.pbtxt\n"
    assert CliRunner().invoke(main, ["--check"]).exit_code == 0
    assert drifting.read_text() == model_configs()["decoder/config.pbtxt"]


@pytest.mark.parametrize(
    ("name", "marks", "text"),
    [
        ("docs/options.md", PAGE_MARKS, options_table()),
        ("client/blipstream_client/_options.py", CLIENT_MARKS, client_options()),
    ],
)
def test_a_file_is_generated_between_its_marks(copy: Path, name: str, marks: tuple[str, str], text: str) -> None:
    path = copy / name
    path.parent.mkdir(parents=True)
    path.write_text(f"before\n{marks[0]}old\n{marks[1]}after\n")
    assert CliRunner().invoke(main).output == f"wrote {name}\n"
    assert path.read_text() == f"before\n{marks[0]}{text}{marks[1]}after\n"
    assert not stale_files(copy)


def test_the_table_has_a_row_for_each_option() -> None:
    rows = options_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(OPTION_NAMES)
    assert "| `max_tokens` | INT32 [1] | 30 | at least 1 | Tokens to generate at most." in options_table()
    assert "| `min_tokens` | INT32 [1] | 0 | between 0 and `max_tokens` |" in options_table()
    assert "| `top_p` | FP32 [1] | 1 | above 0 and at most 1; only with `do_sample` |" in options_table()


def test_generating_needs_no_torch() -> None:
    code = "import sys, generated_files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT / "build", check=False).returncode == 0
