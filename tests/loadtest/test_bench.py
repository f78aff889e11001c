# SPDX-License-Identifier: Apache-2.0
"""`make bench` with the demo checkpoint and a few images: whether it works, not how fast anything is."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from blipstream_bench.command import main
from tests.conftest import CHECKPOINT

RATIO = "× "
ROW = {
    "system": "transformers",
    "device": "cpu",
    "dtype": "f32",
    "strategy": "greedy",
    "batch": 8,
    "images_per_s": 0.8,
    "p50_ms": 1500.0,
    "p99_ms": 1700.0,
    "peak_mb": 2500,
}
RESULT: dict[str, Any] = {
    "machine": {"processor": "Any", "cores": 2, "memory_gb": 8.0, "bf16": True, "amx": True, "os": "Linux"},
    "versions": {
        "checkpoint": "base, random weights",
        "python": "3.11.7",
        "torch": "2.8",
        "transformers": "5.0",
        "openvino": "2025.3",
        "tritonserver": "2.51.0",
        "blipstream": "0.1.0",
    },
    "rows": [
        ROW,
        ROW | {"dtype": "bf16", "images_per_s": 2.0},
        ROW | {"system": "engine", "dtype": "bf16", "images_per_s": 6.0},
    ],
}


def bench(*options: str | Path) -> Result:
    return CliRunner().invoke(main, [str(option) for option in options])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The output of a quick run, and the folder that it writes."""
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "blipstream_bench", "--quick", "--checkpoint", str(CHECKPOINT)]
    result = subprocess.run(
        [*command, "--cache", str(folder / "cache"), "--output", str(folder / "results")],
        capture_output=True,
        text=True,
        check=False,
        # one thread each, since on a busy machine more threads would wait for each other
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout, folder / "results"


@pytest.fixture(scope="module")
def result(run: tuple[str, Path]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run[1] / "bench.json").read_text())
    return content


@pytest.mark.full
def test_every_system_with_every_strategy(result: dict[str, Any]) -> None:
    assert list(result) == ["machine", "versions", "rows"]
    assert [(row["strategy"], row["system"]) for row in result["rows"]] == [
        (strategy, system)
        for strategy in ("greedy", "beam3", "beam5")
        for system in ("transformers", "engine", "blipstream-triton")
    ]


@pytest.mark.full
def test_rows(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        assert list(row) == list(ROW)
        assert (row["device"], row["dtype"], row["batch"]) == ("cpu", "f32", 2)
        assert row["images_per_s"] > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["peak_mb"] > 100


@pytest.mark.full
def test_machine_and_versions(result: dict[str, Any]) -> None:
    assert set(result["machine"]) == set(RESULT["machine"])
    assert set(result["versions"]) == set(RESULT["versions"])
    assert all(result["versions"].values())


@pytest.mark.full
def test_same_captions(run: tuple[str, Path]) -> None:
    assert "engine f32: 12 of 12 captions equal transformers' f32" in run[0]
    assert "blipstream-triton f32: 12 of 12 captions equal transformers' f32" in run[0]


@pytest.mark.full
def test_table_and_chart(run: tuple[str, Path]) -> None:
    output, folder = run
    assert output.count(RATIO) == 9
    assert f"{CHECKPOINT}, 640 x 480 JPEG in, 12 new tokens out" in " ".join(output.split())
    with Image.open(folder / "bench.png") as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 24) or []) > 100


def test_markdown(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(RESULT))
    shown = bench("--markdown", file)
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert lines[0].startswith(
        "| strategy | system | dtype | batch | images/s | transformers f32 | transformers bf16 |"
    )
    assert lines[4].startswith("| greedy | engine | bf16 | 8 | 6.00 | × 7.50 | × 3.00 | 1500 | 1700 | 2500 |")
    assert lines[-1].startswith("base, random weights, 640 x 480 JPEG in")
    assert {line.count("|") for line in lines[:5]} == {11}


@pytest.mark.parametrize("content", ["", "{}", '{"rows": [{}]}', "[]", "\x00"])
def test_no_result(content: str, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(content)
    assert_refused(bench("--markdown", file), f"{file} is not what this benchmark writes: run it again")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu() -> None:
    assert_refused(bench("--device", "cuda"), "--device cuda needs an NVIDIA GPU, and PyTorch finds none")


@pytest.mark.full
def test_no_checkpoint(tmp_path: Path) -> None:
    refused = bench(
        "--quick", "--checkpoint", tmp_path, "--cache", tmp_path / "cache", "--output", tmp_path / "results"
    )
    assert_refused(refused, f"{tmp_path} is no checkpoint: {tmp_path} has no config.json")
    assert_refused(bench("--checkpoint", tmp_path / "absent"), "does not exist")
    assert_refused(bench("--seconds", "-1"), "-1.0 is not in the range x>=0")


def assert_refused(result: Result, sentence: str) -> None:
    assert result.exit_code in (1, 2)
    assert sentence in result.output
    assert isinstance(result.exception, SystemExit)
