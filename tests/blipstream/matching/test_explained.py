# SPDX-License-Identifier: Apache-2.0
"""Where the words of a text meet the image, as transformers' attention and torch's gradients say."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from blipstream.errors import ArtifactError, InvalidInput
from blipstream.matching import Job, Matcher
from blipstream.matching.turns import Turns
from blipstream.options import ExplainOptions
from tests.conftest import SAMPLES
from tests.support.retrieval import RetrievalReference

TOLERANCE = 1e-4
LAYERS, HEADS = 3, 4  # of the demo
TEXTS = ["a", "Two BUTTERFLIES", "a cat on a blue background and a dog above a door and a quark"]


@pytest.fixture(scope="module")
def matcher(matching_artifacts: Path) -> Matcher:
    return Matcher.load("openvino", matching_artifacts / "matcher/1/openvino")


@pytest.fixture(scope="module")
def torch_matcher(matching_artifacts: Path) -> Matcher:
    """Another runtime, which finds what it needs in the same artifact."""
    return Matcher.load("torch", matching_artifacts / "matcher/1/openvino")


@pytest.fixture(scope="module")
def embeds(retrieval_reference: RetrievalReference) -> Tensor:
    paths = sorted(SAMPLES.glob("*.jpg"))[: len(TEXTS)]
    return torch.stack([retrieval_reference.image_embeds(Image.open(path)) for path in paths])


def job(matcher: Matcher, image_embeds: Tensor, text: str, layer: int = -1, head: int = -1) -> Job:
    ids = matcher.reader.read_explained(text.encode())
    return Job([ids], image_embeds.numpy(), embeds_texts=False, explain=ExplainOptions(layer=layer, head=head))


@pytest.mark.parametrize("runtime", ["matcher", "torch_matcher"])
@pytest.mark.parametrize("layer", range(-1, LAYERS - 1))
def test_equals_transformers(
    request: pytest.FixtureRequest,
    retrieval_reference: RetrievalReference,
    embeds: Tensor,
    runtime: str,
    layer: int,
) -> None:
    """In each layer and head, beside texts that are only matched."""
    matcher: Matcher = request.getfixturevalue(runtime)
    pairs = list(zip(embeds, TEXTS, strict=True))
    heads = [-1, layer + 1, HEADS - 1]
    jobs = [job(matcher, *pair, layer, head) for pair, head in zip(pairs, heads, strict=True)]
    plain = [Job(matcher.reader.read([text.encode()]), image.numpy()) for image, text in pairs]
    matcher.finish([*jobs, *plain])
    for done, matched, head, (image, text) in zip(jobs, plain, heads, pairs, strict=True):
        theirs = retrieval_reference.maps(image, text)
        of_heads = theirs.layers.mean(1) if head < 0 else theirs.layers[:, head]
        expected = of_heads.sum(0) if layer < 0 else of_heads[layer]
        expected = expected / expected.sum((1, 2), keepdim=True).clamp(min=1e-30)  # where none is positive, all are 0
        assert done.explanation
        assert done.explanation.words == theirs.words
        np.testing.assert_allclose(done.explanation.attention, expected.numpy(), rtol=0, atol=TOLERANCE)
        for each in (done, matched):
            np.testing.assert_allclose(each.logits[0], theirs.logit, rtol=0, atol=TOLERANCE)


def test_an_artifact_of_an_earlier_version(matching_artifacts: Path, tmp_path: Path, embeds: Tensor) -> None:
    """It matches, and has no weights for gradients."""
    folder = shutil.copytree(matching_artifacts / "matcher/1/openvino", tmp_path / "openvino")
    (folder / "text_encoder.safetensors").unlink()
    matcher = Matcher.load("openvino", folder)
    matcher.finish([Job(matcher.reader.read([b"a"]), embeds[0].numpy())])
    with pytest.raises(ArtifactError, match=r"text_encoder\.safetensors cannot be loaded: build it"):
        matcher.finish([job(matcher, embeds[0], "a")])


def test_one_at_a_time(matcher: Matcher, embeds: Tensor) -> None:
    """So that a text that is only matched waits for one of them at most before its turn."""
    turns = Turns()
    jobs = [job(matcher, image, TEXTS[1]) for image in embeds]
    matched = Job(matcher.reader.read([b"a"]), embeds[0].numpy())
    turns.add(jobs)
    turns.add([matched])
    batches = [turns.take_batch() for _ in range(3)]
    assert [len(batch) for batch in batches] == [1, 1, 1]
    assert matched.is_done


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "text is empty: send words"),
        (b"\xff", "text must be UTF-8: invalid start byte at byte 0"),
        (b"a " * 49, "text must have at most 48 tokens, not 49: shorten it"),
        (b"a" * 5000, "text must have at most 4,096 characters, not 5,000: shorten it"),
        ("two киты".encode(), "text must be of words that the model knows, and 'киты' is none"),
        (b"two [SEP]", "text must be of words, and '[SEP]' is a token of the model's own: leave it out"),
    ],
)
def test_texts_that_are_refused(matcher: Matcher, text: bytes, sentence: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        matcher.reader.read_explained(text)
    assert str(refusal.value) == sentence


def test_the_longest_text(matcher: Matcher) -> None:
    assert len(matcher.reader.read_explained(b"a " * 48)) == 50


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ExplainOptions(layer=LAYERS - 1),
            "layer must be between 0 and 1, or -1 for the mean of all, not 2: of this model's 3 layers, the last has "
            "no gradients at words",
        ),
        (
            ExplainOptions(head=-2),
            "head must be between 0 and 3, or -1 for the mean of all, not -2: this model's text encoder has 4",
        ),
    ],
    ids=["layer", "head"],
)
def test_parts_that_are_refused(matcher: Matcher, options: ExplainOptions, sentence: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        matcher.check_explained(options)
    assert str(refusal.value) == sentence


def test_the_last_layer_has_no_gradients_at_words(retrieval_reference: RetrievalReference, embeds: Tensor) -> None:
    """That is why it is refused."""
    maps = retrieval_reference.maps(embeds[1], TEXTS[1]).layers
    assert maps[:-1].amax((1, 3, 4)).min() > 0
    assert not maps[-1].any()
