# SPDX-License-Identifier: Apache-2.0
"""An encoder's ONNX graph, run without a GPU."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-untyped]

from blipstream.config import CheckpointConfig
from blipstream.vision import Encoder
from blipstream.vision.tensorrt import ONNX_NAME


class OnnxEncoder(Encoder):
    """Runs the graph in place of the plan, which needs its GPU."""

    def __init__(self, folder: Path) -> None:
        self.config = CheckpointConfig.load(folder)
        self.dtype = self.config.vision.quantised or "f16"
        options = onnxruntime.SessionOptions()
        if self.dtype == "fp8":
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._session = onnxruntime.InferenceSession(folder / ONNX_NAME, options, providers=["CPUExecutionProvider"])

    def encode(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        image_embeds: npt.NDArray[np.float16] = self._session.run(None, {"pixels": pixels})[0]
        return image_embeds
