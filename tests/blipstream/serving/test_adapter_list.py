# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from blipstream.adapters import AdapterConfig
from blipstream.errors import InvalidInput
from blipstream.serving.adapter_list import adapter_outputs

THERE = {
    "fr": AdapterConfig("base", "1" * 64, "2" * 64, "fr", 12, {"exact": 0.97}),
    "ja": AdapterConfig("base", "1" * 64, "3" * 64),
}


def find(name: str) -> AdapterConfig:
    if name not in THERE:
        raise InvalidInput(f"no {name}")
    return THERE[name]


def ask(*names: bytes) -> list[list[str]]:
    """The columns of the answer, where all names are there, and another one that has just been removed."""
    wanted = np.array([[name] for name in names], np.object_)
    outputs = adapter_outputs(wanted, lambda: [*THERE, "removed"], find)
    assert [*outputs] == ["name", "language", "about"]
    return [[text.decode() for text in column[0]] for column in outputs.values()]


def test_all_or_one() -> None:
    names, languages, about = ask(b"")
    assert (names, languages) == (["fr", "ja"], ["fr", ""])
    assert json.loads(about[0]) == {
        "base": "base",
        "base_revision": "1" * 64,
        "revision": "2" * 64,
        "num_words": 12,
        "metrics": {"exact": 0.97},
    }
    assert ask(b"ja") == [["ja"], [""], about[1:]]


def test_none() -> None:
    outputs = adapter_outputs(np.array([[b""]], np.object_), list, find)
    assert {name: column.shape for name, column in outputs.items()} == dict.fromkeys(
        ("name", "language", "about"), (1, 0)
    )


def test_what_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no de"):
        ask(b"de")
    with pytest.raises(InvalidInput, match=r"no \ufffd"):
        ask(b"\xff")
    with pytest.raises(InvalidInput, match=r"must have shape \[1, 1\], not \[2, 1\]: ask for one"):
        ask(b"fr", b"ja")
