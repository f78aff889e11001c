# SPDX-License-Identifier: Apache-2.0
"""The vision encoder on a CPU, through OpenVINO."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino
import openvino.properties.hint as hints

from blipstream.config import BUILD_HINT, CheckpointConfig, DType
from blipstream.dtypes import resolve
from blipstream.errors import ArtifactError
from blipstream.images.shapes import Pixels
from blipstream.vision.encoder import Encoder

MODEL_NAME = "encoder.xml"
PRECISIONS = {"bf16": openvino.Type.bf16, "f32": openvino.Type.f32}


def compiled_for_cpu(file: Path, dtype: str) -> openvino.CompiledModel:
    """A model for this processor, to compute in `dtype`. Raises ArtifactError if its file is broken."""
    try:
        return openvino.Core().compile_model(
            file,
            "CPU",
            {
                hints.inference_precision: PRECISIONS[dtype],
                hints.performance_mode: hints.PerformanceMode.LATENCY,  # all cores work on one batch
            },
        )
    except RuntimeError as exc:
        raise ArtifactError(f"{file} cannot be loaded: {BUILD_HINT}") from exc


class OpenVINOEncoder(Encoder):
    """The encoder that OpenVINO compiles for this processor."""

    def __init__(self, folder: Path, dtype: DType | None = None) -> None:
        """Load an artifact, in its own dtype unless another is given. Raises ArtifactError if it is broken."""
        self.config = CheckpointConfig.load(folder)
        self.dtype = resolve(dtype or self.config.dtype, "cpu")
        self._request = compiled_for_cpu(folder / MODEL_NAME, self.dtype).create_infer_request()

    def encode(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """uint8 pixels [B, H, W, 3] -> image_embeds, f32 [B, N, E]."""
        image_embeds: npt.NDArray[np.float32] = self._request.infer({0: pixels}, share_inputs=True)[0]
        return image_embeds
