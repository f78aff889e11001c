# SPDX-License-Identifier: Apache-2.0
"""Where defaults come from, what is refused, and that models read what the server wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blipstream.defaults import from_operator, from_parameters, over, shown, to_parameters
from blipstream.errors import ServerError
from blipstream.options import DecodingOptions, OptionDefaults
from blipstream.server.command import main
from tests.conftest import CHECKPOINT, ROOT
from tests.support.terminal import sentence

FILE = """
[default]
num_beams = 3
length_penalty = 2
prompt = 'a "quoted" café'

[fixed]
max_tokens = 20
include_prompt = true
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "defaults.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_the_command_line() -> None:
    given = ("max_tokens=20", "temperature=0.1", "do_sample=True", "prompt=a = b", "seed=-1")
    values = {"max_tokens": 20, "temperature": 0.1, "do_sample": True, "prompt": "a = b", "seed": -1}
    assert from_operator(given) == OptionDefaults(values)
    assert from_operator(["resize_mode=letterbox"], ["top_k=5"]) == OptionDefaults(
        {"top_k": 5}, frozenset({"top_k"}), "letterbox"
    )
    assert from_operator() == OptionDefaults()


def test_a_file_and_the_command_line_which_wins(file: Path) -> None:
    values = {
        "num_beams": 3,
        "length_penalty": 2.0,
        "prompt": 'a "quoted" café',
        "max_tokens": 20,
        "include_prompt": True,
    }
    fixed = frozenset({"max_tokens", "include_prompt"})
    assert from_operator(file=file) == OptionDefaults(values, fixed)
    assert from_operator(["num_beams=5"], ["max_tokens=9"], file) == OptionDefaults(
        values | {"num_beams": 5, "max_tokens": 9}, fixed
    )
    assert from_operator(["max_tokens=9"], ["num_beams=5"], file) == OptionDefaults(
        values | {"num_beams": 5, "max_tokens": 9}, frozenset({"num_beams", "include_prompt"})
    )


@pytest.mark.parametrize(
    ("default", "fixed", "sentence"),
    [
        (["max_token=2"], [], "--default max_token=2: there is no option 'max_token': did you mean max_tokens?"),
        ([], ["max_length=2"], "--fixed max_length=2: there is no option 'max_length': did you mean max_tokens?"),
        (["image=x"], [], "--default image=x: there is no option 'image': there are resize_mode, prompt, "),
        (["max_tokens"], [], "--default max_tokens: expected NAME=VALUE, such as max_tokens=20"),
        (["max_tokens=2.5"], [], "--default max_tokens=2.5: max_tokens must be a whole number, not '2.5'"),
        (["max_tokens=2_0"], [], "max_tokens must be a whole number, not '2_0'"),
        (["temperature=x"], [], "temperature must be a number, not 'x'"),
        (["temperature=nan"], [], "temperature must be between 0.01 and 100, not nan"),
        (["do_sample=1"], [], "do_sample must be true or false, not '1'"),
        (["resize_mode=crop"], [], "resize_mode must be one of stretch, center_crop, letterbox, not 'crop'"),
        (
            ["num_beams=3,max_tokens=9"],
            [],
            "not '3,max_tokens=9': several stand in options of their own, or in the env",
        ),
        (["max_tokens=0"], [], "--default max_tokens=0: max_tokens must be at least 1, not 0"),
        ([], ["top_p=2"], "--fixed top_p=2.0: top_p must be "),
        (["top_k=1", "top_k=2"], [], "--default top_k=2: top_k is given twice: leave one out"),
        (
            ["top_k=1"],
            ["top_k=2"],
            "--default top_k=1 and --fixed top_k=2: top_k has a default and is fixed, too: leave one of them out",
        ),
        (
            ["do_sample=true"],
            ["num_beams=2"],
            "--default do_sample=true and --fixed num_beams=2: do_sample and num_beams above 1 exclude each other",
        ),
        (["num_captions=2"], [], "num_captions must be at most num_beams, which is 1, not 2: raise num_beams, or"),
        (["min_tokens=31"], [], "min_tokens must be between 0 and 30 (max_tokens), not 31"),
    ],
)
def test_what_is_refused(default: list[str], fixed: list[str], sentence: str) -> None:
    with pytest.raises(ServerError) as caught:
        from_operator(default, fixed)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[default", "cannot be read as TOML: Expected ']'"),
        (
            "[defaults]",
            "must have the tables [default] and [fixed] alone, and it has defaults: did you mean [default]?",
        ),
        ("[fixd]", "must have the tables [default] and [fixed] alone, and it has fixd: did you mean [fixed]?"),
        ("[a]", "must have the tables [default] and [fixed] alone, and it has a"),
        ("max_tokens = 5", "and it has max_tokens outside them: write [default] or [fixed] on a line above max_tokens"),
        ("[default]\nmax_tokens = 0", " [default] max_tokens=0: max_tokens must be at least 1, not 0"),
        ("[fixed]\nnum_captions = 3", " [fixed] num_captions=3: num_captions must be at most num_beams"),
        ("[fixed]\nnum_beam = 5", " [fixed]: there is no option 'num_beam': did you mean num_beams?"),
        ("[fixed]\nnum_beams = true", "num_beams must be a whole number, not True"),
        ("[fixed]\nprompt = ['a']", "prompt must be text, not ['a']"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "defaults.toml"
    path.write_text(text)
    with pytest.raises(ServerError) as caught:
        from_operator(file=path)
    assert str(caught.value).startswith(str(path))
    assert sentence in str(caught.value)


def test_a_checkpoints_defaults_lie_below_the_operators() -> None:
    checkpoint = {"num_beams": 3, "length_penalty": 2.0, "max_tokens": 40}
    assert over(OptionDefaults(), checkpoint) == OptionDefaults(checkpoint)
    # idle for now: a request may ask for beams
    assert over(from_operator(["num_beams=1"]), checkpoint).values == {"length_penalty": 2.0, "max_tokens": 40}
    sampling = over(from_operator(["do_sample=true"]), checkpoint).values
    assert sampling == {"do_sample": True, "length_penalty": 2.0, "max_tokens": 40}
    fixed = over(from_operator([], ["max_tokens=30"]), checkpoint)
    assert fixed == OptionDefaults(checkpoint | {"max_tokens": 30}, frozenset({"max_tokens"}))


def test_a_fault_names_each_place_that_it_comes_from(file: Path) -> None:
    """A default that the command line replaces is not named."""
    with pytest.raises(ServerError) as caught:
        from_operator(["do_sample=true"], file=file)
    assert str(caught.value).startswith(f"--default do_sample=true and {file} [default] num_beams=3: ")
    with pytest.raises(ServerError, match=r"^--default num_beams=0: num_beams must be"):
        from_operator(["num_beams=0"], file=file)
    with pytest.raises(ServerError, match=r'^--default prompt="x{52}…: prompt must have at most 4,096 characters'):
        from_operator([f"prompt={'x' * 5000}"])


def test_models_read_what_the_server_wrote(file: Path) -> None:
    for defaults in (OptionDefaults(), from_operator(file=file), from_operator([], ["resize_mode=letterbox"])):
        assert from_parameters(to_parameters(defaults)) == defaults
    written = to_parameters(from_operator(file=file))
    assert json.loads(written["option_defaults"]) == {
        "num_beams": 3,
        "length_penalty": 2.0,
        "prompt": 'a "quoted" café',
        "max_tokens": 20,
    }
    assert json.loads(written["fixed_options"]) == {"max_tokens": 20, "include_prompt": True}
    assert to_parameters(from_operator(["resize_mode=stretch", "top_k=0"])) == {}


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"option_defaults": "max_tokens"}, "option_defaults is no JSON"),
        ({"fixed_options": "[]"}, "fixed_options must be a JSON object, not []"),
        ({"option_defaults": '{"max_tokens": "5"}'}, "max_tokens must be a whole number, not '5'"),
        ({"option_defaults": '{"num_captions": 2}'}, "num_captions must be at most num_beams, which is 1, not 2"),
    ],
)
def test_parameters_that_are_wrong(parameters: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ServerError) as caught:
        from_parameters(parameters)
    assert f"the defaults in its config are not allowed: {sentence}" in str(caught.value)


def test_they_are_shown_in_one_line(file: Path) -> None:
    assert shown(OptionDefaults()) == ""
    assert shown(from_operator(["max_tokens=5", "do_sample=true"])) == "default max_tokens=5, do_sample=true"
    line = 'default num_beams=3, length_penalty=2.0, prompt="a \\"quoted\\" café"; '
    line += "fixed max_tokens=20, include_prompt=true"
    assert shown(from_operator(file=file)) == line


def test_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values may have spaces, so semicolons are between several."""
    monkeypatch.setenv("BLIPSTREAM_DEFAULT", "prompt=a picture of;max_tokens=5")
    monkeypatch.setenv("BLIPSTREAM_FIXED", "")
    given = main.make_context("serve", []).params
    assert (given["default"], given["fixed"]) == (("prompt=a picture of", "max_tokens=5"), ())
    assert from_operator(["num_beams=3", "", " "]).values == {"num_beams": 3}  # of semicolons that follow each other


@pytest.mark.parametrize("name", ["DEFAULT", "FIXED"])
def test_a_fault_of_the_environment_names_its_variable(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "blipstream.server", f"--repository={tmp_path}"]
    settings = {f"BLIPSTREAM_{name}": "num_beams=33"}
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: BLIPSTREAM_{name} num_beams=33: num_beams must be")


def test_a_wrong_default_is_reported_before_anything_is_built(tmp_path: Path) -> None:
    arguments = [f"--repository={tmp_path}", "--fixed=max_token=5", str(CHECKPOINT)]
    command = [sys.executable, "-m", "blipstream.server", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    told = "Error: --fixed max_token=5: there is no option 'max_token': did you mean max_tokens?"
    assert (done.returncode, done.stdout, sentence(done.stderr)) == (1, "", told)
    assert not any(tmp_path.iterdir())


@given(st.floats(0.01, 100))
def test_a_fraction_is_what_a_request_would_make_of_it(value: float) -> None:
    sent = DecodingOptions.from_tensors({"repetition_penalty": np.array([value], np.float32)})
    assert from_operator([f"repetition_penalty={value}"]).options({}) == sent
