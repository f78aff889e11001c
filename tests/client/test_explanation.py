# SPDX-License-Identifier: Apache-2.0
"""Explanations, from the tensors to the files of pictures."""

import asyncio
import json
import subprocess
import sys
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from PIL import Image

from blipstream.options import EXPLAIN_OPTIONS, GIVEN_CAPTION, ExplainOptions
from blipstream_client import AsyncClient, Client, Explanation, InvalidImage, InvalidRequest, ServerError
from blipstream_client import ExplainOptions as ClientOptions
from blipstream_client import _pictures as pictures
from blipstream_client._explain_options import ALL_OPTIONS, explain_tensors
from blipstream_client._explanation import parse_explanation
from blipstream_client._info import resize_mode_of
from blipstream_client._tensors import Tensors

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "build" / "demo" / "samples"
CLOCK = "an-elephant-to-the-left-of-a-watch.jpg"


def tensors(*words: bytes) -> Tensors:
    """The outputs of a server that explains a caption of these words, each with a heatmap of its own patch."""
    attention = np.zeros((1, len(words), 4, 4), np.float32)
    for number in range(len(words)):
        attention[0, number].flat[number] = 1
    return {
        "caption": np.array([[b" ".join(words)]], np.object_),
        "score": np.array([[-1.5]], np.float32),
        "num_tokens": np.array([[2]], np.int32),
        "token_scores": np.array([[[-1, -0.5]]], np.float32),
        "words": np.array([words], np.object_),
        "attention": attention,
    }


@pytest.fixture
def explanation(jpeg: bytes) -> Explanation:
    return parse_explanation(tensors(b"a", b"dog", b"on", b"a", b"blue", b"car"), jpeg, "stretch", None)


def test_what_it_says(explanation: Explanation) -> None:
    assert str(explanation) == "a dog on a blue car"
    assert explanation.words == ("a", "dog", "on", "a", "blue", "car")
    assert explanation.attention.shape == (6, 4, 4)
    assert len(repr(explanation)) < 300  # no file, no numbers


def test_words_are_found(explanation: Explanation) -> None:
    def pixels(word: str | int) -> Any:
        return np.asarray(explanation.overlay(word))

    assert explanation.overlay("dog").size == (384, 288)  # the image is 8 x 6
    np.testing.assert_array_equal(pixels("dog"), pixels(1))
    np.testing.assert_array_equal(pixels("DOG"), pixels(1))
    np.testing.assert_array_equal(pixels("a"), pixels(0))  # the first one
    np.testing.assert_array_equal(pixels("car"), pixels(-1))
    both = explanation.attention[[4, 5]].mean(0)
    assert not np.array_equal(pixels("blue car"), pixels("car"))
    assert both[1, 0] == both[1, 1] == 0.5


@pytest.mark.parametrize(
    ("wanted", "number"),
    [
        ("bus", 1),
        ("bus,", 1),
        ("BUS!", 1),
        ("alarm-clock", slice(3, 6)),
        ("alarm - clock", slice(3, 6)),
        ("alarm clock", slice(3, 6)),
        ("-", 4),
        ("clock", 5),
        (np.int64(3), 3),
    ],
)
def test_punctuation_hides_no_word(jpeg: bytes, wanted: str | int, number: int | slice) -> None:
    """The model reads "alarm-clock" as three words."""
    words = [b"a", b"bus,", b"an", b"alarm", b"-", b"clock", b"and", b"\xe0\xa4\x95\xe0\xa4\xbf"]
    explanation = parse_explanation(tensors(*words), jpeg, "stretch", None)
    heatmap = explanation.attention[number].reshape(-1, 4, 4).mean(0)
    drawn = pictures.overlay(pictures.upright_picture(jpeg), heatmap, "stretch")
    np.testing.assert_array_equal(np.asarray(explanation.overlay(wanted)), np.asarray(drawn))


@pytest.mark.parametrize("word", ["cat", "", "dog a", "car on", "a.dog.a", "-", 6, -7, 10**400])
def test_words_that_it_does_not_have(explanation: Explanation, word: str | int) -> None:
    with pytest.raises(
        InvalidRequest, match=r"its words are a, dog, on, a, blue, car|has 6 words, so there is no number"
    ):
        explanation.overlay(word)


@pytest.mark.parametrize("word", [None, True, 1.0, (0, 1), b"dog", np.bool_(True)])
def test_what_is_no_word(explanation: Explanation, word: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^word must be a word of the caption, or its number, got "):
        explanation.overlay(word)


def test_a_caption_without_words(jpeg: bytes, tmp_path: Path) -> None:
    empty = parse_explanation(tensors(), jpeg, "stretch", None)
    assert empty.words == ()
    for draw in (empty.strip, lambda: empty.save_gif(tmp_path / "a.gif"), lambda: empty.overlay("a")):
        with pytest.raises(InvalidRequest, match="The caption is empty, so there is no word to show"):
            draw()
    assert not (tmp_path / "a.gif").exists()


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("nofolder/a.gif", "Cannot write 'nofolder/a.gif': No such file or directory"),
        ("a\0.gif", "Cannot write 'a.x00.gif': embedded null byte"),
        ("a.png", "path must be that of a file that ends in .gif, got 'a.png'"),
        (None, "path must be that of a file that ends in .gif, got None"),
        (7, "path must be that of a file that ends in .gif, got 7"),
    ],
)
def test_where_no_animation_can_be_written(explanation: Explanation, path: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{sentence}$"):
        explanation.save_gif(path)


def test_the_caption_is_the_one_that_is_explained(jpeg: bytes) -> None:
    answer = tensors(b"a", b"dog") | {
        "caption": np.array([[b"a cat", b"a dog", b""]], np.object_),
        "score": np.array([[-1, -2, -3]], np.float32),
        "num_tokens": np.array([[2, 1, 1]], np.int32),
        "token_scores": np.array([[[-0.5, -0.5], [-2, 0], [-3, 0]]], np.float32),
    }
    explanation = parse_explanation(answer, jpeg, "stretch", 1)
    assert str(explanation) == " ".join(explanation.words) == "a dog"
    assert (explanation.caption.score, explanation.caption.token_scores) == (-2, (-2,))
    assert [(each.text, each.alternatives) for each in explanation.caption.alternatives] == [("a cat", ()), ("", ())]
    with pytest.raises(ServerError, match=r"^Expected "):
        parse_explanation(answer, jpeg, "stretch", 3)


def test_a_line_is_not_drawn_on() -> None:
    Image.new("RGB", (1, 5000)).save(file := BytesIO(), "PNG")
    with pytest.raises(InvalidImage, match="it cannot be drawn on here: 1 x 5000 pixels is thinner than 1 to 32: crop"):
        parse_explanation(tensors(b"a"), file.getvalue(), "stretch", None).strip()


def test_a_file_that_cannot_be_drawn_on() -> None:
    with pytest.raises(InvalidImage, match="it cannot be drawn on here"):
        parse_explanation(tensors(b"a"), b"no image", "stretch", None).strip()


@pytest.mark.parametrize("missing", ["words", "attention", "caption"])
def test_a_model_that_does_not_explain(missing: str) -> None:
    answer = tensors(b"a")
    del answer[missing]
    with pytest.raises(ServerError, match=r"^Expected "):
        parse_explanation(answer, b"", "stretch", None)


def test_options_are_those_of_the_server() -> None:
    hints = get_type_hints(ExplainOptions)
    for field in fields(ExplainOptions):
        option = ALL_OPTIONS[field.name]
        assert (option.type.python, option.default) == (hints[field.name], field.default)
    assert set(get_type_hints(ClientOptions)) == set(ALL_OPTIONS)
    assert set(EXPLAIN_OPTIONS) < set(ALL_OPTIONS)


def test_options_as_tensors() -> None:
    found = explain_tensors({"layer": 2, "max_tokens": None}, "a dog")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"layer": [[2]], GIVEN_CAPTION: [[b"a dog"]]}
    with pytest.raises(InvalidRequest, match=r"^layer must be"):
        explain_tensors({"layer": "two"}, None)  # type: ignore[typeddict-item]
    with pytest.raises(InvalidRequest, match=r"^caption must be"):
        explain_tensors({}, 7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no option 'layers'"):
        explain_tensors({"layers": 2}, None)  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize(
    ("parameters", "mode"),
    [
        ({}, "stretch"),
        ({"option_defaults": '{"resize_mode": "letterbox"}'}, "letterbox"),
        ({"fixed_options": '{"resize_mode": "center_crop"}'}, "center_crop"),
    ],
)
def test_the_servers_own_resize_mode(parameters: dict[str, str], mode: str) -> None:
    assert resize_mode_of({"parameters": {name: {"string_value": text} for name, text in parameters.items()}}) == mode


# against the real server


@pytest.fixture
def url(server: Any, scheme: str) -> str:
    return str(getattr(server, f"{scheme}_url"))


def test_explain(url: str, kind: str, samples: dict[str, str]) -> None:
    async def ask() -> tuple[Explanation, Explanation]:
        async with AsyncClient(url) as client:
            found = await client.explain(SAMPLES / CLOCK)
            return found, await client.explain(
                SAMPLES / CLOCK, "a watch", layer=1, method="rollout", resize_mode="letterbox"
            )

    def wait() -> tuple[Explanation, Explanation]:
        with Client(url) as client:
            found = client.explain(SAMPLES / CLOCK)
            return found, client.explain(SAMPLES / CLOCK, "a watch", layer=1, method="rollout", resize_mode="letterbox")

    found, given = asyncio.run(ask()) if kind == "async" else wait()
    assert (found.caption.text, " ".join(found.words)) == (samples[CLOCK], samples[CLOCK])
    assert (found.resize_mode, given.resize_mode) == ("stretch", "letterbox")
    assert found.attention.shape == (len(found.words), 12, 12)
    assert (given.caption.text, given.words) == ("a watch", ("a", "watch"))
    np.testing.assert_allclose(given.attention.sum((1, 2)), 1, rtol=1e-5)
    left, right = (found.attention[found.words.index(word)].sum(0) for word in ("elephant", "watch"))
    assert left[:6].sum() > left[6:].sum()
    assert right[6:].sum() > right[:6].sum()


def test_another_than_the_best_caption(url: str, kind: str) -> None:
    options: dict[str, Any] = {"num_beams": 3, "num_captions": 3, "caption_index": 2}

    async def ask() -> Explanation:
        async with AsyncClient(url) as client:
            return await client.explain(SAMPLES / CLOCK, **options)

    with Client(url) as client:
        best = client.caption(SAMPLES / CLOCK, num_beams=3, num_captions=3)
        found = asyncio.run(ask()) if kind == "async" else client.explain(SAMPLES / CLOCK, **options)
    third = best.alternatives[1].text
    assert str(found) == found.caption.text == " ".join(found.words) == third != best.text
    assert [each.text for each in found.caption.alternatives] == [best.text, best.alternatives[0].text]


def test_a_streams_caption(url: str) -> None:
    with Client(url) as client:
        *_, last = client.stream(SAMPLES / CLOCK)
        assert last.caption
        explained = client.explain(SAMPLES / CLOCK, last.caption)
    assert explained.caption.text == last.caption.text
    assert explained.caption.score == pytest.approx(last.caption.score, abs=0.05)


@pytest.mark.parametrize(
    ("given", "options", "sentence"),
    [
        ("", {}, "a given caption must have a word, and this one has none: give one, or leave it out"),
        ("a 猫", {}, "a given caption must be of words that the model knows, and '猫' is none"),
        ("cat " * 64, {}, "a given caption must have at most 63 tokens, not 64: shorten it"),
        ("a cat", {"num_beams": 3}, "num_beams has no meaning beside a given caption: leave one of them out"),
        (None, {"layer": 12}, "layer must be between 0 and 2, or -1 for the mean of all, not 12"),
        (None, {"method": "guess"}, "method must be one of attention, rollout, gradient, not 'guess'"),
    ],
)
def test_mistakes_are_one_sentence(url: str, given: str | None, options: dict[str, Any], sentence: str) -> None:
    with Client(url) as client, pytest.raises(InvalidRequest) as caught:
        client.explain(SAMPLES / CLOCK, given, **options)
    assert str(caught.value).startswith(sentence)


def blipstream(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "blipstream_client", "explain", *arguments]
    return subprocess.run(command, cwd=ROOT / "client", capture_output=True, text=True, check=False)


def test_the_command_line(url: str, samples: dict[str, str], tmp_path: Path) -> None:
    image = str(SAMPLES / CLOCK)
    for name, more in (("all.png", []), ("all.gif", []), ("one.jpg", ["--word", "watch"])):
        done = blipstream(image, "--url", url, "--output", str(tmp_path / name), *more)
        assert (done.returncode, done.stdout) == (0, f"{image}: {samples[CLOCK]}\n")
        with Image.open(tmp_path / name) as picture:
            assert getattr(picture, "n_frames", 1) == (12 if name == "all.gif" else 1)
    done = blipstream(image, "--url", url, "--json", "--caption", "a watch", "--layer", "0")
    found = json.loads(done.stdout)
    assert (found["caption"], found["words"]) == ("a watch", ["a", "watch"])
    assert np.array(found["attention"]).shape == (2, 12, 12)


def test_the_command_line_prints_the_caption_that_is_explained(url: str) -> None:
    image = str(SAMPLES / CLOCK)
    arguments = [image, "--url", url, "--num-beams", "3", "--num-captions", "3", "--caption-index", "2"]
    found = json.loads(blipstream(*arguments, "--json").stdout)
    assert found["caption"] == " ".join(found["words"])
    assert found["caption"] not in [each["caption"] for each in found["alternatives"]]
    assert blipstream(*arguments).stdout == f"{image}: {found['caption']}\n"


def test_a_word_that_the_caption_does_not_have(url: str, tmp_path: Path) -> None:
    done = blipstream(str(SAMPLES / CLOCK), "--url", url, "--output", str(tmp_path / "a.png"), "--word", "dog")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: The caption has no 'dog'; its words are an, elephant, ")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--output", "a.bmp"], "--output must end in .png, .jpg, .jpeg, .webp or .gif, not 'a.bmp'"),
        (
            ["--output", "nowhere/a.png"],
            "There is no folder nowhere: make it by `mkdir -p nowhere`, or use another --output",
        ),
        (["--output", "a.gif", "--word", "dog"], "A GIF goes through all words: leave --word out, or write a PNG file"),
        (["--word", "dog"], "--word is for a picture: name its file with --output, too"),
    ],
)
def test_mistakes_are_found_before_anything_is_asked(arguments: list[str], sentence: str) -> None:
    done = blipstream("a.jpg", "--url", "grpc://localhost:1", *arguments)
    assert done.returncode == 2
    assert sentence in " ".join(done.stderr.split())
