# SPDX-License-Identifier: Apache-2.0
"""Captions that matching has chosen: how answers are read, and both clients and the command line on a real server."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from blipstream.options import RERANK_DEFAULTS
from blipstream.options import RERANK_OPTIONS as DECLARED
from blipstream_client import AsyncClient, Caption, Client, Dropped, InvalidRequest, ModelNotReady, ServerError
from blipstream_client._captions import parse_caption
from blipstream_client._cli import main
from blipstream_client._rerank_options import RERANK_OPTIONS

Ask = Callable[..., list[Any]]  # a URL, images and options
SAMPLED = {"do_sample": True, "temperature": 3.0, "rerank": 8}


@pytest.fixture
def image(samples_folder: Path) -> Path:
    return samples_folder / "two-whales.jpg"


@pytest.fixture
def ask(kind: str) -> Ask:
    """What `caption` gives for the first image, and `caption_many` for the others, of either client."""

    async def ask_async(url: str, first: Path, *others: Path, **options: Any) -> list[Any]:
        async with AsyncClient(url) as client:
            caption = await client.caption(first, **options)
            return [caption, *[result async for result in client.caption_many(others, **options)]]

    def ask(url: str, first: Path, *others: Path, **options: Any) -> list[Any]:
        if kind == "async":
            return asyncio.run(ask_async(url, first, *others, **options))
        with Client(url) as client:
            return [client.caption(first, **options), *client.caption_many(others, **options)]

    return ask


def outputs(captions: list[bytes], dropped: list[bytes], **changes: Any) -> dict[str, Any]:
    count = len(captions)
    numbers = np.arange(1, count + 1, dtype=np.float32)[None]
    return {
        "caption": np.array(captions, np.object_).reshape(1, -1),
        "score": -numbers,
        "num_tokens": np.full((1, count), 2, np.int32),
        "token_scores": np.zeros((1, count, 2), np.float32),
        "match": numbers / 4,
        "logit": numbers,
        "dropped": np.array(dropped, np.object_).reshape(1, -1),
        "dropped_match": np.full((1, len(dropped)), 0.125, np.float32),
    } | changes


def test_a_caption_with_what_matching_says() -> None:
    caption = parse_caption(outputs([b"a cat", b"two cats"], [b"a dog"]))
    assert (caption.text, caption.match, caption.logit) == ("a cat", 0.25, 1)
    (other,) = caption.alternatives
    assert (other.text, other.match, other.logit, other.score) == ("two cats", 0.5, 2, -2)
    assert caption.dropped == (Dropped("a dog", 0.125),)
    assert str(caption.dropped[0]) == "a dog"
    assert caption.why_empty == ""


@pytest.mark.parametrize(
    ("dropped", "reason"),
    [
        ([b"a dog"], "the only caption, 'a dog', matches with 0.125"),
        ([b"a dog", b"a cat"], "the best of 2 captions, 'a dog', matches with 0.125"),
    ],
)
def test_no_caption_is_left(dropped: list[bytes], reason: str) -> None:
    caption = parse_caption(outputs([], dropped))
    assert (caption.text, caption.num_tokens, caption.match, caption.alternatives) == ("", 0, None, ())
    assert caption.why_empty == f"No caption matches well enough: {reason}"


@pytest.mark.parametrize(
    ("texts", "match", "least", "reason"),
    [
        ([b"a dog"], 0.4999, 0.5, "matches well enough: the only caption, 'a dog', matches with 0.499, and"),
        ([b"a dog"], 0.00005, 0.5, "matches well enough: the only caption, 'a dog', matches with less than 0.001, and"),
        ([b"a dog"], 0.0, 0.6, "matches well enough: the only caption, 'a dog', matches with less than 0.001, and"),
        ([b""], 0.0, 0.5, "has words to match: the only caption is ''"),
        ([b"", b"."], 0.0, None, "has words to match: the best of 2 captions is ''"),
        (["日本".encode()], 0.0, None, "has words to match: the only caption is '日本'"),
    ],
)
def test_the_reason_names_what_was_asked(texts: list[bytes], match: float, least: float | None, reason: str) -> None:
    matches = np.full((1, len(texts)), match, np.float32)
    sent = {} if least is None else {"min_match": np.array([[least]], np.float32)}
    why = parse_caption(outputs([], texts, dropped_match=matches), sent).why_empty
    assert why == f"No caption {reason}" + (f" min_match is {least}" if why.endswith(f"{least}") else "")
    assert ("min_match" in why) == reason.endswith("and")


@pytest.mark.parametrize("changes", [{"match": np.zeros((1, 3))}, {"logit": None}, {"dropped_match": np.zeros(2)}])
def test_answers_of_another_model(changes: dict[str, Any]) -> None:
    tensors = outputs([b"a cat"], [b"a dog"], **changes)
    with pytest.raises(ServerError, match="Expected match and logit of shape"):
        parse_caption({name: tensor for name, tensor in tensors.items() if tensor is not None})


def test_nothing_at_all_is_no_answer() -> None:
    with pytest.raises(ServerError, match="is it a captioning model"):
        parse_caption(outputs([], []))


def test_options_are_those_of_the_server() -> None:
    assert RERANK_OPTIONS.keys() == DECLARED.keys()
    for name, option in RERANK_OPTIONS.items():
        assert (option.default, option.low, option.high) == (
            RERANK_DEFAULTS[name],
            DECLARED[name].low,
            DECLARED[name].high,
        )


def test_the_real_server(ask: Ask, scheme: str, demo_server: Any, image: Path) -> None:
    url = getattr(demo_server, f"{scheme}_url")
    for caption in ask(url, image, image, **SAMPLED, num_captions=3):
        assert caption.match is not None
        logits = [each.logit for each in (caption, *caption.alternatives)]
        assert len(logits) == 3
        assert logits == sorted(logits, reverse=True)
    for none in ask(url, image, image, **SAMPLED, min_match=1.0):
        assert (none.text, none.match) == ("", None)
        assert len(none.dropped) > 1
    (only,) = ask(url, image, min_match=0.5)  # without `rerank`, as many as come back
    assert (only.match > 0.5, only.alternatives, only.dropped) == (True, (), ())
    with pytest.raises(InvalidRequest, match="rerank must be at most num_beams, which is 1, not 8: raise num_beams"):
        ask(url, image, rerank=8)


def test_a_server_without_matching_says_what_it_has(ask: Ask, scheme: str, server: Any, image: Path) -> None:
    for options in ({"rerank": 2}, {"min_match": 0.5}):
        with pytest.raises(ModelNotReady) as missing:
            ask(getattr(server, f"{scheme}_url"), image, **options)
        assert str(missing.value) == "This server has no rerank; it has caption, caption_stream, explain"


def test_streams_take_no_such_options(image: Path) -> None:
    told = "There is no option 'rerank' here: only caption and caption_many take it"
    with Client() as client:
        with pytest.raises(TypeError, match=told):
            client.stream(image, rerank=2)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match=told):
            client.explain(image, rerank=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=told):
        AsyncClient().stream(image, rerank=2)  # type: ignore[call-arg]


def test_the_command_line(demo_server: Any, server: Any, image: Path) -> None:
    def run(*arguments: str, url: str = demo_server.grpc_url) -> tuple[int, str, str]:
        result = CliRunner().invoke(main, ["caption", str(image), "--url", url, *arguments])
        return result.exit_code, result.stdout, result.stderr

    sampled = ["--rerank", "8", "--do-sample", "--temperature", "3"]
    status, out, err = run(*sampled, "--min-match", "0", "--json", "--num-captions", "2")
    assert (status, err) == (0, "")
    printed = json.loads(out)
    assert printed["match"] >= printed["alternatives"][0]["match"] >= 0
    assert printed["logit"] > printed["alternatives"][0]["logit"]
    status, out, err = run(*sampled, "--min-match", "1")
    assert (status, out) == (0, "")
    assert f"{image}: No caption matches well enough: the best of" in " ".join(err.split())
    status, out, err = run(*sampled, "--min-match", "1", "--json")
    printed = json.loads(out)
    assert (status, err, printed["caption"], printed["score"]) == (0, "", None, None)
    assert printed["dropped"][0].keys() == {"caption", "match"}
    assert printed["why_empty"].endswith(", and min_match is 1")
    status, out, err = run("--stream", "--rerank", "2")
    assert (status, out) == (2, "")
    assert "Error: --stream prints words before captions can be compared: leave it or --rerank out" in err
    assert "leave it or --min-match out" in run("--stream", "--min-match", "0.5")[2]
    assert run("--stream")[0] == 0
    status, out, err = run("--min-match", "0.5", url=server.grpc_url)
    assert (status, out, err) == (1, "", "Error: This server has no rerank; it has caption, caption_stream, explain\n")


def test_a_caption_of_the_model_caption_is_as_before() -> None:
    plain = {name: tensor for name, tensor in outputs([b"a cat"], []).items() if name not in ("match", "logit")}
    del plain["dropped"], plain["dropped_match"]
    assert parse_caption(plain) == Caption("a cat", -1, 2, (0, 0))
