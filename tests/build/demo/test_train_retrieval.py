# SPDX-License-Identifier: Apache-2.0
import math
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoTokenizer, BertTokenizer, BlipForConditionalGeneration, BlipForImageTextRetrieval

from scenes import ARRANGEMENTS, is_held_out
from tests.conftest import CHECKPOINT
from train_retrieval import (
    GROUP,
    Trainer,
    contrastive_loss,
    encode_packed,
    group_of_scenes,
    new_model,
    through_frozen,
    through_trained,
    write_captions,
)


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def model(tokenizer: BertTokenizer) -> BlipForImageTextRetrieval:
    return new_model(BlipForConditionalGeneration.from_pretrained(CHECKPOINT), tokenizer).eval()


@pytest.fixture(scope="module")
def pixel_values() -> Tensor:
    return torch.randn(3, 3, 192, 192, generator=torch.Generator().manual_seed(0))


def test_groups_differ_in_one_thing_and_hold_no_held_out_pair() -> None:
    arrangements = set()
    for index in range(200):
        group = group_of_scenes(index)
        assert len({scene.caption for scene in group}) == len(group) == GROUP
        arrangements.add(group[0].description.arrangement)
        for scene in group:
            names = scene.description.names
            assert not is_held_out(names[0], names[-1])
    assert arrangements == set(ARRANGEMENTS)


def test_vision_equals_transformers(model: BlipForImageTextRetrieval, pixel_values: Tensor) -> None:
    theirs = model.vision_model(pixel_values).last_hidden_state
    first, full = through_trained(model, through_frozen(model, pixel_values), whole=2)
    assert_close(full, theirs[:2], rtol=0, atol=1e-4)
    assert_close(first, theirs[:, 0], rtol=0, atol=1e-4)


def test_packed_captions_equal_single_ones(
    model: BlipForImageTextRetrieval, tokenizer: BertTokenizer, pixel_values: Tensor
) -> None:
    image_embeds = model.vision_model(pixel_values).last_hidden_state
    scenes = [group_of_scenes(index)[0] for index in range(3)]
    rng = random.Random(0)
    captions = write_captions(
        [[scene.description.without_background(), *scene.description.spoiled(rng)[:2]] for scene in scenes],
        scenes,
        tokenizer,
    )
    packed = encode_packed(model, captions.ids, captions.mask, image_embeds)
    for image in range(3):
        for caption in range(3):
            ids = captions.ids[image, caption][captions.mask[image, caption]][None]
            alone = model.text_encoder(ids, encoder_hidden_states=image_embeds[image : image + 1]).last_hidden_state
            assert_close(packed[image, caption], alone[0, 0], rtol=0, atol=1e-4)


def test_captions_know_what_they_are_true_of(tokenizer: BertTokenizer) -> None:
    scenes = group_of_scenes(0)
    full = [[scene.description] for scene in scenes]
    short = [[scene.description.without_background()] for scene in scenes]
    assert write_captions(full, scenes, tokenizer).true[:, 0].equal(torch.eye(GROUP, dtype=torch.bool))
    backgrounds_aside = [
        [
            a.description.names == b.description.names and a.description.arrangement == b.description.arrangement
            for b in scenes
        ]
        for a in scenes
    ]
    assert write_captions(short, scenes, tokenizer).true[:, 0].tolist() == backgrounds_aside


def test_contrastive_loss_leaves_other_true_pairs_out() -> None:
    similarity = torch.tensor([[1.0, 1.0, 0.0], [5.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    own = torch.eye(3, dtype=torch.bool)
    also = own.clone()
    also[1, 0] = True  # text 1 is true of image 0, too
    e = math.e
    by_text = [math.log(e / (2 * e + 1)), math.log(e / (e + 1)), math.log(e / (e + 2))]
    by_image = [math.log(e / (e + 1)), math.log(e / (2 * e + 1)), math.log(e / (e + 2))]
    assert contrastive_loss(similarity, also).item() == pytest.approx(-(sum(by_text) + sum(by_image)) / 6)
    assert contrastive_loss(similarity, own) > contrastive_loss(similarity, also) + 1


@torch.enable_grad()
def test_training_goes_on_from_its_state(tmp_path: Path) -> None:
    def weights(state: Path, *epochs: int) -> Tensor:
        for count in epochs:
            trainer = Trainer(CHECKPOINT, groups=4, batch_size=16, epochs=count, state=state)
            trainer.train()
        return torch.nn.utils.parameters_to_vector(trainer.trained).detach()

    at_once, resumed = weights(tmp_path / "at-once", 3), weights(tmp_path / "resumed", 1, 3)
    assert_close(resumed, at_once, rtol=0, atol=1e-5)
    assert not torch.allclose(weights(tmp_path / "one", 1), at_once, rtol=0, atol=1e-5)
