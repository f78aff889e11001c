# SPDX-License-Identifier: Apache-2.0
"""The documents' table of decoding options, in Markdown."""

from collections.abc import Iterable

from blipstream import options
from blipstream.options import BEAM_SEARCH, MAX_PROMPT, METHODS, SAMPLING, data_type

DEFAULTS = options.DEFAULTS | options.EXPLAIN_DEFAULTS | options.RERANK_DEFAULTS
OPTIONS = options.OPTIONS | options.EXPLAIN_OPTIONS | options.RERANK_OPTIONS
TYPES = options.TYPES | options.EXPLAIN_TYPES | options.RERANK_TYPES

HEAD = "| option | type | default | allowed | meaning |\n|---|---|---|---|---|\n"
CONDITIONS = {"": "", SAMPLING: "; only with `do_sample`", BEAM_SEARCH: "; only with `num_beams` above 1"}


def options_table(names: Iterable[str] = options.OPTIONS) -> str:
    """A row for each option, as it is declared."""
    return HEAD + "".join(
        f"| `{name}` | {data_type(name)} [1] | {_default(name)} | {_allowed(name)} | {option.meaning} |\n"
        for name, option in ((name, OPTIONS[name]) for name in names)
    )


def _default(name: str) -> str:
    value = DEFAULTS[name]
    if isinstance(value, str):
        return f"`{value}`" if value else "none"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _allowed(name: str) -> str:
    return _range(name) + CONDITIONS[OPTIONS[name].only_with]


def _range(name: str) -> str:
    option = OPTIONS[name]
    if name == "method":
        return ", ".join(f"`{method}`" for method in METHODS)
    if TYPES[name] is str:
        return f"at most {MAX_PROMPT:,} characters"
    if TYPES[name] is bool:
        return "true or false"
    if data_type(name) == "INT64":
        return "any whole number"
    return option.allowed(f"`{option.high}`" if isinstance(option.high, str) else str(option.high))
