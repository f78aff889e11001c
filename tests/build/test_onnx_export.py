# SPDX-License-Identifier: Apache-2.0
"""The encoder's ONNX graph matches transformers, and computes each operation in the promised dtype."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from blipstream.images.pixels import load_pixels
from tests.conftest import SAMPLES
from tests.reference import Reference, relative_error
from tests.support.exported import Exported

TOLERANCE = 2e-3  # relative, of products in fp16
FP16 = {"Conv", "MatMul", "Gelu"}
F32 = {"LayerNormalization", "Mul", "Pad", "Softmax"}
MOVES = {"Reshape", "Transpose"}


@pytest.fixture(scope="module")
def graph(exported: Exported) -> onnx.GraphProto:
    """The graph, with the type of every tensor."""
    return onnx.shape_inference.infer_shapes(onnx.load_model(exported.file), strict_mode=True).graph


@pytest.fixture(scope="module")
def types(graph: onnx.GraphProto) -> dict[str, int]:
    """The element type of each tensor, constants included."""
    values = [*graph.input, *graph.value_info, *graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values} | {
        constant.name: constant.data_type for constant in graph.initializer
    }


def test_like_transformers(exported: Exported) -> None:
    """For batches of different sizes, from embeddings to captions."""
    session = onnxruntime.InferenceSession(exported.file, providers=["CPUExecutionProvider"])
    reference = Reference(exported.checkpoint)
    files = sorted(SAMPLES.glob("*.jpg"))
    for batch in (files[:1], files[1:4]):
        pixels = np.stack([load_pixels(file.read_bytes(), exported.config.vision.image_size) for file in batch])
        image_embeds = torch.from_numpy(session.run(None, {"pixels": pixels})[0])
        theirs = reference.embed([Image.open(file) for file in batch])
        assert image_embeds.dtype == torch.float16
        assert relative_error(image_embeds, theirs) < TOLERANCE
        ours = reference.generate(image_embeds, max_new_tokens=12)
        assert [one.text for one in ours] == [one.text for one in reference.generate(theirs, max_new_tokens=12)]


def test_contract(graph: onnx.GraphProto, exported: Exported) -> None:
    vision = exported.config.vision
    tokens = 1 + (vision.image_size // vision.patch_size) ** 2
    described = [
        (value.name, value.type.tensor_type.elem_type, [dim.dim_param or dim.dim_value for dim in dims])
        for value in (*graph.input, *graph.output)
        for dims in (value.type.tensor_type.shape.dim,)
    ]
    assert described == [
        ("pixels", TensorProto.UINT8, ["batch", vision.image_size, vision.image_size, 3]),
        ("image_embeds", TensorProto.FLOAT16, ["batch", tokens, vision.hidden_size]),
    ]
    # TensorRT lets only a Cast read UINT8
    assert [node.op_type for node in graph.node if "pixels" in node.input] == ["Cast"]


def test_dtypes(graph: onnx.GraphProto, types: dict[str, int], exported: Exported) -> None:
    products = {node.output[0] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        found = {types[name] for name in (*node.input, *node.output)} - {TensorProto.INT64}  # INT64 is for shapes
        if node.op_type in FP16 or (node.op_type == "Add" and node.input[0] in products):
            assert found == {TensorProto.FLOAT16}, node.name
        elif node.op_type in F32 or node.op_type == "Add":  # the residual sum
            assert found == {TensorProto.FLOAT}, node.name
        elif node.op_type in MOVES:
            assert len(found) == 1, node.name
        else:
            assert node.op_type == "Cast", node.name
    layers = exported.config.vision.num_layers
    count = Counter(node.op_type for node in graph.node)
    assert (count["MatMul"], count["LayerNormalization"], count["Softmax"]) == (8 * layers, 2 * layers + 1, layers)


def test_epsilon(graph: onnx.GraphProto, exported: Exported) -> None:
    """It is too small to show in the outputs."""
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    for node in norms:
        assert helper.get_node_attr_value(node, "epsilon") == pytest.approx(exported.config.vision.layer_norm_eps)


def test_weights_are_stored_in_fp16(graph: onnx.GraphProto) -> None:
    """All except the vectors of norms, and the constants that pixels and tokens are combined with."""
    stored = Counter[int]()
    for constant in graph.initializer:
        stored[constant.data_type] += int(np.prod(constant.dims))
    assert set(stored) == {TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT64}
    assert stored[TensorProto.FLOAT16] > 10 * stored[TensorProto.FLOAT]
