# SPDX-License-Identifier: Apache-2.0
"""Which number format to compute in."""

from functools import cache
from pathlib import Path
from typing import Literal

from blipstream.config import DType
from blipstream.errors import ArtifactError


@cache
def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware (AMX or AVX-512). Emulated, bf16 is slower than f32."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return bool({"amx_bf16", "avx512_bf16"} & set(cpuinfo.split()))


def resolve(dtype: DType, device: str) -> Literal["bf16", "f16", "f32"]:
    """What "auto" means on a device, "cpu" or "cuda". Raises ArtifactError if the device lacks the format."""
    if dtype == "auto":
        if device == "cuda":
            return "f16"
        return "bf16" if cpu_has_bf16() else "f32"
    if dtype == "f16" and device == "cpu":
        raise ArtifactError("f16 is for GPUs: build for a CPU with --dtype auto, bf16 or f32")
    return dtype
