# SPDX-License-Identifier: Apache-2.0
"""The adapters that lie beside a decoder, as the output tensors of a response."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from blipstream.adapters import AdapterConfig
from blipstream.errors import InvalidInput

LISTED = "listed_adapter"  # the input with the name of an adapter to tell about; empty: of all


def adapter_outputs(
    wanted: npt.NDArray[Any], names: Callable[[], Sequence[str]], find: Callable[[str], AdapterConfig]
) -> dict[str, npt.NDArray[np.object_]]:
    """The outputs for the adapter whose name is in `wanted` [1, 1], or, if that is empty, for all of the `names`.

    name, language and about are BYTES [1, N]; about is the rest of the AdapterConfig that `find` gives, in JSON. Raises
    InvalidInput if `find` raises it for the name that is wanted.
    """
    if wanted.shape != (1, 1):
        raise InvalidInput(f"the name of an adapter must have shape [1, 1], not {list(wanted.shape)}: ask for one")
    name = wanted[0, 0].decode(errors="replace")
    found = {name: find(name)} if name else {}
    for each in () if name else names():
        with suppress(InvalidInput):  # it was removed meanwhile, or made for another base
            found[each] = find(each)
    fields = {each: asdict(config) for each, config in found.items()}
    rows = [(each, about.pop("language"), json.dumps(about)) for each, about in fields.items()]
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    return {
        output: np.array([[text.encode() for text in column]], np.object_).reshape(1, len(rows))
        for output, column in zip(("name", "language", "about"), columns, strict=True)
    }
