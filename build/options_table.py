# SPDX-License-Identifier: Apache-2.0
"""The documents' table of decoding options, in Markdown."""

from blipstream.options import BEAM_SEARCH, DEFAULTS, MAX_PROMPT, OPTIONS, SAMPLING, TYPES, data_type

HEAD = "| option | type | default | allowed | meaning |\n|---|---|---|---|---|\n"
CONDITIONS = {"": "", SAMPLING: "; only with `do_sample`", BEAM_SEARCH: "; only with `num_beams` above 1"}


def options_table() -> str:
    """A row for each option, as DecodingOptions declares it."""
    return HEAD + "".join(
        f"| `{name}` | {data_type(name)} [1] | {_default(name)} | {_allowed(name)} | {option.meaning} |\n"
        for name, option in OPTIONS.items()
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
    if TYPES[name] is str:
        return f"at most {MAX_PROMPT:,} characters"
    if TYPES[name] is bool:
        return "true or false"
    if data_type(name) == "INT64":
        return "any whole number"
    return option.allowed(f"`{option.high}`" if isinstance(option.high, str) else str(option.high))
