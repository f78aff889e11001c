# SPDX-License-Identifier: Apache-2.0
"""The vision encoder as an ONNX graph. TensorRT computes each operation in the type that the graph gives it.

fp16: the weights, all matrix products, the convolution and GELU. f32: the normalisation of pixels, LayerNorm, softmax,
and the residual sum that runs through all layers. In fp16 that sum would be rounded twice a layer, in steps as wide as
its largest channels need (measured: 1.4 to 4 times the error).

fp8, if the largest inputs of the linear layers are given: the inputs and the weights of their products are rounded to
E4M3, each tensor with one scale. TensorRT multiplies in fp8 what is quantised and dequantised right before a product.
ONNX Runtime runs such a graph with ORT_ENABLE_BASIC. With all its optimisations it moves the quantising past a
Transpose, and then refuses what it has made.

The graph is written out, not traced, because its dtypes matter and TensorRT is particular about the shape of attention:
it fuses product, softmax and product into one kernel only if the queries are scaled before the first product. Here
their weights are. Casts around the softmax do no harm.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from blipstream.config import CheckpointConfig, VisionConfig
from blipstream.vision.tensorrt import INPUT, ONNX_NAME, OUTPUT
from blipstream_build.convert import Weights, vision_weights

OPSET, IR_VERSION = 20, 9  # the first opset with Gelu; TensorRT reads it since 10.0

E4M3_MAX = 448.0
SMALLEST_SCALE = float(np.finfo(np.float16).tiny)  # a smaller one loses digits, and may be 0

F16, F32, UINT8 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.UINT8


def export_onnx(
    model: BlipForConditionalGeneration | BlipForImageTextRetrieval,
    config: CheckpointConfig,
    folder: Path,
    largest_inputs: Mapping[str, float] | None = None,
) -> None:
    """The encoder as ONNX: UINT8 pixels [B, H, W, 3] in, FP16 image_embeds [B, N, E] out."""
    weights = vision_weights(model.state_dict(), config.vision)
    onnx.save_model(encoder_graph(weights, config.vision, largest_inputs), folder / ONNX_NAME)


def encoder_graph(
    weights: Weights, config: VisionConfig, largest_inputs: Mapping[str, float] | None = None
) -> onnx.ModelProto:
    """The graph that computes what VisionTransformer does, from its weights.

    With the largest absolute inputs of its linear layers, by name, their products are in fp8.
    """
    graph = _Graph(weights, largest_inputs)
    x = _embed(graph, config)
    for number in range(config.num_layers):
        x = _layer(graph, f"layers.{number}", x, config)
    graph.layer_norm("norm", x, config.layer_norm_eps, output=OUTPUT)

    side, tokens = config.image_size, 1 + (config.image_size // config.patch_size) ** 2
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "encoder",
            [helper.make_tensor_value_info(INPUT, UINT8, ["batch", side, side, 3])],
            [helper.make_tensor_value_info(OUTPUT, F16, ["batch", tokens, config.hidden_size])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="blipstream",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """A graph that grows. A tensor has the name of the node that computes it."""

    def __init__(self, weights: Weights, largest_inputs: Mapping[str, float] | None) -> None:
        self.weights = weights
        self.largest_inputs = largest_inputs
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def op(self, name: str, kind: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: object, dtype: type[np.generic]) -> str:
        self.initializers.append(numpy_helper.from_array(np.array(value, dtype, order="C"), name))
        return name

    def weight(self, name: str, dtype: type[np.generic]) -> str:
        return self.constant(name, self.weights[name], dtype)

    def reshape(self, name: str, x: str, shape: list[int]) -> str:
        """In `shape`, 0 keeps a dimension and -1 takes what is left."""
        return self.op(name, "Reshape", x, self.constant(f"{name}.shape", shape, np.int64))

    def layer_norm(self, name: str, x: str, epsilon: float, output: str | None = None) -> str:
        """F32 -> FP16."""
        affine = (self.weight(f"{name}.{part}", np.float32) for part in ("weight", "bias"))
        x = self.op(name, "LayerNormalization", x, *affine, axis=-1, epsilon=epsilon)
        return self.op(output or f"{name}.f16", "Cast", x, to=F16)

    def linear(self, name: str, x: str) -> str:
        """FP16 -> FP16."""
        x = self.layer_input(name, x)
        return self.affine(name, x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def layer_input(self, name: str, x: str) -> str:
        """FP16 -> FP16. What a linear layer takes in, rounded to E4M3 in an encoder in fp8."""
        return self.rounded(f"{name}.input", x, self.largest_inputs[name]) if self.largest_inputs else x

    def affine(self, name: str, x: str, weight: Tensor, bias: Tensor) -> str:
        """FP16 -> FP16."""
        factor = self.constant(f"{name}.weight", weight.T, np.float16)
        if self.largest_inputs:
            factor = self.rounded(factor, factor, float(weight.abs().max()))
        x = self.op(f"{name}.product", "MatMul", x, factor)
        return self.op(name, "Add", x, self.constant(f"{name}.bias", bias, np.float16))

    def rounded(self, name: str, x: str, largest: float) -> str:
        """FP16 -> FP16, by way of E4M3, whose largest number stands for `largest`."""
        scale = self.constant(f"{name}.scale", max(largest / E4M3_MAX, SMALLEST_SCALE), np.float16)
        zero = f"{name}.zero"  # it names the type to round to
        self.initializers.append(helper.make_tensor(zero, TensorProto.FLOAT8E4M3FN, [], [0.0]))
        x = self.op(f"{name}.fp8", "QuantizeLinear", x, scale, zero)
        return self.op(f"{name}.rounded", "DequantizeLinear", x, scale, zero)

    def add(self, name: str, x: str, change: str) -> str:
        """F32 + FP16 -> F32."""
        return self.op(name, "Add", x, self.op(f"{name}.change", "Cast", change, to=F32))


def _embed(graph: _Graph, config: VisionConfig) -> str:
    """UINT8 [B, H, W, 3] -> F32 [B, N, E], the class token first."""
    width, patch = config.hidden_size, [config.patch_size] * 2
    # Cast before transposing: TensorRT lets no other operation touch UINT8
    x = graph.op("pixels.f32", "Cast", INPUT, to=F32)
    x = graph.op("pixels.channels_first", "Transpose", x, perm=[0, 3, 1, 2])
    x = graph.op("rescale", "Mul", x, graph.weight("scale", np.float32))
    x = graph.op("normalise", "Add", x, graph.weight("shift", np.float32))
    x = graph.op("normalise.f16", "Cast", x, to=F16)
    convolution = (graph.weight(f"patch_embedding.{part}", np.float16) for part in ("weight", "bias"))
    x = graph.op("patch_embedding", "Conv", x, *convolution, kernel_shape=patch, strides=patch)
    x = graph.reshape("patches", x, [0, width, -1])
    x = graph.op("tokens", "Transpose", x, perm=[0, 2, 1])
    x = graph.op("tokens.f32", "Cast", x, to=F32)
    # Zeros make room for the class token, and the embedding of its position contains it: so no shape is computed
    x = graph.op("tokens.padded", "Pad", x, graph.constant("tokens.pads", [0, 1, 0, 0, 0, 0], np.int64))
    embedding = graph.weights["position_embedding"].clone()
    embedding[:, :1] += graph.weights["class_embedding"]
    return graph.op("embedded", "Add", x, graph.constant("embedding", embedding, np.float32))


def _layer(graph: _Graph, name: str, x: str, config: VisionConfig) -> str:
    """F32 [B, N, E] -> F32 [B, N, E]."""
    normed = graph.layer_norm(f"{name}.attention_norm", x, config.layer_norm_eps)
    x = graph.add(f"{name}.attended", x, _attention(graph, name, normed, config))
    normed = graph.layer_norm(f"{name}.mlp_norm", x, config.layer_norm_eps)
    hidden = graph.op(f"{name}.gelu", "Gelu", graph.linear(f"{name}.fc1", normed))
    return graph.add(f"{name}.output", x, graph.linear(f"{name}.fc2", hidden))


def _attention(graph: _Graph, name: str, x: str, config: VisionConfig) -> str:
    """FP16 [B, N, E] -> FP16 [B, N, E]."""
    heads, size = config.num_heads, config.hidden_size // config.num_heads
    weights, biases = (graph.weights[f"{name}.qkv.{part}"].chunk(3) for part in ("weight", "bias"))
    scale = size**-0.5
    x = graph.layer_input(f"{name}.qkv", x)

    def split(part: str, weight: Tensor, bias: Tensor, perm: list[int]) -> str:
        y = graph.reshape(f"{part}.heads", graph.affine(part, x, weight, bias), [0, 0, heads, size])
        return graph.op(f"{part}.transposed", "Transpose", y, perm=perm)

    query = split(f"{name}.query", weights[0] * scale, biases[0] * scale, [0, 2, 1, 3])  # [B, heads, N, size]
    key = split(f"{name}.key", weights[1], biases[1], [0, 2, 3, 1])  # [B, heads, size, N]
    value = split(f"{name}.value", weights[2], biases[2], [0, 2, 1, 3])
    scores = graph.op(f"{name}.scores", "MatMul", query, key)
    scores = graph.op(f"{name}.scores.f32", "Cast", scores, to=F32)
    shares = graph.op(f"{name}.softmax", "Softmax", scores, axis=-1)
    shares = graph.op(f"{name}.softmax.f16", "Cast", shares, to=F16)
    mix = graph.op(f"{name}.mix", "MatMul", shares, value)
    mix = graph.op(f"{name}.mix.transposed", "Transpose", mix, perm=[0, 2, 1, 3])
    return graph.linear(f"{name}.projection", graph.reshape(f"{name}.mix.heads", mix, [0, 0, -1]))
