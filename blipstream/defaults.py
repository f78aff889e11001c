# SPDX-License-Identifier: Apache-2.0
"""The defaults of options that an operator or a checkpoint sets: where they come from, and how the models get them.

The command line and a TOML file name them. The server writes them into the models' configs, as two parameters that are
JSON objects. The models read those, and anyone can see them in the configs that Triton returns.
"""

import json
import re
import struct
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from blipstream.errors import InvalidInput, ServerError
from blipstream.options import (
    DEFAULTS,
    OPTION_NAMES,
    RESIZE_MODES,
    TYPES,
    Fault,
    OptionDefaults,
    agreed,
    faults,
    nearest,
)

NAMES = ("resize_mode", *OPTION_NAMES)  # of the options that may have a default
BUILT_IN = {"resize_mode": RESIZE_MODES[0]} | DEFAULTS
VALUES, FIXED = "option_defaults", "fixed_options"  # parameters of a model's config
TABLES = ("default", "fixed")  # of a file, and options of the command line
KINDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
SHOWN = 60  # characters of a value in a message
SEVERAL = re.compile(r",\s*\w+\s*=")  # in a value that cannot be one
NUMBER = re.compile(r"[+-]?\d+", re.ASCII)


def from_operator(
    default: Iterable[str] = (),
    fixed: Iterable[str] = (),
    file: Path | None = None,
    places: tuple[str, str] = ("--default", "--fixed"),
) -> OptionDefaults:
    """What the command line's NAME=VALUE and a TOML file ask for; the command line wins.

    `places` says where `default` and `fixed` were set. Raises ServerError.
    """
    place = dict(zip(TABLES, places, strict=True))
    given = {table: _parse(place[table], texts) for table, texts in zip(TABLES, (default, fixed), strict=True)}
    named = given["default"].keys() | given["fixed"].keys()
    in_file = {
        table: {name: value for name, value in values.items() if name not in named}
        for table, values in (_read_file(file) if file else {}).items()
    }
    merged = {table: in_file.get(table, {}) | given[table] for table in TABLES}
    sources = {
        table: _sources(f"{file} [{table}]", in_file.get(table, {})) | _sources(place[table], given[table])
        for table in TABLES
    }
    for name in merged["default"].keys() & merged["fixed"].keys():
        both = " and ".join(sources[table][name] for table in TABLES)
        raise ServerError(f"{both}: {name} has a default and is fixed, too: leave one of them out")
    values, of_each = merged["default"] | merged["fixed"], sources["default"] | sources["fixed"]
    if fault := _fault(values):
        guilty = " and ".join(of_each[name] for name in fault.names if name in of_each)
        raise ServerError(f"{guilty}: {fault.sentence}")
    return _defaults(values, frozenset(merged["fixed"]), of_each)


def over(operator: OptionDefaults, checkpoint: Mapping[str, Any]) -> OptionDefaults:
    """The operator's defaults, and those of the checkpoint that do not contradict them."""
    values = agreed(operator.values, checkpoint, keeps_idle=True)
    kept = {name: value for name, value in values.items() if name in operator.fixed or value != DEFAULTS[name]}
    sources = {**_sources("generation_config.json", kept), **operator.sources}
    return OptionDefaults(kept, operator.fixed, operator.resize_mode, sources)


def to_parameters(defaults: OptionDefaults) -> dict[str, str]:
    """What `from_parameters` reads in a model's config; nothing if all is built in."""
    values = _all(defaults)
    changed = {name: value for name, value in values.items() if value != BUILT_IN[name]}
    fixed = {name: value for name, value in values.items() if name in defaults.fixed}
    return {name: json.dumps(each) for name, each in ((VALUES, changed), (FIXED, fixed)) if changed or fixed}


def from_parameters(parameters: Mapping[str, str]) -> OptionDefaults:
    """What a model's config says. Raises ServerError."""
    try:
        changed, fixed = (_object(name, parameters.get(name, "{}")) for name in (VALUES, FIXED))
        values = {name: check_value(name, value) for name, value in (changed | fixed).items()}
        if fault := _fault(values):
            raise InvalidInput(fault.sentence)
        return _defaults(values, frozenset(fixed))
    except InvalidInput as error:
        raise ServerError(f"the defaults in its config are not allowed: {error}") from error


def shown(defaults: OptionDefaults) -> str:
    """The defaults in one line; empty if all are built in."""
    texts = {name: _shown(name, value) for name, value in _all(defaults).items()}
    default = [text for name, text in texts.items() if name not in defaults.fixed]
    fixed = [text for name, text in texts.items() if name in defaults.fixed]
    return "; ".join(f"{kind} {', '.join(each)}" for kind, each in (("default", default), ("fixed", fixed)) if each)


def _all(defaults: OptionDefaults) -> dict[str, Any]:
    """The decoding options, and resize_mode as one of them."""
    return dict(defaults.values) | ({"resize_mode": defaults.resize_mode} if defaults.resize_mode else {})


def _shown(name: str, value: object) -> str:
    """An option and its value, as the command line takes them."""
    return f"{name}={json.dumps(value, ensure_ascii=False)}"


def _sources(place: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Where each value was set, in words."""
    texts = {name: _shown(name, value) for name, value in values.items()}
    return {name: f"{place} {text if len(text) <= SHOWN else text[:SHOWN] + '…'}" for name, text in texts.items()}


def _fault(values: Mapping[str, Any]) -> Fault | None:
    """The first thing that is wrong with the ranges of values, or between them.

    An option that has a meaning only with another one may stand alone: some requests will send the other one.
    """
    decoding = {name: value for name, value in values.items() if name in DEFAULTS}
    return next((fault for fault in faults(DEFAULTS | decoding) if not fault.is_idle), None)


def _defaults(
    values: Mapping[str, Any], fixed: frozenset[str], sources: Mapping[str, str] | None = None
) -> OptionDefaults:
    """Values that were checked, with resize_mode among them, as defaults."""
    decoding = {name: value for name, value in values.items() if name in DEFAULTS}
    return OptionDefaults(decoding, fixed, values.get("resize_mode", ""), sources or {})


def check_value(name: str, value: object) -> Any:  # noqa: ANN401
    """An option's value, as a request would send it. Raises InvalidInput if there is no such option, or by its type."""
    _check_name(name)
    if name == "resize_mode":
        if value not in RESIZE_MODES:
            raise InvalidInput(f"resize_mode must be one of {', '.join(RESIZE_MODES)}, not {value!r}")
        return value
    kind = TYPES[name]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise InvalidInput(f"{name} must be {KINDS[kind]}, not {value!r}")
    return _as_fp32(value) if isinstance(value, float) else value


def _as_fp32(value: float) -> float:
    """The shortest decimal that is the same in FP32: what becomes of the value if a request sends it."""
    try:
        packed = struct.pack("f", value)
    except OverflowError:  # it is out of every range
        return value
    (nearest_fp32,) = struct.unpack("f", packed)
    decimals = (float(f"{nearest_fp32:.{digits}g}") for digits in range(1, 10))
    return next(decimal for decimal in decimals if struct.pack("f", decimal) == packed)


def _check_name(name: str) -> None:
    if name not in NAMES:
        near = nearest(name, NAMES)
        raise InvalidInput(f"there is no option {name!r}: " + (f"did you mean {near}?" if near else _all_names()))


def _all_names() -> str:
    return f"there are {', '.join(NAMES)}"


def _parse(place: str, texts: Iterable[str]) -> dict[str, Any]:
    """The values of NAME=VALUE, by their names. `place` is where they were set."""
    values: dict[str, Any] = {}
    for text in texts:
        if not text.strip():  # between two semicolons of the environment's variable
            continue
        name, equals, value = text.partition("=")
        name = name.strip()
        try:
            if not equals:
                raise InvalidInput("expected NAME=VALUE, such as max_tokens=20")
            _check_name(name)
            if name in values:
                raise InvalidInput(f"{name} is given twice: leave one out")
            values[name] = check_value(name, _read(value, str if name == "resize_mode" else TYPES[name]))
        except InvalidInput as error:
            several = ": several stand in options of their own, or in the environment with ; between them"
            raise ServerError(f"{place} {text}: {error}{several if SEVERAL.search(value) else ''}") from error
    return values


def _read(text: str, kind: type) -> object:
    """What a text says, if it says something of that kind; else the text itself."""
    bare = text.strip()
    if kind is bool:
        return {"true": True, "false": False}.get(bare.lower(), text)
    if kind is int:
        return int(bare) if NUMBER.fullmatch(bare) else text
    if kind is float:
        try:
            return float(bare)
        except ValueError:
            return text
    return text


def _read_file(file: Path) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ServerError(f"{file} cannot be read as TOML: {why}") from error
    for table, values in tables.items():
        if table not in TABLES or not isinstance(values, dict):
            raise ServerError(
                f"{file} must have the tables [default] and [fixed] alone, and it has {table}{_remedy(table)}"
            )
        for name, value in values.items():
            try:
                values[name] = check_value(name, value)
            except InvalidInput as error:
                raise ServerError(f"{file} [{table}]: {error}") from error
    return tables


def _remedy(table: str) -> str:
    """What is meant by a table that there is not, if that can be told."""
    if table in NAMES:
        return f" outside them: write [default] or [fixed] on a line above {table}"
    near = get_close_matches(table, TABLES, 1)
    return f": did you mean [{near[0]}]?" if near else ""


def _object(name: str, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{name} is no JSON ({error})") from error
    if not isinstance(values, dict):
        raise InvalidInput(f"{name} must be a JSON object, not {text[:40]}")
    return values
