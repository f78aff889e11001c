# SPDX-License-Identifier: Apache-2.0
"""Loads an artifact's weights into a module."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from blipstream.config import BUILD_HINT
from blipstream.errors import ArtifactError

TORCH_DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def load_weights(module: nn.Module, file: Path) -> None:
    """Give a module on the meta device the weights of a safetensors file. Raises ArtifactError if they do not fit."""
    try:
        module.load_state_dict(load_file(file), assign=True)
    except (OSError, RuntimeError, SafetensorError) as exc:
        raise ArtifactError(f"{file} cannot be loaded: {BUILD_HINT}") from exc
