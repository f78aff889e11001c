# SPDX-License-Identifier: Apache-2.0
"""Optional dependencies: the extra `bulk`."""

from importlib import import_module
from types import ModuleType

from blipstream_client._exceptions import InvalidRequest


def pyarrow(what: str) -> ModuleType:
    """pyarrow, with pyarrow.parquet. `what` needs it. Raises InvalidRequest if it is not installed."""
    try:
        import_module("pyarrow.parquet")
    except ImportError as exc:
        raise InvalidRequest(f"{what} needs pyarrow: pip install pyarrow ({exc})") from exc
    return import_module("pyarrow")
