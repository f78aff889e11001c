# SPDX-License-Identifier: Apache-2.0
"""Pixels to image_embeds: BLIP's vision encoder, in several runtimes with one surface."""

import sys
from pathlib import Path

from blipstream.config import DType
from blipstream.errors import ArtifactError
from blipstream.vision.encoder import Encoder

__all__ = ["RUNTIMES", "Encoder", "load_encoder"]

RUNTIMES = ("openvino", "torch", "tensorrt")

# With this module, OpenVINO's tools send usage statistics to Google Analytics. They do without it if it is absent
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def load_encoder(runtime: str, folder: Path, device: str = "cpu", dtype: DType | None = None) -> Encoder:
    """The encoder of an artifact, in the artifact's dtype unless another is given. Imports no other runtime.

    Raises ArtifactError if the artifact is broken or the runtime is unknown.
    """
    if runtime == "openvino":
        from blipstream.vision.openvino import OpenVINOEncoder

        return OpenVINOEncoder(folder, dtype)
    if runtime == "torch":
        from blipstream.vision.torch import TorchEncoder

        return TorchEncoder(folder, device, dtype)
    if runtime == "tensorrt":
        from blipstream.vision.tensorrt import TensorRTEncoder

        return TensorRTEncoder(folder)
    raise ArtifactError(f"there is no encoder runtime {runtime!r}: choose one of {', '.join(RUNTIMES)}")
