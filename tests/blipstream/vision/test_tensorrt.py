# SPDX-License-Identifier: Apache-2.0
"""A plan of TensorRT-RTX gives transformers' image_embeds on a GPU, and one clear error elsewhere."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from blipstream.errors import ArtifactError
from blipstream.vision.tensorrt import ONNX_NAME, PLAN_NAME, TensorRTEncoder
from blipstream_build.checkpoint import Checkpoint
from blipstream_build.configs import PlanOptions
from blipstream_build.onnx_export import export_onnx
from blipstream_build.plan import Plan
from blipstream_build.tensorrt_compile import compile_plan
from tests.conftest import CHECKPOINT
from tests.reference import Reference, relative_error
from tests.support.image_files import stack_pixels

MAX_BATCH = 4


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint's plan, for the GPU here; if there is none, for a common one."""
    folder = tmp_path_factory.mktemp("tensorrt")
    checkpoint = Checkpoint.find(str(CHECKPOINT))
    model = checkpoint.load_model()
    config = checkpoint.config(model, "auto")
    config.save(folder)
    export_onnx(model, config, folder)
    capability = None if torch.cuda.is_available() else "8.9"
    options = PlanOptions(opt_batch=MAX_BATCH, max_batch=MAX_BATCH)
    plan = Plan.here(checkpoint.revision, options, "tensorrt_rtx", capability)
    compile_plan(folder / ONNX_NAME, plan, folder / PLAN_NAME)
    return folder


@pytest.mark.requires_cuda
def test_equals_transformers(artifact: Path, reference: Reference, scene_images: list[Image.Image]) -> None:
    """Also in batches larger than the plan's."""
    encoder = TensorRTEncoder(artifact, "tensorrt_rtx")
    for start, stop in ((0, 1), (1, 5), (5, 15)):
        images = scene_images[start:stop]
        image_embeds = encoder.encode(stack_pixels(images, encoder.config.vision.image_size))
        assert image_embeds.dtype == torch.float16
        assert relative_error(image_embeds.cpu(), reference.embed(images)) < 5e-3


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
