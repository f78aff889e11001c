# SPDX-License-Identifier: Apache-2.0
"""Tensors, and the raw bytes that both of Triton's protocols carry them as."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from tritonclient.utils import (
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

Tensors: TypeAlias = dict[str, npt.NDArray[Any]]  # by name


def image_tensor(encoded: bytes) -> npt.NDArray[Any]:
    """The input `image`, BYTES [1, 1]: a batch of one encoded image."""
    return np.array([[encoded]], dtype=np.object_)


def datatype(tensor: npt.NDArray[Any]) -> str:
    """Triton's name for the tensor's dtype."""
    return str(np_to_triton_dtype(tensor.dtype))


def to_raw(tensor: npt.NDArray[Any]) -> bytes:
    """The tensor as raw bytes."""
    if tensor.dtype == np.object_:
        raw: bytes = serialize_byte_tensor(tensor).item()
        return raw
    return tensor.tobytes()


def from_raw(datatype: str, shape: Sequence[int], raw: bytes) -> npt.NDArray[Any]:
    """The tensor of this Triton data type and shape. Raises ValueError or TypeError if the bytes do not fit."""
    flat: npt.NDArray[Any] = (
        deserialize_bytes_tensor(raw) if datatype == "BYTES" else np.frombuffer(raw, triton_to_np_dtype(datatype))
    )
    return flat.reshape(tuple(shape))
