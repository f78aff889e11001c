# SPDX-License-Identifier: Apache-2.0
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from blipstream_client._tensors import datatype, from_raw, image_tensor, to_raw


def test_an_image_is_one_string_of_a_batch_of_one() -> None:
    tensor = image_tensor(b"\x89PNG\0\0")
    assert tensor.shape == (1, 1)
    assert tensor.dtype == np.object_
    assert tensor[0, 0] == b"\x89PNG\0\0"  # trailing zeros and all


@pytest.mark.parametrize(
    "tensor",
    [
        np.array([[b"a", b"", "\N{BEAR FACE}".encode()]], np.object_),
        np.array([[1, -2]], np.int32),
        np.array([[-(2**63)]], np.int64),
        np.array([[[0.5, -1]]], np.float32),
        np.array([[True, False]]),
    ],
    ids=lambda tensor: datatype(tensor),
)
def test_raw_bytes_are_the_same_tensor(tensor: npt.NDArray[Any]) -> None:
    found = from_raw(datatype(tensor), tensor.shape, to_raw(tensor))
    assert found.dtype == tensor.dtype
    assert found.tolist() == tensor.tolist()
