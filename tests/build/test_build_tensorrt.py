# SPDX-License-Identifier: Apache-2.0
"""The configuration `tensorrt`, built where there is no GPU: TensorRT-RTX compiles, ONNX Runtime runs the graph."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-untyped]
import pytest

from blipstream.config import CheckpointConfig
from blipstream.errors import ArtifactError
from blipstream.vision import Encoder
from blipstream.vision.tensorrt import MODULES, ONNX_NAME
from blipstream_build import build as module
from blipstream_build import renewal, tensorrt_compile
from blipstream_build.configs import PlanOptions
from blipstream_build.plan import Plan
from tests.conftest import CHECKPOINT

HERE = Plan.here


class OnnxEncoder(Encoder):
    """Runs the graph in place of the plan, which needs its GPU."""

    dtype = "f16"

    def __init__(self, folder: Path) -> None:
        self.config = CheckpointConfig.load(folder)
        self._session = onnxruntime.InferenceSession(folder / ONNX_NAME, providers=["CPUExecutionProvider"])

    def encode(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        image_embeds: npt.NDArray[np.float16] = self._session.run(None, {"pixels": pixels})[0]
        return image_embeds


@pytest.fixture
def build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[PlanOptions], str]:
    """Build into `tmp_path`, and return what was printed."""

    def here(revision: str, options: PlanOptions) -> Plan:
        return HERE(revision, options, "tensorrt_rtx", "8.9")

    def compile_plan(onnx: Path, plan: Plan, target: Path, timing_cache: Path) -> None:
        assert timing_cache == tmp_path / "encoder/1/tensorrt-timing.cache"
        tensorrt_compile.compile_plan(onnx, plan, target)  # RTX has no timing cache

    monkeypatch.setattr(Plan, "here", here)
    monkeypatch.setattr(renewal, "compile_plan", compile_plan)
    monkeypatch.setattr(renewal, "load_encoder", lambda _, folder, *__: OnnxEncoder(folder))

    def build(options: PlanOptions) -> str:
        module.build(str(CHECKPOINT), "auto", tmp_path, "tensorrt", options)
        return capsys.readouterr().out

    return build


def test_whole_life(build: Callable[[PlanOptions], str], tmp_path: Path) -> None:
    output = build(PlanOptions())
    artifact = tmp_path / "encoder/1/tensorrt"
    assert "compiling it with TensorRT-RTX" in output
    assert "8 of 8 equal" in output
    assert "installed preprocess, encoder, decoder" in output
    assert {path.name for path in artifact.iterdir()} == {"config.json", "encoder.onnx", "model.plan"}
    plan = json.loads((artifact / "config.json").read_text())["plan"]
    assert (plan["flavour"], plan["compute_capability"], plan["options"]["max_batch"]) == ("tensorrt_rtx", "8.9", 64)

    assert f"{tmp_path} is up to date with emoji-demo\n" in build(PlanOptions())

    output = build(PlanOptions(opt_batch=8))
    assert "compiling the encoder again: opt_batch was 32 and is to be 8\n" in output
    assert f"installed encoder in {tmp_path}" in output
    assert f"{tmp_path} is up to date with emoji-demo\n" in build(PlanOptions(opt_batch=8))

    shutil.rmtree(artifact)
    assert f"installed encoder in {tmp_path}" in build(PlanOptions(opt_batch=8))


def test_other_dtypes(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"computes in f16: build it with --dtype auto or f16, not f32"):
        module.build(str(CHECKPOINT), "f32", tmp_path / "repository", "tensorrt")
    assert not (tmp_path / "repository").exists()


def test_options_of_a_plan_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"options of a plan are for --config tensorrt: leave them out"):
        module.build(str(CHECKPOINT), "auto", tmp_path / "repository", "cpu", PlanOptions(refit=True))


def test_no_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, "tensorrt", "no_such_module")
    with pytest.raises(ArtifactError, match=r"tensorrt is not installed here"):
        module.build(str(CHECKPOINT), "auto", tmp_path / "repository", "tensorrt")
    assert not (tmp_path / "repository").exists()
