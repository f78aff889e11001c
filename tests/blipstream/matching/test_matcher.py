# SPDX-License-Identifier: Apache-2.0
"""Scores and embeddings equal transformers', alone and in any batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blipstream.matching import Job, Matcher
from blipstream.matching.heads import probabilities
from tests.conftest import SAMPLES
from tests.support.retrieval import RetrievalReference

TOLERANCE = 1e-4
TEXTS = [
    "two whales",
    "a",
    "a cat on a blue background and a dog above a door and a book and a trophy and an elephant to the left of a watch",
    "It's A UNICORN, isn't it?",
    "two whales",
    "a dog above a door",
]


@pytest.fixture(scope="module")
def matcher(matching_artifacts: Path) -> Matcher:
    return Matcher.load("openvino", matching_artifacts / "matcher/1/openvino")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [Image.open(path) for path in sorted(SAMPLES.glob("*.jpg"))[:4]]


def job(matcher: Matcher, reference: RetrievalReference, image: Image.Image | None, texts: list[str]) -> Job:
    embeds = None if image is None else reference.image_embeds(image).numpy()
    return Job(matcher.reader.read([text.encode() for text in texts]), embeds)


def check(matcher: Matcher, reference: RetrievalReference, done: Job, image: Image.Image, texts: list[str]) -> None:
    theirs = reference.score(image, texts)
    assert done.image_embeds is not None
    similarities = matcher.heads.similarities(done.image_embeds, done.embeddings)
    for ours, expected in zip((probabilities(done.logits), done.logits, similarities), theirs, strict=True):
        np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=TOLERANCE)


def test_one_text(matcher: Matcher, retrieval_reference: RetrievalReference, images: list[Image.Image]) -> None:
    done = job(matcher, retrieval_reference, images[0], TEXTS[:1])
    matcher.finish([done])
    check(matcher, retrieval_reference, done, images[0], TEXTS[:1])


def test_many_jobs_of_mixed_lengths_together(
    matcher: Matcher, retrieval_reference: RetrievalReference, images: list[Image.Image]
) -> None:
    texts = [TEXTS, TEXTS[:1], TEXTS[1:4], TEXTS[:1]]
    jobs = [job(matcher, retrieval_reference, *each) for each in zip(images, texts, strict=True)]
    alone = [job(matcher, retrieval_reference, None, [text]) for text in TEXTS]
    matcher.finish([*jobs[:2], *alone, *jobs[2:]])
    for done, image, of_it in zip(jobs, images, texts, strict=True):
        check(matcher, retrieval_reference, done, image, of_it)
    for each, text in zip(alone, TEXTS, strict=True):
        expected = retrieval_reference.embed_text(text).numpy()
        np.testing.assert_allclose(each.embeddings[0], expected, rtol=0, atol=TOLERANCE)
        assert each.logits.tolist() == [0]  # it has no image


def test_so_many_texts_that_they_take_several_batches(
    matcher: Matcher, retrieval_reference: RetrievalReference, images: list[Image.Image]
) -> None:
    done = job(matcher, retrieval_reference, images[0], TEXTS * 20)
    matcher.finish([done])
    first = done.logits[: len(TEXTS)]
    np.testing.assert_allclose(done.logits, np.tile(first, 20), rtol=0, atol=TOLERANCE)
    assert np.ptp(first) > 100 * TOLERANCE  # so that rows that change places would be noticed


def test_an_image_embedding(
    matcher: Matcher, retrieval_reference: RetrievalReference, images: list[Image.Image]
) -> None:
    embeds = torch.stack([retrieval_reference.image_embeds(image) for image in images]).half().numpy()
    expected = torch.stack([retrieval_reference.embed_image(image) for image in images]).numpy()
    np.testing.assert_allclose(matcher.heads.image_embedding(embeds), expected, rtol=0, atol=TOLERANCE)


def test_probabilities_of_extreme_logits() -> None:
    assert probabilities(np.array([-1e4, 0, 1e4], np.float32)).tolist() == [0, 0.5, 1]
