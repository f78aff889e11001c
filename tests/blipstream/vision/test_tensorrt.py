# SPDX-License-Identifier: Apache-2.0
"""A plan of TensorRT or TensorRT-RTX gives transformers' image_embeds on a GPU, and one clear error elsewhere."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from PIL import Image

from blipstream.config import CheckpointConfig
from blipstream.errors import ArtifactError
from blipstream.vision.tensorrt import MODULES, ONNX_NAME, PLAN_NAME, Flavour, TensorRTEncoder
from blipstream.vision.vit import VisionTransformer
from blipstream_build.checkpoint import Checkpoint
from blipstream_build.configs import PlanOptions
from blipstream_build.onnx_export import encoder_graph, export_onnx
from blipstream_build.plan import Plan
from blipstream_build.tensorrt_compile import compile_plan
from tests.conftest import CHECKPOINT
from tests.reference import Reference, relative_error
from tests.support.image_files import stack_pixels

MAX_BATCH = 4


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint's encoder, ready to be compiled."""
    folder = tmp_path_factory.mktemp("exported")
    checkpoint = Checkpoint.find(str(CHECKPOINT))
    model = checkpoint.load_model()
    config = checkpoint.config(model, "auto")
    config.save(folder)
    export_onnx(model, config, folder)
    return folder


def compile_here(exported: Path, folder: Path, flavour: Flavour, capability: str | None = None) -> Path:
    """A plan for the GPU here, or for a compute capability."""
    shutil.copytree(exported, folder, dirs_exist_ok=True)
    options = PlanOptions(opt_batch=MAX_BATCH, max_batch=MAX_BATCH)
    plan = Plan.here(CheckpointConfig.load(folder).revision, options, flavour, capability)
    compile_plan(folder / ONNX_NAME, plan, folder / PLAN_NAME)
    return folder


@pytest.fixture(scope="module")
def artifact(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of TensorRT-RTX for a common GPU."""
    return compile_here(exported, tmp_path_factory.mktemp("tensorrt"), "tensorrt_rtx", "8.9")


@pytest.mark.requires_cuda
@pytest.mark.parametrize("flavour", MODULES)
def test_equals_transformers(
    exported: Path, tmp_path: Path, reference: Reference, scene_images: list[Image.Image], flavour: Flavour
) -> None:
    """Also in batches larger than the plan's."""
    pytest.importorskip(MODULES[flavour])
    if flavour == "tensorrt_rtx" and torch.cuda.get_device_capability() == (9, 0):
        pytest.skip("TensorRT-RTX knows no compute capability 9.0")
    encoder = TensorRTEncoder(compile_here(exported, tmp_path, flavour), flavour)
    for start, stop in ((0, 1), (1, 5), (5, 15)):
        images = scene_images[start:stop]
        image_embeds = encoder.encode(stack_pixels(images, encoder.config.vision.image_size))
        assert image_embeds.dtype == torch.float16
        assert relative_error(image_embeds.cpu(), reference.embed(images)) < 5e-3


def save_base_shaped(folder: Path, layers: int) -> None:
    """Base's encoder with few layers and random weights, ready to be compiled."""
    config = CheckpointConfig.load(folder)
    vision = replace(
        config.vision,
        image_size=384,
        patch_size=16,
        hidden_size=768,
        intermediate_size=3072,
        num_layers=layers,
        num_heads=12,
    )
    model = VisionTransformer(vision)
    for tensor in [*model.parameters(), *model.buffers()]:
        torch.nn.init.normal_(tensor, std=0.02)
    onnx.save_model(encoder_graph(model.state_dict(), vision), folder / ONNX_NAME)
    replace(config, vision=vision).save(folder)


def test_base_shaped_encoders_compile(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "base")
    save_base_shaped(tmp_path / "base", layers=1)
    compile_here(tmp_path / "base", tmp_path / "compiled", "tensorrt_rtx", "8.9")


@pytest.mark.requires_cuda
def test_attention_is_fused(exported: Path, tmp_path: Path) -> None:
    """Product, softmax and product are one kernel a layer. TensorRT's inspector calls such kernels "mha"."""
    trt = pytest.importorskip(MODULES["tensorrt"])
    layers = 2
    shutil.copytree(exported, tmp_path / "base")
    save_base_shaped(tmp_path / "base", layers)
    encoder = TensorRTEncoder(compile_here(tmp_path / "base", tmp_path / "compiled", "tensorrt"), "tensorrt")
    inspector = encoder._context.engine.create_engine_inspector()
    information = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    names = [f"{layer['Name']} {layer.get('TacticName', '')}" for layer in information["Layers"]]
    assert sum("mha" in name.lower() for name in names) >= layers, names


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(artifact: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"model\.plan does not run on this GPU with tensorrt_rtx .*: build it with"
    ):
        TensorRTEncoder(artifact, "tensorrt_rtx")


def test_missing_plan(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no artifact in"):
        TensorRTEncoder(tmp_path, "tensorrt_rtx")
    (tmp_path / "config.json").write_bytes((artifact / "config.json").read_bytes())
    with pytest.raises(ArtifactError, match=r"model\.plan cannot be loaded: build it with"):
        TensorRTEncoder(tmp_path, "tensorrt_rtx")
