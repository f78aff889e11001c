# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's generation config, as defaults of our options.

transformers' BLIP captions by its text decoder, which has a generation config of its own. That one is made from
config.json, and transformers 5 drops most of what it finds there: `max_length`, `num_beams` and the like, but not
`max_new_tokens`. So `model.generate(**inputs)` ignores generation_config.json, and
`model.generate(**inputs, generation_config=model.generation_config)` obeys it. We obey it, too: it says what the
checkpoint's author asks for.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from transformers import GenerationConfig

from blipstream.defaults import check_value, shown
from blipstream.errors import InvalidInput
from blipstream.options import DEFAULTS, OPTIONS, OptionDefaults, faults

NAME = "generation_config.json"
START_TOKENS = 1  # transformers' lengths count the prompt, which begins with [DEC]
BESIDES = ("_token_id", "output_", "return_dict", "use_cache", "cache_", "version")  # in names that change no caption


class GenerationDefaults(NamedTuple):
    """What a generation config says in our words."""

    used: dict[str, Any]  # options, where they are not what is built in
    ignored: list[str]  # its other settings, if they are not transformers' own defaults

    def __str__(self) -> str:
        parts = [shown(OptionDefaults(self.used)), "ignored " + ", ".join(self.ignored) if self.ignored else ""]
        return "; ".join(filter(None, parts))


def generation_defaults(settings: Mapping[str, Any], positions: int) -> GenerationDefaults:
    """The defaults that a generation config sets, for a decoder with so many positions.

    `max_length` and `min_length` count the prompt's tokens, of which we know only the start token here. So they are
    exact where there is no prompt. What contradicts another setting, or has a value that our options cannot have, is
    ignored with it.
    """
    built_in = GenerationConfig._get_default_generation_params()
    settings = {
        name: value
        for name, value in settings.items()
        if value is not None and not name.startswith("_") and not any(part in name for part in BESIDES)
    }
    names = _names(settings)
    chosen: dict[str, Any] = {}
    for option, name in names.items():
        with suppress(InvalidInput):
            chosen[option] = check_value(option, _without_prompt(name, settings[name]))
    if chosen.get("max_tokens", 0) > positions:
        del chosen["max_tokens"]
    values = DEFAULTS | chosen
    for fault in faults(values):
        for option in () if fault.is_idle else fault.names:
            chosen.pop(option, None)
            values[option] = DEFAULTS[option]
    known = {names[option] for option in chosen}
    return GenerationDefaults(
        {option: value for option, value in chosen.items() if value != DEFAULTS[option]},
        sorted(name for name in settings if name not in known and settings[name] != built_in.get(name)),
    )


def _names(settings: Mapping[str, Any]) -> dict[str, str]:
    """What transformers calls our options, if a setting has that name. The first of two counts for it, too."""
    transformers_names = GenerationConfig().to_dict()
    found: dict[str, str] = {}
    for option, declared in OPTIONS.items():
        for name in declared.other_names or (option,):
            if name in settings and name in transformers_names:
                found.setdefault(option, name)
    return found


def _without_prompt(name: str, value: object) -> object:
    """A length in new tokens."""
    if name in ("max_length", "min_length") and type(value) is int:
        return max(value - START_TOKENS, 0)
    return value
