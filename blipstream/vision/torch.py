# SPDX-License-Identifier: Apache-2.0
"""The vision encoder in PyTorch: on a GPU fused attention and a CUDA graph for each bucket of batch sizes."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from blipstream.config import CheckpointConfig, DType
from blipstream.cuda_graphs import WARM_UP_SIZES, Graphs, bucket
from blipstream.dtypes import resolve
from blipstream.vision.encoder import Encoder
from blipstream.vision.vit import VisionEncoder
from blipstream.weights import TORCH_DTYPES, load_weights

WEIGHTS_NAME = "encoder.safetensors"


class TorchEncoder(Encoder):
    """See Encoder. On a CPU it computes the same, slower than OpenVINO."""

    def __init__(self, folder: Path, device: str, dtype: DType | None = None) -> None:
        """From an artifact, in its own dtype unless told otherwise. Raises ArtifactError where it is broken."""
        self.config = CheckpointConfig.load(folder)
        self._device = torch.device(device)
        with torch.device("meta"):
            encoder = VisionEncoder(self.config.vision)
        load_weights(encoder, folder / WEIGHTS_NAME)
        self.dtype = resolve(dtype or self.config.dtype, self._device.type)
        encoder.to(TORCH_DTYPES[self.dtype])
        encoder.scale, encoder.shift = encoder.scale.float(), encoder.shift.float()  # the normalisation stays in f32
        self._encoder = encoder.to(self._device).eval().requires_grad_(False)
        self._graphs: Graphs[Tensor] = Graphs(self._device)
        if self._graphs.enabled:
            self.warm_up_batches = WARM_UP_SIZES
        self._pixels: dict[int, Tensor] = {}  # by bucket, where graphs read from

    @torch.inference_mode()
    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """UINT8 pixels [B, H, W, 3] -> image_embeds [B, N, E] on the device."""
        batch = bucket(len(pixels)) if self._graphs.enabled else len(pixels)
        if batch not in self._pixels:
            self._pixels[batch] = torch.zeros(batch, *pixels.shape[1:], dtype=torch.uint8, device=self._device)
        buffer = self._pixels[batch]
        buffer[: len(pixels)] = torch.from_numpy(pixels)
        # a copy, since the next batch of this size overwrites what the graph returned
        image_embeds = self._graphs.run(batch, lambda: self._encoder(buffer))[: len(pixels)].clone()
        if self._graphs.enabled:  # who reads it next may do so on a stream of its own
            torch.cuda.current_stream(self._device).synchronize()
        return image_embeds
