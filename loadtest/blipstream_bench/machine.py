# SPDX-License-Identifier: Apache-2.0
"""Describe the machine and the software, without which figures mean nothing."""

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """The processor, memory and operating system of this machine."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in cpuinfo.splitlines())}
    flags = set(fields.get("flags", "").split())
    return {
        "processor": fields.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "bf16": bool(flags & {"avx512_bf16", "amx_bf16"}),
        "amx": "amx_bf16" in flags,
        "os": f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()}",
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of Python and of installed packages."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
