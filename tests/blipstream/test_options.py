# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from blipstream.errors import InvalidInput
from blipstream.options import DecodingOptions


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ({"max_tokens": -5}, "max_tokens must be at least 1, not -5"),
        ({"min_tokens": -1}, "min_tokens must be between 0 and max_tokens, which is 30, not -1"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens must be between 0 and max_tokens, which is 8, not 9"),
    ],
)
def test_contradictions(values: dict[str, int], sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        DecodingOptions(**values)  # type: ignore[arg-type]
    assert str(caught.value) == sentence


def test_from_tensors() -> None:
    tensors = {"prompt": np.array([b"caf\xc3\xa9"], np.object_), "max_tokens": np.array([7], np.int32)}
    assert DecodingOptions.from_tensors(tensors) == DecodingOptions(prompt="café", max_tokens=7)
    assert DecodingOptions.from_tensors({}) == DecodingOptions()


def test_prompt_that_is_no_text() -> None:
    with pytest.raises(InvalidInput, match=r"prompt must be UTF-8 text: invalid start byte at byte 1"):
        DecodingOptions.from_tensors({"prompt": np.array([b"a\xff"], np.object_)})
