# SPDX-License-Identifier: Apache-2.0
"""The runtimes of the text encoder, which have one surface."""

from pathlib import Path

from blipstream.config import DType
from blipstream.errors import ArtifactError
from blipstream.text.encoder import TextEncoder

RUNTIMES = ("openvino", "torch")


def load_text_encoder(runtime: str, folder: Path, device: str = "cpu", dtype: DType | None = None) -> TextEncoder:
    """The text encoder of an artifact, in the artifact's dtype unless another is given. Imports no other runtime.

    Raises ArtifactError if the artifact is broken or the runtime is unknown.
    """
    if runtime == "openvino":
        from blipstream.text.openvino import OpenVINOTextEncoder

        return OpenVINOTextEncoder(folder, dtype)
    if runtime == "torch":
        from blipstream.text.torch import TorchTextEncoder

        return TorchTextEncoder(folder, device, dtype)
    raise ArtifactError(f"there is no text encoder runtime {runtime!r}: choose one of {', '.join(RUNTIMES)}")
