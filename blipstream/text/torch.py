# SPDX-License-Identifier: Apache-2.0
"""The text encoder in PyTorch."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from blipstream.config import CheckpointConfig, DType
from blipstream.dtypes import resolve
from blipstream.text.encoder import TextBatch, TextEncoder, TextTransformer
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
