# SPDX-License-Identifier: Apache-2.0
"""TensorRT-RTX's compiler, which needs no GPU; what it lacks; and when a plan must be compiled again."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from blipstream.errors import ArtifactError
from blipstream.files import MODEL_REPOSITORY
from blipstream.vision import tensorrt as runner
from blipstream.vision.tensorrt import ONNX_NAME
from blipstream_build.checkpoint import Checkpoint
from blipstream_build.configs import PlanOptions
from blipstream_build.onnx_export import export_onnx
from blipstream_build.plan import Plan, reason_to_rebuild
from blipstream_build.tensorrt_compile import compile_plan
from tests.support.exported import Exported

RTX = Plan.here("1234", PlanOptions(), "tensorrt_rtx", "8.9")


@contextmanager
def engine_listings() -> Iterator[list[str]]:
    """The inspector's text about each finished engine, out of the log: asking the inspector itself needs a GPU."""
    found: list[str] = []

    class Listing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("Layers:"):
                found.append(record.getMessage())

    with listening(Listing()):
        yield found


@contextmanager
def listening(handler: logging.Handler) -> Iterator[None]:
    logger = logging.getLogger(runner.__name__)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.propagate = False  # there are thousands of lines
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
        logger.setLevel(level)


def test_compiles(exported: Exported, tmp_path: Path) -> None:
    """Attention becomes one kernel a layer, and types, shapes and profile are as asked for."""
    target = tmp_path / "model.plan"
    plan = replace(RTX, options=PlanOptions(min_batch=2, opt_batch=5, max_batch=9))
    with engine_listings() as listings:
        compile_plan(exported.file, plan, target)
    (listing,) = listings
    vision = exported.config.vision
    layers = [line for line in listing.splitlines() if line.startswith("Name: ")]
    fused = [line for line in layers if line.startswith("Name: _gemm_mha")]
    assert len(fused) == vision.num_layers
    assert not [line[:80] for line in layers if "softmax" in line and line not in fused]

    side, tokens = vision.image_size, 1 + (vision.image_size // vision.patch_size) ** 2
    ends = listing[listing.index("I/O Tensors:") :]
    assert f"Name: pixels, IOMode: Input, DataType: UInt8, Dimensions: [-1,{side},{side},3]" in ends
    assert f"image_embeds, IOMode: Output, DataType: Half, Dimensions: [-1,{tokens},{vision.hidden_size}]" in ends
    for name, batch in (("Min", 2), ("Opt", 5), ("Max", 9)):
        assert f"{name}Shape: [{batch},{side},{side},3]" in ends
    assert target.stat().st_size > 0.95 * exported.file.stat().st_size  # it contains the weights


def test_compiles_in_fp8(exported: Exported, tmp_path: Path) -> None:
    """Each product of a linear layer takes E4M3, and attention is one kernel still."""
    checkpoint, vision = Checkpoint.find(str(exported.checkpoint)), exported.config.vision
    linear = [f"layers.{n}.{part}" for n in range(vision.num_layers) for part in ("qkv", "projection", "fc1", "fc2")]
    export_onnx(checkpoint.load_model(), exported.config, tmp_path, dict.fromkeys(linear, 5.0))
    with engine_listings() as listings:
        compile_plan(tmp_path / ONNX_NAME, RTX, tmp_path / "model.plan")
    layers = [line for line in listings[0].splitlines() if line.startswith("Name: ")]
    products = [line for line in layers if "LayerType: gemm" in line]
    taken = [re.findall(r"Datatype: (\w+)", line)[0] for line in products]
    assert len(taken) >= 4 * vision.num_layers  # query, key and value may be one
    assert set(taken) == {"FP8"}
    assert len([line for line in layers if line.startswith("Name: _gemm_mha")]) == vision.num_layers


def test_largest_batch_suits_triton() -> None:
    text = (MODEL_REPOSITORY / "encoder" / "config.pbtxt").read_text()
    found = re.search(r"max_batch_size: (\d+)", text)
    assert found is not None
    assert int(found[1]) <= PlanOptions().max_batch


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny graph with the encoder's input and output."""
    return graph(
        tmp_path_factory.mktemp("small") / "small.onnx", [("Cast", {"to": 1}), ("Transpose", {"perm": [0, 3, 1, 2]})]
    )


def graph(file: Path, nodes: list[tuple[str, dict[str, Any]]]) -> Path:
    names = ["pixels", *(f"tensor{number}" for number in range(1, len(nodes))), "image_embeds"]
    made = [
        helper.make_node(kind, [names[number]], [names[number + 1]], name=f"node{number}", **attributes)
        for number, (kind, attributes) in enumerate(nodes)
    ]
    ends = [
        helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 4, 4, 3]),
        helper.make_tensor_value_info("image_embeds", TensorProto.FLOAT, ["batch", 3, 4, 4]),
    ]
    model = helper.make_model(
        helper.make_graph(made, "small", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    onnx.save_model(model, file)
    return file


def test_unreadable_graph(tmp_path: Path) -> None:
    """UINT8 must be cast before anything else: ONNX allows what TensorRT does not."""
    file = graph(tmp_path / "early.onnx", [("Transpose", {"perm": [0, 3, 1, 2]}), ("Cast", {"to": 1})])
    expected = (
        r"^TensorRT-RTX \S+ cannot read node node0 \(Transpose\) of early\.onnx: .*first input has type UInt8 but"
    )
    with pytest.raises(ArtifactError, match=expected):
        compile_plan(file, RTX, tmp_path / "model.plan")
    assert not (tmp_path / "model.plan").exists()


def test_too_little_workspace(exported: Exported, tmp_path: Path) -> None:
    plan = replace(RTX, options=PlanOptions(workspace_mib=1))
    with pytest.raises(
        ArtifactError, match=r"cannot compile the encoder for a GPU \(.* 8\.9\): .*(OutOfMemory|workspace)"
    ):
        compile_plan(exported.file, plan, tmp_path / "model.plan")
    assert not (tmp_path / "model.plan").exists()


def test_unknown_compute_capability(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"compiles for compute capability .*8\.9, 12\.0.*, not 9\.0"):
        compile_plan(small, replace(RTX, compute_capability="9.0"), tmp_path / "model.plan")


@pytest.mark.parametrize("feature", ["hardware_compatible", "version_compatible", "refit"])
def test_features_that_rtx_lacks(feature: str) -> None:
    with pytest.raises(ArtifactError, match=rf"^TensorRT-RTX \S+ cannot compile with {feature}: leave it out, or take"):
        replace(RTX, options=PlanOptions(**{feature: True}))


def test_timing_cache_that_rtx_lacks(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="keeps no timing cache: leave it out, or take TensorRT"):
        compile_plan(small, RTX, tmp_path / "model.plan", tmp_path / "timing.cache")


def test_shows_its_progress(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compile_plan(small, RTX, tmp_path / "model.plan")
    assert capsys.readouterr().err == ""  # it is not a terminal
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    compile_plan(small, RTX, tmp_path / "model.plan")
    assert "Building engine" in capsys.readouterr().err


INTERRUPTED = """
import logging, os, signal, sys
from pathlib import Path
from tests.build.test_tensorrt_compile import RTX, compile_plan, listening

class Interrupt(logging.Handler):
    def emit(self, record):
        if record.getMessage().startswith("Graph optimization time"):
            os.kill(os.getpid(), signal.SIGINT)

before = signal.getsignal(signal.SIGINT)
try:
    with listening(Interrupt()):
        compile_plan(Path(sys.argv[1]), RTX, Path(sys.argv[2]))
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is before
    print("interrupted")
"""


def test_can_be_interrupted(exported: Exported, tmp_path: Path) -> None:
    """In a process of its own: a signal is for a whole process, and this one has run many other tests."""
    plan = tmp_path / "model.plan"
    command = [sys.executable, "-c", INTERRUPTED, str(exported.file), str(plan)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "interrupted\n", done.stderr
    assert not plan.exists()


def test_batches_in_order() -> None:
    with pytest.raises(ArtifactError, match=r"1 <= min <= opt <= max, not 1, 128 and 64"):
        PlanOptions(opt_batch=128)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_at_hand() -> None:
    with pytest.raises(
        ArtifactError, match=r"^TensorRT-RTX needs an NVIDIA GPU to compile for, and there is none here$"
    ):
        Plan.here("1234", PlanOptions(), "tensorrt_rtx")


def test_no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(runner.MODULES, "tensorrt", "no_such_module")
    with pytest.raises(ArtifactError, match=r"^tensorrt is not installed here: run this in Triton's container"):
        Plan.here("1234", PlanOptions())


BASE = Plan("tensorrt", "10.13.3.9", "NVIDIA L40S", "8.9", "1234", PlanOptions())
ANYWHERE = replace(BASE, options=PlanOptions(hardware_compatible=True))
EVER = replace(BASE, options=PlanOptions(version_compatible=True))


def stored(plan: Plan) -> dict[str, Any]:
    """The plan as read from config.json."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(plan)))
    return values


@pytest.mark.parametrize(
    ("found", "plan"),
    [
        (BASE, BASE),
        (RTX, RTX),
        (ANYWHERE, replace(ANYWHERE, gpu="NVIDIA H100", compute_capability="9.0")),
        (ANYWHERE, replace(ANYWHERE, gpu="NVIDIA A30", compute_capability="8.0")),
        (EVER, replace(EVER, version="10.13.10")),
        (EVER, replace(EVER, version="11.0.0.114")),
    ],
)
def test_keeps_a_plan_that_will_do(found: Plan, plan: Plan) -> None:
    assert reason_to_rebuild(stored(found), plan) is None


@pytest.mark.parametrize(
    ("found", "plan", "reason"),
    [
        (BASE, replace(BASE, revision="5678"), "the checkpoint has changed"),
        (BASE, replace(BASE, options=PlanOptions(max_batch=32)), "max_batch was 64 and is to be 32"),
        (BASE, replace(BASE, options=PlanOptions(opt_batch=8)), "opt_batch was 32 and is to be 8"),
        (BASE, replace(BASE, options=PlanOptions(min_batch=2)), "min_batch was 1 and is to be 2"),
        (BASE, replace(BASE, options=PlanOptions(workspace_mib=512)), "workspace_mib was None and is to be 512"),
        (BASE, replace(BASE, options=PlanOptions(refit=True)), "refit was False and is to be True"),
        (BASE, ANYWHERE, "hardware_compatible was False and is to be True"),
        (EVER, BASE, "version_compatible was True and is to be False"),
        (
            BASE,
            replace(BASE, version="10.14.1.48"),
            "TensorRT 10.13.3.9 compiled the plan and this is TensorRT 10.14.1.48",
        ),
        (EVER, replace(EVER, version="10.9.0"), "TensorRT 10.13.3.9 compiled the plan and this is TensorRT 10.9.0"),
        (
            BASE,
            replace(BASE, flavour="tensorrt_rtx"),
            "TensorRT 10.13.3.9 compiled the plan and this is TensorRT-RTX 10.13.3.9",
        ),
        (
            RTX,
            replace(RTX, version="9.0"),  # its plans never outlive its version
            f"{RTX.compiler} compiled the plan and this is TensorRT-RTX 9.0",
        ),
        (
            BASE,
            replace(BASE, gpu="NVIDIA L4"),
            "the plan is for NVIDIA L40S (compute capability 8.9) and this is NVIDIA L4 (compute capability 8.9)",
        ),
        (
            ANYWHERE,
            replace(ANYWHERE, gpu="NVIDIA T4", compute_capability="7.5"),
            "the plan is for NVIDIA L40S (compute capability 8.9) and this is NVIDIA T4 (compute capability 7.5)",
        ),
        (
            RTX,
            replace(RTX, compute_capability="12.0"),
            "the plan is for a GPU (compute capability 8.9) and this is a GPU (compute capability 12.0)",
        ),
    ],
)
def test_says_why_a_plan_will_not_do(found: Plan, plan: Plan, reason: str) -> None:
    assert reason_to_rebuild(stored(found), plan) == reason


@pytest.mark.parametrize(
    "spoil",
    [
        lambda values: values.pop("gpu"),
        lambda values: values.pop("options"),
        lambda values: values.update(options=None),
        lambda values: values["options"].update(unheard_of=1),
        lambda values: values["options"].update(min_batch=0),
    ],
)
def test_plans_of_other_versions(spoil: Callable[[dict[str, Any]], object]) -> None:
    values = stored(BASE)
    spoil(values)
    assert reason_to_rebuild(values, BASE) == "another version of Blipstream compiled the plan"
    assert reason_to_rebuild(None, BASE) == "there is no plan yet"
