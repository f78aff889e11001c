# SPDX-License-Identifier: Apache-2.0
"""Tensors <-> the raw bytes that both of Triton's protocols carry."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.utils import (
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)


def datatype(tensor: npt.NDArray[Any]) -> str:
    """Triton's name for the tensor's type."""
    return str(np_to_triton_dtype(tensor.dtype))


def to_raw(tensor: npt.NDArray[Any]) -> bytes:
    """The bytes of a tensor."""
    if tensor.dtype == np.object_:
        raw: bytes = serialize_byte_tensor(tensor).item()
        return raw
    return tensor.tobytes()


def from_raw(datatype: str, shape: Sequence[int], raw: bytes) -> npt.NDArray[Any]:
    """The tensor that the bytes say."""
    flat: npt.NDArray[Any] = (
        deserialize_bytes_tensor(raw) if datatype == "BYTES" else np.frombuffer(raw, triton_to_np_dtype(datatype))
    )
    return flat.reshape(tuple(shape))
