# SPDX-License-Identifier: Apache-2.0
"""An encoder in fp8: what it is calibrated by, how near it comes to f32, and that a bad one is found out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from PIL import Image
from torch import Tensor, nn

from blipstream.config import CheckpointConfig
from blipstream.decoding import Engine, load_engine
from blipstream.images.shapes import Pixels
from blipstream.vision.tensorrt import ONNX_NAME
from blipstream.vision.vit import VisionTransformer
from blipstream_build.checkpoint import Checkpoint
from blipstream_build.export import vision_encoder
from blipstream_build.onnx_export import export_onnx
from blipstream_build.quantisation import Agreement, agreement, largest_inputs
from tests.conftest import CHECKPOINT
from tests.support.image_files import stack_pixels
from tests.support.onnx_encoder import OnnxEncoder

CALIBRATING, UNSEEN = 16, 50  # scenes


@dataclass(frozen=True)
class Demo:
    """The demo's encoder in f32, and what calibrates it and checks it."""

    model: nn.Module
    config: CheckpointConfig
    reference: VisionTransformer
    largest: dict[str, float]
    unseen: Pixels
    engine: Engine

    def export(self, folder: Path, largest: Mapping[str, float]) -> OnnxEncoder:
        export_onnx(self.model, self.config, folder, largest)
        replace(self.config, vision=replace(self.config.vision, quantised="fp8")).save(folder)
        return OnnxEncoder(folder)


@pytest.fixture(scope="module")
def demo(scene_images: list[Image.Image], f32_artifacts: Path) -> Demo:
    checkpoint = Checkpoint.find(str(CHECKPOINT))
    model = checkpoint.load_model()
    config = checkpoint.config(model, "auto")
    pixels = stack_pixels(scene_images[: CALIBRATING + UNSEEN], config.vision.image_size)
    reference = vision_encoder(model, config.vision)
    engine = load_engine(f32_artifacts / "decoder/1/artifact")
    largest = largest_inputs(reference, pixels[:CALIBRATING])
    return Demo(model, config, reference, largest, pixels[CALIBRATING:], engine)


def test_largest_inputs() -> None:
    """Of all images, whatever the batch; and nothing stays behind in the layers."""

    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 1, bias=False), nn.Linear(1, 1)

        def forward(self, pixels: Tensor) -> Tensor:
            second: Tensor = self.second(self.first(pixels.float()))
            return second

    toy = Toy()
    nn.init.constant_(toy.first.weight, -2)
    pixels = np.zeros((40, 1, 1, 3), np.uint8)
    pixels[3, ..., 0], pixels[20], pixels[39, ..., 1] = 9, 4, 7
    assert largest_inputs(toy, pixels) == {"first": 9, "second": 24}
    toy(torch.zeros(1, 1, 1, 3) + 1000)
    assert largest_inputs(toy, pixels) == {"first": 9, "second": 24}


def test_like_f32(demo: Demo, tmp_path: Path) -> None:
    """An error of 2.6 %, and the same captions."""
    found = agreement(demo.export(tmp_path, demo.largest), demo.reference, demo.engine, demo.unseen)
    assert (found.images, found.equal, found.fault) == (UNSEEN, UNSEEN, "")
    assert 0.01 < found.relative < 0.04


def test_wrong_scales_are_found_out(demo: Demo, tmp_path: Path) -> None:
    """With scales that are too small by 100, what is larger is cut off."""
    wrong = {name: largest / 100 for name, largest in demo.largest.items()}
    found = agreement(demo.export(tmp_path, wrong), demo.reference, demo.engine, demo.unseen)
    assert found.equal < UNSEEN / 2
    assert found.fault == (
        f"only {found.equal} of {UNSEEN} captions ({found.equal / UNSEEN:.1%}) are f32's, where 98% must be "
        "(calibrate on more images, or choose another dtype)"
    )


@pytest.mark.parametrize(("images", "equal", "passes"), [(8, 8, True), (8, 7, False), (50, 49, True), (50, 48, False)])
def test_how_many_captions_must_stay(images: int, equal: int, passes: bool) -> None:
    assert (Agreement(images, equal, 0.0).fault == "") == passes


def test_graph(demo: Demo, tmp_path: Path) -> None:
    """Both factors of each linear layer's product are rounded to E4M3, and those of attention's are not."""
    demo.export(tmp_path, demo.largest)
    graph = onnx.load_model(tmp_path / ONNX_NAME).graph
    made_by = {node.output[0]: node for node in graph.node}
    constants = {each.name: each for each in graph.initializer}

    def is_rounded(name: str) -> bool:
        node = made_by.get(name)
        return bool(node and node.op_type == "DequantizeLinear" and made_by[node.input[0]].op_type == "QuantizeLinear")

    products = [node for node in graph.node if node.op_type == "MatMul"]
    linear = [node for node in products if all(is_rounded(name) for name in node.input)]
    layers = demo.config.vision.num_layers
    assert len(linear) == 6 * layers
    assert not [node.name for node in products if node not in linear and any(map(is_rounded, node.input))]

    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert constants[node.input[2]].data_type == TensorProto.FLOAT8E4M3FN
            assert constants[node.input[1]].data_type == TensorProto.FLOAT16
    names = [name for name, module in demo.reference.named_modules() if isinstance(module, nn.Linear)]
    assert len(names) == 4 * layers
    for name in names:
        scale = numpy_helper.to_array(constants[f"{name}.input.scale"])
        assert scale == pytest.approx(demo.largest[name] / 448, rel=1e-3)
    weight = demo.reference.get_parameter("layers.0.fc1.weight")
    scale = numpy_helper.to_array(constants["layers.0.fc1.weight.scale"])
    assert scale == pytest.approx(float(weight.abs().max()) / 448, rel=1e-3)


def test_inputs_that_were_all_zero(demo: Demo, tmp_path: Path) -> None:
    """A scale of zero would make them NaN."""
    encoder = demo.export(tmp_path, demo.largest | {"layers.0.fc2": 0.0})
    assert np.isfinite(encoder.encode(demo.unseen[:1])).all()
