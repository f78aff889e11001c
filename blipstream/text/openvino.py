# SPDX-License-Identifier: Apache-2.0
"""The text encoder on a CPU, through OpenVINO."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from blipstream.config import CheckpointConfig, DType
from blipstream.dtypes import resolve
from blipstream.text.encoder import Gradients, TextBatch, TextEncoder
from blipstream.text.torch import TorchTextEncoder
from blipstream.vision.openvino import compiled_for_cpu

MODEL_NAME = "text_encoder.xml"


class OpenVINOTextEncoder(TextEncoder):
    """The text encoder that OpenVINO compiles for this processor."""

    def __init__(self, folder: Path, dtype: DType | None = None) -> None:
        """Load an artifact, in its own dtype unless another is given. Raises ArtifactError if it is broken."""
        self.config = CheckpointConfig.load(folder)
        self.dtype = resolve(dtype or self.config.dtype, "cpu")
        self._folder = folder
        self._request = compiled_for_cpu(folder / MODEL_NAME, self.dtype).create_infer_request()

    def encode(self, batch: TextBatch) -> npt.NDArray[np.float32]:
        """The last hidden state of each text's first token, [I, R, h]."""
        hidden: npt.NDArray[np.float32] = self._request.infer(dict(enumerate(batch)))[0]
        return hidden

    def gradients(
        self,
        ids: Sequence[int],
        image_embeds: npt.NDArray[Any],
        direction: npt.NDArray[np.float32],
        layer: int = -1,
        head: int = -1,
    ) -> Gradients:
        """GradCAM on cross-attention in f32, as `TextEncoder.gradients` says. Raises ArtifactError without weights."""
        return self._with_gradients.gradients(ids, image_embeds, direction, layer, head)

    @cached_property
    def _with_gradients(self) -> TorchTextEncoder:
        """OpenVINO has no gradients. The weights stay in their file, and are read as they are needed."""
        return TorchTextEncoder(self._folder, "cpu", "f32")
