# SPDX-License-Identifier: Apache-2.0
"""The text encoder in PyTorch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from blipstream.config import CheckpointConfig, DType
from blipstream.dtypes import resolve
from blipstream.heatmaps import GRADIENT_SCALE
from blipstream.text.encoder import Gradients, TextBatch, TextEncoder, TextTransformer
from blipstream.weights import TORCH_DTYPES, load_weights

WEIGHTS_NAME = "text_encoder.safetensors"


class TorchTextEncoder(TextEncoder):
    """The text encoder in PyTorch. On a CPU it gives the same results as OpenVINO, more slowly."""

    def __init__(self, folder: Path, device: str, dtype: DType | None = None) -> None:
        """Load an artifact, in its own dtype unless another is given. Raises ArtifactError if it is broken."""
        self.config = CheckpointConfig.load(folder)
        self._device = torch.device(device)
        with torch.device("meta"):
            model = TextTransformer(self.config.text)
        load_weights(model, folder / WEIGHTS_NAME)
        self.dtype = resolve(dtype or self.config.dtype, self._device.type)
        self._model = model.to(self._device, TORCH_DTYPES[self.dtype]).eval().requires_grad_(False)

    @torch.inference_mode()
    def encode(self, batch: TextBatch) -> npt.NDArray[np.float32]:
        """The last hidden state of each text's first token, [I, R, h]."""
        hidden: npt.NDArray[np.float32] = (
            self._model(*(torch.from_numpy(part).to(self._device) for part in batch)).float().cpu().numpy()
        )
        return hidden

    def gradients(
        self,
        ids: Sequence[int],
        image_embeds: npt.NDArray[Any],
        direction: npt.NDArray[np.float32],
        layer: int = -1,
        head: int = -1,
    ) -> Gradients:
        """GradCAM on cross-attention, as `TextEncoder.gradients` says."""
        weights: list[torch.Tensor] = []

        def record(found: torch.Tensor) -> torch.Tensor:
            if layer in (-1, len(weights)) and not found.requires_grad:
                found.requires_grad_()  # what came before needs no gradients
            weights.append(found)
            return found

        with torch.inference_mode(False), torch.enable_grad():
            tokens = torch.tensor([[ids]], device=self._device)
            lengths = torch.full(tokens.shape[:2], len(ids), device=self._device)
            image = torch.from_numpy(image_embeds[None]).to(self._device)
            hidden = self._model(tokens, lengths, lengths > 0, image, record)[0, 0].float()
            total = hidden @ torch.from_numpy(direction).to(self._device)
            chosen = weights if layer < 0 else [weights[layer]]
            gradients = torch.autograd.grad(total * GRADIENT_SCALE, chosen)
        products = [
            found.detach().float() * gradient.float().clamp(min=0)
            for found, gradient in zip(chosen, gradients, strict=True)
        ]
        by_head = torch.stack(products).sum(0)[0]  # [heads, T, N]
        return Gradients(hidden.detach().cpu().numpy(), by_head.mean(0) if head < 0 else by_head[head])
