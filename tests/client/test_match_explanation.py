# SPDX-License-Identifier: Apache-2.0
"""Where the words of a text meet the image, from both clients and from the command line."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from blipstream_client import AsyncClient, Client, InvalidRequest, MatchExplanation, ServerError
from blipstream_client._cli import main
from blipstream_client._explanation import parse_match_explanation
from blipstream_client._tensors import Tensors

TEXT = "two whales"


@pytest.fixture
def image(samples_folder: Path) -> Path:
    return samples_folder / "two-whales.jpg"


def tensors() -> Tensors:
    """The outputs for a text of two words, of which only the first meets the image."""
    attention = np.zeros((1, 2, 4, 4), np.float32)
    attention[0, 0, 1, 1] = 1
    scores = {"match": np.array([[0.75]], np.float32), "logit": np.array([[1.5]], np.float32)}
    return {"words": np.array([[b"red", b"boat"]], np.object_), "attention": attention, **scores}


def test_what_it_says(jpeg: bytes, tmp_path: Path) -> None:
    explanation = parse_match_explanation(tensors(), jpeg, "stretch")
    assert str(explanation) == "red boat"
    assert (explanation.match, explanation.logit) == (0.75, 1.5)
    assert explanation.overlay("red").tobytes() != explanation.overlay("boat").tobytes()  # which stays dim
    assert explanation.strip().width > explanation.overlay(0).width
    explanation.save_gif(tmp_path / "a.gif")
    with pytest.raises(InvalidRequest, match="The text has no 'dog'; its words are red, boat"):
        explanation.overlay("dog")


@pytest.mark.parametrize("missing", ["words", "attention", "match", "logit"])
def test_a_model_that_does_not_explain(missing: str) -> None:
    answer = tensors()
    del answer[missing]
    with pytest.raises(ServerError, match=r"^Expected "):
        parse_match_explanation(answer, b"", "stretch")


def test_the_real_server(matching_server: Any, kind: str, scheme: str, image: Path) -> None:
    url = getattr(matching_server, f"{scheme}_url")
    options: dict[str, Any] = {"layer": 0, "head": 1, "resize_mode": "letterbox"}

    async def ask() -> tuple[MatchExplanation, MatchExplanation]:
        async with AsyncClient(url) as client:
            return await client.explain_match(image, TEXT), await client.explain_match(image, TEXT, **options)

    with Client(url) as client:
        matches = client.match(image, [TEXT])
        if kind == "async":
            found, other = asyncio.run(ask())
        else:
            found, other = client.explain_match(image, TEXT), client.explain_match(image, TEXT, **options)
    assert found.words == other.words == ("two", "whales")
    assert (found.resize_mode, other.resize_mode) == ("stretch", "letterbox")
    assert found.attention.shape == (2, 12, 12)
    assert found.match == pytest.approx(matches[0].match, abs=1e-4)
    assert found.logit == pytest.approx(matches[0].logit, abs=1e-4)
    assert not np.allclose(found.attention, other.attention)


def test_what_is_refused(matching_server: Any, image: Path) -> None:
    with Client(matching_server.grpc_url) as client:
        with pytest.raises(InvalidRequest, match="text must be of words that the model knows, and 'киты' is none"):
            client.explain_match(image, "two киты")
        with pytest.raises(InvalidRequest, match="layer must be between 0 and 1, or -1 for the mean of all, not 2"):
            client.explain_match(image, TEXT, layer=2)
        with pytest.raises(InvalidRequest, match=r"^A text must be str, got \['a'\]"):
            client.explain_match(image, ["a"])  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"no option 'heads': did you mean head\?"):
            client.explain_match(image, TEXT, heads=1)  # type: ignore[call-arg]


def test_the_command_line(matching_server: Any, image: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["explain", str(image), "--url", matching_server.grpc_url, *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    line = run("--match", TEXT, "--output", str(tmp_path / "a.png"), "--word", "whales", "--layer", "0")
    found = json.loads(run("--match", TEXT, "--layer", "0", "--json"))
    assert line == f"{image}: {found['match']:.3f}  two whales\n"
    assert (found["text"], found["words"]) == (TEXT, ["two", "whales"])
    assert np.array(found["attention"]).shape == (2, 12, 12)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (384, 384)


@pytest.mark.parametrize("flag", ["--caption=a dog", "--num-beams=3", "--method=gradient"])
def test_options_for_captions(flag: str) -> None:
    done = CliRunner().invoke(main, ["explain", "a.jpg", "--match", TEXT, flag])
    assert done.exit_code == 2
    name = flag.partition("=")[0]
    sentence = f"--match explains a text, and {name} is for captions: leave one of them out"
    assert sentence in " ".join(done.output.split())
