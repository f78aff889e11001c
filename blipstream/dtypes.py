# SPDX-License-Identifier: Apache-2.0
"""Which number format to compute in."""

from functools import cache
from pathlib import Path
from typing import Literal

from blipstream.config import DType


@cache
def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself (AMX or AVX-512); emulated, it would be slower than f32."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return bool({"amx_bf16", "avx512_bf16"} & set(cpuinfo.split()))


def resolve(dtype: DType) -> Literal["bf16", "f32"]:
    """What `auto` means on this processor."""
    if dtype == "auto":
        return "bf16" if cpu_has_bf16() else "f32"
    return dtype
