# SPDX-License-Identifier: Apache-2.0
"""Options of commands whose numbers must be finite."""

import importlib

import click
import pytest
from click.testing import CliRunner

COMMANDS = (
    "blipstream.server.command",
    "blipstream_bench.command",
    "blipstream_loadtest.command",
    "blipstream_tune.command",
    "inflight",
    "soak",
)
OPTIONS = [
    (module, parameter.opts[0])
    for module in COMMANDS
    for parameter in importlib.import_module(module).main.params
    if isinstance(parameter.type, click.types.FloatParamType)
]


def test_there_are_such_options() -> None:
    assert {module for module, _ in OPTIONS} == set(COMMANDS)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(("module", "option"), OPTIONS)
def test_not_finite(module: str, option: str, number: str) -> None:
    result = CliRunner().invoke(importlib.import_module(module).main, [option, number])
    assert result.exit_code == 2
    words = f"Invalid value for '{option}': "
    assert words in result.stderr
    assert result.stderr.split(words)[1].startswith(("expected a finite number, got ", f"{number} is not in the range"))
