# SPDX-License-Identifier: Apache-2.0
"""The vision encoder's runtimes, all called alike."""

from pathlib import Path

from blipstream.config import DType
from blipstream.encoders.base import Encoder
from blipstream.errors import ArtifactError

__all__ = ["RUNTIMES", "Encoder", "load_encoder"]

RUNTIMES = ("openvino", "torch", "tensorrt")


def load_encoder(runtime: str, folder: Path, device: str = "cpu", dtype: DType | None = None) -> Encoder:
    """The encoder of an artifact, in its own dtype unless told otherwise. Only its runtime is imported.

    Raises ArtifactError where the artifact is broken or the runtime unknown.
    """
    if runtime == "openvino":
        from blipstream.encoders.openvino import OpenVINOEncoder

        return OpenVINOEncoder(folder, dtype)
    if runtime == "torch":
        from blipstream.encoders.torch import TorchEncoder

        return TorchEncoder(folder, device, dtype)
    if runtime == "tensorrt":
        from blipstream.encoders.tensorrt import TensorRTEncoder

        return TensorRTEncoder(folder)
    raise ArtifactError(f"there is no encoder runtime {runtime!r}: choose one of {', '.join(RUNTIMES)}")
