# SPDX-License-Identifier: Apache-2.0
"""The configuration `tensorrt`, built where there is no GPU: TensorRT-RTX compiles, ONNX Runtime runs the graph."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from blipstream.config import CheckpointConfig
from blipstream.errors import ArtifactError
from blipstream.vision.tensorrt import MODULES
from blipstream_build import build as module
from blipstream_build import quantisation, renewal, tensorrt_compile
from blipstream_build.command import main
from blipstream_build.configs import PlanOptions
from blipstream_build.plan import Plan
from tests.conftest import CHECKPOINT, DEMO_RETRIEVAL_CHECKPOINT
from tests.support.onnx_encoder import OnnxEncoder
from tests.support.terminal import sentence

FP8 = ("--config", "tensorrt", "--encoder-dtype", "fp8")
HERE = Plan.here
H200 = Plan("tensorrt", "10.13.3.9", "NVIDIA H200", "9.0", "1234", PlanOptions())


@pytest.fixture
def rtx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds into `tmp_path` do without a GPU."""

    def here(revision: str, options: PlanOptions) -> Plan:
        return HERE(revision, options, "tensorrt_rtx", "8.9")

    def compile_plan(onnx: Path, plan: Plan, target: Path, timing_cache: Path) -> None:
        assert timing_cache == tmp_path / "encoder/1/tensorrt-timing.cache"
        tensorrt_compile.compile_plan(onnx, plan, target)  # RTX has no timing cache

    monkeypatch.setattr(Plan, "here", here)
    monkeypatch.setattr(renewal, "compile_plan", compile_plan)
    monkeypatch.setattr(renewal, "load_encoder", lambda _, folder, *__: OnnxEncoder(folder))


@pytest.fixture
def build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[PlanOptions], str]:
    """Build into `tmp_path`, and return what was printed."""

    def build(options: PlanOptions) -> str:
        module.build(str(CHECKPOINT), "auto", tmp_path, "tensorrt", options)
        return capsys.readouterr().out

    return build


@pytest.mark.usefixtures("rtx")
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


@pytest.fixture(scope="module")
def photos(scene_images: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(scene_images[:16]):
        image.save(folder / f"{number}.png")
    return folder


def run(repository: Path, *options: str | Path, checkpoint: Path = CHECKPOINT) -> Result:
    return CliRunner().invoke(main, [str(checkpoint), "--repository", str(repository), *map(str, options)])


def encoder_of(repository: Path) -> str:
    """The dtype of its products; "" if it is that of everything else."""
    return CheckpointConfig.load(repository / "encoder/1/tensorrt").vision.quantised


@pytest.mark.usefixtures("rtx")
def test_fp8(photos: Path, tmp_path: Path) -> None:
    """It is built for these images, and stays so until the images or the options change."""
    photos = shutil.copytree(photos, tmp_path.parent / f"{tmp_path.name} photos")
    options = (*FP8, "--calibration-images", photos)
    first = run(tmp_path, *options)
    assert first.exit_code == 0, first.output
    assert "calibrating on 8 of them" in first.output
    assert "encoder    fp8 " in first.output
    assert "decoder    f32 " in first.output  # as there is no GPU
    assert "fp8        8 of 8 captions of your other images equal f32's, relative error 2." in first.output
    assert f"serve --repository {tmp_path} --config tensorrt" in first.output
    assert encoder_of(tmp_path) == "fp8"
    assert f"{tmp_path} is up to date" in run(tmp_path, *options).output

    Image.new("RGB", (64, 64), "red").save(photos / "3.png")
    assert f"installed encoder in {tmp_path}" in run(tmp_path, *options).output
    assert f"{tmp_path} is up to date" in run(tmp_path, *options).output

    assert f"installed encoder in {tmp_path}" in run(tmp_path, "--config", "tensorrt").output
    assert encoder_of(tmp_path) == ""


@pytest.mark.usefixtures("rtx")
def test_fp8_that_changes_captions(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with scales that are too small by 100."""

    def too_small(*given: Any) -> dict[str, float]:
        return {name: largest / 100 for name, largest in quantisation.largest_inputs(*given).items()}

    monkeypatch.setattr(renewal, "largest_inputs", too_small)
    result = run(tmp_path, *FP8, "--calibration-images", photos)
    assert result.exit_code == 1
    assert re.fullmatch(
        r"Error: only [0-7] of 8 captions \(\d+\.\d%\) are f32's, where 98% must be "
        r"\(calibrate on more images, or choose another dtype\): nothing was installed",
        sentence(result.stderr),
    )
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (FP8, "fp8 is calibrated on images like those that you caption: give --calibration-images FOLDER"),
        (
            (*FP8, "--config", "cuda", "--calibration-images", "photos"),
            "--encoder-dtype fp8 is for --config tensorrt, not cuda: leave it out",
        ),
        (
            ("--config", "tensorrt", "--calibration-images", "photos"),
            "--calibration-images is for --encoder-dtype fp8: leave it out, or give both",
        ),
        (
            (*FP8, "--calibration-images", "photos", "--hardware-compatible"),
            "a hardware-compatible plan must run on Ampere, which has no fp8: leave out --hardware-compatible or "
            "--encoder-dtype",
        ),
        ((*FP8, "--calibration-images", "no-folder"), "no-folder cannot be read: No such file or directory"),
        (
            (*FP8, "--calibration-images", "."),
            ". must have at least 16 different images to calibrate and check on, and has 0: add some like those that "
            "you caption",
        ),
    ],
)
def test_fp8_that_cannot_be(
    options: tuple[str, ...], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Plan, "here", lambda _, given: replace(H200, options=given))
    result = run(tmp_path / "repository", *options)
    assert (result.exit_code, sentence(result.stderr)) == (1, f"Error: {fault}")
    assert not list(tmp_path.iterdir())


def test_fp8_on_a_gpu_without_it(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a100 = Plan("tensorrt", "10.13.3.9", "NVIDIA A100", "8.0", "1234", PlanOptions())
    monkeypatch.setattr(Plan, "here", lambda *_: a100)
    result = run(tmp_path / "repository", *FP8, "--calibration-images", photos)
    assert sentence(result.stderr) == (
        "Error: fp8 needs a GPU of compute capability 8.9 or more, and this is NVIDIA A100 (compute capability 8.0): "
        "leave out --encoder-dtype"
    )
    assert not list(tmp_path.iterdir())


def test_fp8_of_a_retrieval_checkpoint(photos: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "repository", *FP8, "--calibration-images", photos, checkpoint=DEMO_RETRIEVAL_CHECKPOINT)
    assert sentence(result.stderr) == (
        f"Error: fp8 is checked by captions, and {DEMO_RETRIEVAL_CHECKPOINT.name} is a retrieval checkpoint, which "
        "makes none: leave out --encoder-dtype"
    )
    assert not list(tmp_path.iterdir())


def test_fp8_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    """It has a folder of its own, so that `serve CHECKPOINT` does not take it, or replace it."""
    found: list[Path] = []

    def stop(repository: Path) -> None:
        found.append(repository)
        raise ArtifactError("enough")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Plan, "here", lambda *_: H200)
    monkeypatch.setattr(module, "exclusive", stop)
    for more in ((), ("--encoder-dtype", "fp8", "--calibration-images", str(photos))):
        CliRunner().invoke(main, [str(CHECKPOINT), "--config", "tensorrt", *more])
    assert [folder.name.rpartition("-")[2] for folder in found] == ["auto", "fp8"]


@pytest.mark.requires_cuda
def test_fp8_on_a_gpu(photos: Path, tmp_path: Path) -> None:
    """The plan itself gives the captions of f32."""
    pytest.importorskip(MODULES["tensorrt"])
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs compute capability 8.9")
    result = run(tmp_path, *FP8, "--calibration-images", photos)
    assert result.exit_code == 0, result.output
    assert "fp8        8 of 8 captions of your other images equal f32's, relative error " in result.output
    assert "decoder    f16 " in result.output
