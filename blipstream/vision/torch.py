# SPDX-License-Identifier: Apache-2.0
"""The vision encoder in PyTorch. On a GPU it has fused attention, and a CUDA graph for each bucket of batch sizes."""

from pathlib import Path

import torch
from torch import Tensor

from blipstream.config import CheckpointConfig, DType
from blipstream.cuda_graphs import WARM_UP_SIZES, Graphs, bucket, recording_soon
from blipstream.dtypes import resolve
from blipstream.images.shapes import Pixels
from blipstream.vision.encoder import Encoder
from blipstream.vision.vit import VisionTransformer
from blipstream.weights import TORCH_DTYPES, load_weights

WEIGHTS_NAME = "encoder.safetensors"


class TorchEncoder(Encoder):
    """The encoder in PyTorch. On a CPU it gives the same results as OpenVINO, more slowly."""

    def __init__(self, folder: Path, device: str, dtype: DType | None = None) -> None:
        """Load an artifact, in its own dtype unless another is given. Raises ArtifactError if it is broken."""
        # by default cuDNN convolves f32 in TF32, with a relative error above the 1e-4 that f32 is checked to
        torch.backends.cudnn.allow_tf32 = False
        self.config = CheckpointConfig.load(folder)
        self._device = torch.device(device)
        with torch.device("meta"):
            model = VisionTransformer(self.config.vision)
        load_weights(model, folder / WEIGHTS_NAME)
        self.dtype = resolve(dtype or self.config.dtype, self._device.type)
        model.to(TORCH_DTYPES[self.dtype])
        model.scale, model.shift = model.scale.float(), model.shift.float()  # pixels are normalized in f32
        self._model = model.to(self._device).eval().requires_grad_(False)
        self._graphs: Graphs[Tensor] = Graphs(self._device)
        if self._graphs.enabled:
            self.warm_up_batches = WARM_UP_SIZES
        self._pixels: dict[int, Tensor] = {}  # the graphs' inputs, by bucket

    def warm_up(self) -> None:
        """Encode once what would make the first requests wait, and record its graphs."""
        with recording_soon():
            super().warm_up()

    @torch.inference_mode()
    def encode(self, pixels: Pixels) -> Tensor:
        """uint8 pixels [B, H, W, 3] -> image_embeds [B, N, E] on the device."""
        batch = bucket(len(pixels)) if self._graphs.enabled else len(pixels)
        if batch not in self._pixels:
            self._pixels[batch] = torch.zeros(batch, *pixels.shape[1:], dtype=torch.uint8, device=self._device)
        buffer = self._pixels[batch]
        buffer[: len(pixels)] = torch.from_numpy(pixels)
        # a copy, since the graph's next run overwrites its output
        image_embeds = self._graphs.run(batch, lambda: self._model(buffer))[: len(pixels)].clone()
        if self._graphs.enabled:  # the next reader may use another stream
            torch.cuda.current_stream(self._device).synchronize()
        return image_embeds
