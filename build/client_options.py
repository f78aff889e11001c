# SPDX-License-Identifier: Apache-2.0
"""The client's declarations of the decoding options, in Python. The client cannot import the server's."""

import json
import math
from collections.abc import Iterable

from blipstream import options
from blipstream.options import BEAM_SEARCH, SAMPLING, data_type

DEFAULTS = options.DEFAULTS | options.EXPLAIN_DEFAULTS | options.RERANK_DEFAULTS
OPTIONS = options.OPTIONS | options.EXPLAIN_OPTIONS | options.RERANK_OPTIONS
TYPES = options.TYPES | options.EXPLAIN_TYPES | options.RERANK_TYPES

CONDITIONS = {"": "", SAMPLING: "Sampling: ", BEAM_SEARCH: "Beam search: "}


def client_options(names: Iterable[str] = options.OPTIONS) -> str:
    """The fields of the client's `Options` or `ExplainOptions`, for the options of these names."""
    return "    # fmt: off\n" + "".join(map(_field, names)) + "    # fmt: on\n"


def _field(name: str) -> str:
    condition = CONDITIONS[OPTIONS[name].only_with]
    meaning = OPTIONS[name].meaning
    text = condition + (meaning[0].lower() + meaning[1:] if condition else meaning)
    return (
        f"    {name}: Annotated[{TYPES[name].__name__} | None, Option(\n"
        f'        {data_type(name)}, {_literal(DEFAULTS[name])}, "{text}",{_range(name)}{_other_names(name)}\n'
        "    )]\n"
    )


def _range(name: str) -> str:
    """The ends of an option's range, on a line of their own. Nothing if there are none, or another option is one."""
    ends = {"low": OPTIONS[name].low, "high": OPTIONS[name].high}
    known = [f"{end}={value}," for end, value in ends.items() if not isinstance(value, str) and math.isfinite(value)]
    return f"\n        {' '.join(known)}" if known else ""


def _other_names(name: str) -> str:
    """The last argument of `Option`, on a line of its own. Nothing if the option has no other names."""
    names = json.dumps(OPTIONS[name].other_names).strip("[]")
    return f"\n        other_names=({names},)," if names else ""


def _literal(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
