# SPDX-License-Identifier: Apache-2.0
"""Write a loaded checkpoint as the files of each artifact, into a folder that the caller installs."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertTokenizer, BlipForConditionalGeneration

from blipstream.config import CheckpointConfig, VisionConfig
from blipstream.decoding import WEIGHTS_NAME as DECODER_NAME
from blipstream.text.tokenizer import TOKENIZER_NAME
from blipstream.vision.torch import WEIGHTS_NAME as ENCODER_NAME
from blipstream.vision.vit import VisionTransformer
from blipstream_build.convert import Weights, decoder_weights, vision_weights


def vision_encoder(model: BlipForConditionalGeneration, config: VisionConfig) -> VisionTransformer:
    """The engine's encoder in f32, with the checkpoint's weights."""
    with torch.device("meta"):
        encoder = VisionTransformer(config)
    encoder.load_state_dict(vision_weights(model.state_dict(), config), assign=True)
    return encoder.eval().requires_grad_(False)


def export_openvino(model: BlipForConditionalGeneration, config: CheckpointConfig, folder: Path) -> None:
    """The encoder as OpenVINO IR: UINT8 pixels [B, H, W, 3] in, f32 image_embeds [B, N, E] out."""
    import openvino  # a GPU's machine need not have it

    from blipstream.vision.openvino import MODEL_NAME

    side = config.vision.image_size
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    program = torch.export.export(
        vision_encoder(model, config.vision), (example,), dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch warns of its own code
        converted = openvino.convert_model(program)
    # The weights stay f32 on disk: for bf16 the runtime rounds them itself, and f32 stays exact
    openvino.save_model(converted, folder / MODEL_NAME, compress_to_fp16=False)


def export_torch(model: BlipForConditionalGeneration, config: CheckpointConfig, folder: Path) -> None:
    """The encoder's weights in f32."""
    _save(vision_weights(model.state_dict(), config.vision), folder / ENCODER_NAME)


def export_tensorrt(model: BlipForConditionalGeneration, config: CheckpointConfig, folder: Path) -> None:
    """The encoder as ONNX, from which a plan is compiled."""
    from blipstream_build.onnx_export import export_onnx  # a CPU's machine need not have the package onnx

    export_onnx(model, config, folder)


# by runtime
ENCODERS: dict[str, Callable[[BlipForConditionalGeneration, CheckpointConfig, Path], None]] = {
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


def _save(weights: Weights, file: Path) -> None:
    save_file({name: weight.contiguous() for name, weight in weights.items()}, file)
    file.chmod(0o644)  # a server may run as another user
