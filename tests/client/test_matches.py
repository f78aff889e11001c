# SPDX-License-Identifier: Apache-2.0
"""Matches and embeddings: what is sent, how answers are read, and both clients against the real server."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from blipstream.config import CheckpointConfig
from blipstream_client import (
    AsyncClient,
    BlipstreamError,
    Client,
    InvalidRequest,
    Match,
    Matches,
    Matching,
    ModelNotReady,
    ServerError,
)
from blipstream_client._cli import main
from blipstream_client._cli_output import print_info
from blipstream_client._info import parse_info
from blipstream_client._matches import parse_embedding, parse_matches, text_tensors

TEXTS = ["a cat", "two whales", "a dog above a door"]
Ask = Callable[..., Any]  # a method's name and its arguments


@pytest.fixture
def image(samples_folder: Path) -> Path:
    return samples_folder / "two-whales.jpg"


@pytest.fixture
def ask(kind: str) -> Ask:
    """Calls a method of either client."""

    async def ask_async(url: str, method: str, *arguments: Any, **options: Any) -> Any:
        async with AsyncClient(url) as client:
            return await getattr(client, method)(*arguments, **options)

    def ask(url: str, method: str, *arguments: Any, **options: Any) -> Any:
        if kind == "async":
            return asyncio.run(ask_async(url, method, *arguments, **options))
        with Client(url) as client:
            return getattr(client, method)(*arguments, **options)

    return ask


def outputs(**changes: Any) -> dict[str, Any]:
    scores = {"match": [[0.25, 0.5]], "logit": [[-1.0, 0.0]], "similarity": [[0.5, 0.25]]}
    return {name: np.array(values, np.float32) for name, values in scores.items()} | changes


def test_matches() -> None:
    matches = parse_matches(["a", "b"], outputs())
    assert list(matches) == [Match("a", 0.25, -1.0, 0.5), Match("b", 0.5, 0.0, 0.25)]
    assert matches.best.text == "b"
    assert [each.text for each in matches.ranked] == ["b", "a"]


@pytest.mark.parametrize(
    "changes", [{"match": None}, {"logit": np.zeros(2)}, {"similarity": np.zeros((1, 3))}], ids=["none", "flat", "many"]
)
def test_answers_of_another_model(changes: dict[str, Any]) -> None:
    with pytest.raises(ServerError, match="Expected match, logit and similarity of shape"):
        parse_matches(["a", "b"], {name: value for name, value in outputs(**changes).items() if value is not None})
    with pytest.raises(ServerError, match="Expected embedding of shape"):
        parse_embedding(outputs())


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ("a cat", "texts must be a list of texts, got 'a cat'"),
        ([], "texts must have at least one text, got none"),
        (["a", 1], "A text must be str, got 1"),
        (["\ud800"], "A text must be one that UTF-8 can hold"),
    ],
)
def test_what_is_not_sent(texts: Sequence[str], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        text_tensors(texts, None)


def test_truncate_is_a_switch() -> None:
    with pytest.raises(InvalidRequest, match="truncate must be True or False, got 1"):
        text_tensors(["a"], 1)  # type: ignore[arg-type]


async def _later(texts: Sequence[str]) -> AsyncIterator[str]:
    for text in texts:
        yield text


def test_the_real_server(ask: Ask, kind: str, scheme: str, matching_server: Any, image: Path) -> None:
    url = getattr(matching_server, f"{scheme}_url")
    matches = ask(url, "match", image, TEXTS)
    assert isinstance(matches, Matches)
    assert [each.text for each in matches] == TEXTS
    given = _later(TEXTS) if kind == "async" else iter(TEXTS)
    assert [each.text for each in ask(url, "match", image, given)] == TEXTS
    of_image, of_text = ask(url, "embed_image", image), ask(url, "embed_text", TEXTS[1])
    assert of_image.shape == of_text.shape == (256,)
    assert of_image @ of_text == pytest.approx(matches[1].similarity, abs=1e-4)
    with pytest.raises(InvalidRequest, match="text must have at most 62 tokens, not 100: shorten it, or set truncate"):
        ask(url, "match", image, ["a " * 100])
    assert len(ask(url, "match", image, ["a " * 100], truncate=True, resize_mode="letterbox")) == 1


def test_a_server_without_matching_says_what_it_has(ask: Ask, scheme: str, server: Any, image: Path) -> None:
    url = getattr(server, f"{scheme}_url")
    asked: dict[str, tuple[Any, ...]] = {
        "match": (image, TEXTS),
        "explain_match": (image, "a"),
        "embed_image": (image,),
        "embed_text": ("a",),
    }
    for method, arguments in asked.items():
        with pytest.raises(ModelNotReady) as missing:
            ask(url, method, *arguments)
        assert str(missing.value) == f"This server has no {method}; it has caption, caption_stream, explain"
        assert isinstance(missing.value, BlipstreamError)


def test_info_tells_what_is_served(ask: Ask, scheme: str, matching_server: Any, server: Any) -> None:
    captioning = ("caption", "caption_stream", "explain")
    matching = ("match", "explain_match", "embed_image", "embed_text")
    both, captioner = (ask(getattr(each, f"{scheme}_url"), "info") for each in (matching_server, server))
    assert both.models == (*captioning, "rerank", *matching)
    assert [*both.runtimes.items()][1:] == [
        ("encoder", "openvino"),
        ("decoder", "python"),
        ("match_encoder", "openvino"),
        ("matcher", "openvino"),
    ]
    config = CheckpointConfig.load(matching_server.repository / "matcher/1/openvino")
    assert both.matching == Matching(f"{config.checkpoint}@{config.revision}", "f32", shares_encoder=False)
    assert both.checkpoint.startswith("emoji-demo@")
    assert (captioner.models, captioner.matching) == (captioning, None)
    assert {*both.options} - {*captioner.options} == {"rerank", "min_match"}


@pytest.mark.parametrize(("encoder", "told"), [("encoder", ", with the captioner's encoder"), ("match_encoder", "")])
def test_whose_encoder_sees_the_images(encoder: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    def config(name: str, *steps: str, **parameters: str) -> dict[str, Any]:
        return {
            "name": name,
            "platform": name,
            "input": [],
            "ensemble_scheduling": {"step": [{"model_name": step} for step in steps]},
            "parameters": {key: {"string_value": value} for key, value in parameters.items()},
        }

    match = config("match", "preprocess", encoder, "matcher", checkpoint="coco@0123456789abcdef")
    parts = {"matcher": config("matcher", dtype="bf16")}
    info = parse_info({"version": "2", "name": "base@0"}, config("caption"), parts, ["match"], match)
    assert info.matching == Matching("coco@0123456789abcdef", "bf16", encoder == "encoder")
    print_info(info)
    assert f"matching    coco@0123456789ab in bf16{told}\n" in capsys.readouterr().out


def test_the_command_line(matching_server: Any, image: Path) -> None:
    options = ["--url", matching_server.grpc_url]
    result = CliRunner().invoke(main, ["match", str(image), *TEXTS, *options])
    assert result.exit_code == 0, result.output
    lines = [line.split("  ", 1) for line in result.stdout.splitlines()]
    assert [text for _, text in lines] == TEXTS
    assert all(0 <= float(probability) <= 1 for probability, _ in lines)
    result = CliRunner().invoke(main, ["match", str(image), *TEXTS, *options, "--json"])
    printed = json.loads(result.stdout)
    assert printed["file"] == str(image)
    assert [each["text"] for each in printed["matches"]] == TEXTS
    assert set(printed["matches"][0]) == {"text", "match", "logit", "similarity"}
