# SPDX-License-Identifier: Apache-2.0
"""The vision encoder on a CPU, through OpenVINO."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino
import openvino.properties.hint as hints

from blipstream.config import BUILD_HINT, CheckpointConfig, DType
from blipstream.dtypes import resolve
from blipstream.errors import ArtifactError, InvalidInput

MODEL_NAME = "encoder.xml"


class OpenVINOEncoder:
    """Pixels to image_embeds. Not thread-safe: one thread drives it."""

    def __init__(self, folder: Path, dtype: DType | None = None) -> None:
        """From an artifact, in its own dtype unless told otherwise. Raises ArtifactError where it is broken."""
        self.config = CheckpointConfig.load(folder)
        precision = {"bf16": openvino.Type.bf16, "f32": openvino.Type.f32}[resolve(dtype or self.config.dtype)]
        try:
            compiled = openvino.Core().compile_model(
                folder / MODEL_NAME,
                "CPU",
                {
                    hints.inference_precision: precision,
                    hints.performance_mode: hints.PerformanceMode.LATENCY,  # all cores on one batch
                },
            )
        except RuntimeError as exc:
            raise ArtifactError(f"{folder / MODEL_NAME} cannot be loaded: {BUILD_HINT}") from exc
        self._request = compiled.create_infer_request()

    def check(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Raises InvalidInput where pixels [B, H, W, 3] have another size than the checkpoint's."""
        side = self.config.vision.image_size
        if pixels.shape[1:] != (side, side, 3):
            raise InvalidInput(f"pixels must have shape {[side, side, 3]}, not {list(pixels.shape[1:])}")

    def encode(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """UINT8 pixels [B, H, W, 3] -> image_embeds, f32 [B, N, E]."""
        image_embeds: npt.NDArray[np.float32] = self._request.infer({0: pixels}, share_inputs=True)[0]
        return image_embeds
