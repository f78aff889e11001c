# SPDX-License-Identifier: Apache-2.0
"""What can be built: the configurations by name, and the options of a TensorRT plan."""

from dataclasses import dataclass
from typing import Literal

from blipstream.errors import ArtifactError

EncoderDType = Literal["fp8"]  # the formats that an encoder alone can have; its linear layers compute in it


@dataclass(frozen=True)
class Config:
    """How one configuration runs the encoders. The decoder is the same in all of them."""

    runtime: str  # in blipstream.vision; also the name of the artifact's folder in encoder/1
    device: str  # cpu or cuda
    library: str  # the package that exports the encoder; another version of it makes the artifact stale
    sources: tuple[str, ...] = ()  # modules of this package that export it, besides those that all encoders need

    @property
    def text_runtime(self) -> str:
        """How it runs the text encoder, in blipstream.text; also the name of the artifact's folder in matcher/1."""
        return "openvino" if self.runtime == "openvino" else "torch"


CONFIGS = {
    "cpu": Config("openvino", "cpu", "openvino"),
    "cuda": Config("torch", "cuda", "safetensors"),
    "tensorrt": Config(
        "tensorrt",
        "cuda",
        "onnx",
        ("calibration_images.py", "onnx_export.py", "quantisation.py", "tensorrt_compile.py"),
    ),
}


@dataclass(frozen=True)
class PlanOptions:
    """How to compile a TensorRT plan. Raises ArtifactError if the batch sizes are out of order."""

    min_batch: int = 1
    opt_batch: int = 32  # TensorRT chooses its kernels for this one
    max_batch: int = 64  # at least the max_batch_size in the encoder's config.pbtxt
    workspace_mib: int | None = None  # the most scratch memory; None: all that the GPU has
    hardware_compatible: bool = False  # the plan runs on Ampere and all later GPUs, but slower
    version_compatible: bool = False  # the plan runs on later versions of TensorRT, but slower
    refit: bool = False  # other weights can be put into the plan

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise ArtifactError(
                "batch sizes must be in order, 1 <= min <= opt <= max, "
                f"not {self.min_batch}, {self.opt_batch} and {self.max_batch}"
            )
