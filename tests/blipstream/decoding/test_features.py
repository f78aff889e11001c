# SPDX-License-Identifier: Apache-2.0
"""A step skips what no request uses, so each option has a feature here, or needs none."""

from contextlib import suppress

import pytest

from blipstream.decoding.features import Features
from blipstream.errors import InvalidInput
from blipstream.options import DEFAULTS, ONLY_WITH, OPTION_NAMES, SAMPLING, DecodingOptions

WITHOUT = {
    "adapter",  # these take effect elsewhere, in every step
    *("prompt", "include_prompt", "max_tokens", "num_captions"),
    *("num_beams", "length_penalty", "early_stopping"),
    *("do_sample", "temperature", "seed"),
}


def with_another(name: str) -> DecodingOptions:
    """Options in which this one has another value than its default."""
    for value in (DEFAULTS[name] + 1, DEFAULTS[name] / 2):
        with suppress(InvalidInput):
            return DecodingOptions(**{name: value}, do_sample=name in ONLY_WITH[SAMPLING])
    raise AssertionError(name)


@pytest.mark.parametrize("name", [name for name in OPTION_NAMES if name not in WITHOUT])
def test_each_option_that_a_step_may_skip_is_a_feature(name: str) -> None:
    assert Features.of(with_another(name)) != Features.of(DecodingOptions()), f"without a feature, {name} has no effect"


def test_options_without_a_feature_exist() -> None:
    assert set(OPTION_NAMES) > WITHOUT
