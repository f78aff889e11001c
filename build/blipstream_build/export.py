# SPDX-License-Identifier: Apache-2.0
"""Write a loaded checkpoint as the files of each artifact, into a folder that the caller installs."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertTokenizer, BlipForConditionalGeneration, BlipForImageTextRetrieval

from blipstream.config import CheckpointConfig, VisionConfig
from blipstream.decoding import WEIGHTS_NAME as DECODER_NAME
from blipstream.matching.heads import WEIGHTS_NAME as HEADS_NAME
from blipstream.text.encoder import TextTransformer
from blipstream.text.tokenizer import TOKENIZER_NAME
from blipstream.text.torch import WEIGHTS_NAME as TEXT_ENCODER_NAME
from blipstream.vision.torch import WEIGHTS_NAME as ENCODER_NAME
from blipstream.vision.vit import VisionTransformer
from blipstream_build.convert import Weights, decoder_weights, head_weights, text_encoder_weights, vision_weights

if TYPE_CHECKING:
    from blipstream_build.checkpoint import Blip


def vision_encoder(model: "Blip", config: VisionConfig) -> VisionTransformer:
    """The engine's encoder in f32, with the checkpoint's weights."""
    with torch.device("meta"):
        encoder = VisionTransformer(config)
    encoder.load_state_dict(vision_weights(model.state_dict(), config), assign=True)
    return encoder.eval().requires_grad_(False)


def export_openvino(model: "Blip", config: CheckpointConfig, folder: Path) -> None:
    """The encoder as OpenVINO IR: UINT8 pixels [B, H, W, 3] in, f32 image_embeds [B, N, E] out."""
    from blipstream.vision.openvino import MODEL_NAME  # a GPU's machine need not have OpenVINO

    side = config.vision.image_size
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    shapes = {"pixels": {0: torch.export.Dim("batch")}}
    _save_openvino(vision_encoder(model, config.vision), (example,), shapes, folder / MODEL_NAME)


def export_torch(model: "Blip", config: CheckpointConfig, folder: Path) -> None:
    """The encoder's weights in f32."""
    _save(vision_weights(model.state_dict(), config.vision), folder / ENCODER_NAME)


def export_tensorrt(
    model: "Blip", config: CheckpointConfig, folder: Path, largest_inputs: Mapping[str, float] | None = None
) -> None:
    """The encoder as ONNX, from which a plan is compiled. With the largest inputs of its linear layers, in fp8."""
    from blipstream_build.onnx_export import export_onnx  # a CPU's machine need not have the package onnx

    export_onnx(model, config, folder, largest_inputs)


# by runtime
ENCODERS: dict[str, Callable[["Blip", CheckpointConfig, Path], None]] = {
    "openvino": export_openvino,
    "torch": export_torch,
    "tensorrt": export_tensorrt,
}


def export_decoder(
    model: BlipForConditionalGeneration, tokenizer: BertTokenizer, config: CheckpointConfig, folder: Path
) -> None:
    """The decoder's weights in f32, absorbed cross-attention included, and its tokenizer."""
    _save(decoder_weights(model.state_dict(), config.text), folder / DECODER_NAME)
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER_NAME))


def export_matcher(
    model: BlipForImageTextRetrieval, tokenizer: BertTokenizer, config: CheckpointConfig, runtime: str, folder: Path
) -> None:
    """The text encoder for a runtime, the heads in f32, and the tokenizer."""
    weights = text_encoder_weights(model.state_dict(), config.text)
    _save(weights, folder / TEXT_ENCODER_NAME)
    if runtime == "openvino":  # which has no gradients: they need the weights, too
        _export_text_encoder(weights, config, folder)
    _save(head_weights(model.state_dict()), folder / HEADS_NAME)
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER_NAME))


def _export_text_encoder(weights: Weights, config: CheckpointConfig, folder: Path) -> None:
    """The text encoder as OpenVINO IR, whose inputs are those of TextTransformer, of any size."""
    from blipstream.text.openvino import MODEL_NAME

    with torch.device("meta"):
        encoder = TextTransformer(config.text)
    encoder.load_state_dict(weights, assign=True)
    examples = (
        torch.zeros(2, 3, 5, dtype=torch.int64),
        torch.ones(2, 3, dtype=torch.int64),
        torch.ones(2, 3, dtype=torch.bool),
        torch.zeros(2, 7, config.text.encoder_hidden_size),
    )
    images, texts, tokens, patches = map(torch.export.Dim, ("images", "texts", "tokens", "patches"))
    shapes = {
        "ids": {0: images, 1: texts, 2: tokens},
        "lengths": {0: images, 1: texts},
        "looks": {0: images, 1: texts},
        "image_embeds": {0: images, 1: patches},
    }
    _save_openvino(encoder.eval().requires_grad_(False), examples, shapes, folder / MODEL_NAME)


def _save_openvino(module: nn.Module, examples: tuple[Tensor, ...], shapes: dict[str, Any], file: Path) -> None:
    """Write a module as OpenVINO IR. `shapes` names the dimensions of its inputs that may have any size."""
    import openvino

    program = torch.export.export(module, examples, dynamic_shapes=shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch warns of its own code
        converted = openvino.convert_model(program)
    # The weights stay f32 on disk: for bf16 the runtime rounds them itself, and f32 stays exact
    openvino.save_model(converted, file, compress_to_fp16=False)


def _save(weights: Weights, file: Path) -> None:
    save_file({name: weight.contiguous() for name, weight in weights.items()}, file)
    file.chmod(0o644)  # a server may run as another user
