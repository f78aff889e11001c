# SPDX-License-Identifier: Apache-2.0
"""The committed retrieval checkpoint and its card."""

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from examine_retrieval import CHECKPOINT, EXAMINATION_SIZE, PASS_MARKS, Examinee, auc, examine, retrieval_examination
from tests.conftest import SAMPLES

FEW = 150  # scenes


@pytest.fixture(scope="module")
def examinee() -> Examinee:
    return Examinee()


def test_size() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 12e6


def test_auc() -> None:
    low, high = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    assert auc(high, low) == 1
    assert auc(low, high) == 0
    assert auc(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 3.0])) == 1.5 / 4  # a tie counts half


def test_captions_of_the_examination_differ() -> None:
    scenes = retrieval_examination(EXAMINATION_SIZE)
    assert len({scene.caption for scene in scenes}) == len(scenes) == EXAMINATION_SIZE
    assert retrieval_examination(FEW) == scenes[:FEW]


@pytest.mark.parametrize("count", [FEW, pytest.param(EXAMINATION_SIZE, marks=pytest.mark.full)])
def test_accuracy(examinee: Examinee, count: int) -> None:
    figures = examine(examinee, count)
    for what, goal in PASS_MARKS.items():
        assert figures[what] >= goal, figures


def test_samples(examinee: Examinee, samples: dict[str, str]) -> None:
    """By both scores, each sample's own caption fits best, with and without its background."""
    images = [Image.open(SAMPLES / name) for name in samples]
    pixel_values = examinee.processor(images=images, return_tensors="pt")["pixel_values"]
    image_embeds = examinee.model.vision_model(pixel_values).last_hidden_state
    count = len(images)
    for texts in (list(samples.values()), [caption.partition(" on a ")[0] for caption in samples.values()]):
        assert examinee.similarity(image_embeds, texts).argmax(1).tolist() == list(range(count))
        logits = examinee.match(image_embeds.repeat_interleave(count, 0), texts * count).view(count, count)
        assert logits.argmax(1).tolist() == list(range(count))


def test_scores_are_those_of_transformers(examinee: Examinee, samples: dict[str, str]) -> None:
    """The card's lines give what the examination measures."""
    image, text = Image.open(SAMPLES / "two-whales.jpg"), samples["two-whales.jpg"]
    inputs = examinee.processor(images=image, text=text, return_tensors="pt")
    output = examinee.model(**inputs)
    logit = examinee.match(output.last_hidden_state, [text])
    assert_close(output.itm_score.softmax(-1)[:, 1], logit.sigmoid())
    cosine = examinee.similarity(output.last_hidden_state, [text])
    assert_close(examinee.model(**inputs, use_itm_head=False).itm_score, cosine)


def test_either_first_token_gives_the_same_scores(examinee: Examinee) -> None:
    scenes = retrieval_examination(4)
    captions = [scene.caption for scene in scenes]
    image_embeds = examinee.embed_scenes(scenes)
    for score in (examinee.match, examinee.similarity):
        assert_close(score(image_embeds, captions, "[ENC]"), score(image_embeds, captions, "[CLS]"), rtol=0, atol=0)


def test_card_has_the_figures() -> None:
    card = (CHECKPOINT / "README.md").read_text(encoding="utf-8")
    for part in ("## Training", "[CLS]", "[ENC]", "python build/demo/examine_retrieval.py", *PASS_MARKS):
        assert part in card
