# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's generation config: a request without options gets what transformers makes of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import BlipForConditionalGeneration

from blipstream.decoding import Engine
from blipstream.options import OptionDefaults
from blipstream_build.checkpoint import Checkpoint
from blipstream_build.generation import generation_defaults
from tests.conftest import CHECKPOINT
from tests.reference import Reference

pytestmark = pytest.mark.filterwarnings("ignore:Using the model-agnostic default `max_length`")
# what the config.json of Salesforce/blip-image-captioning-base has in its text_config
OLD_FIELDS = {
    "bad_words_ids": None, "diversity_penalty": 0.0, "do_sample": False, "early_stopping": False, "length_penalty": 1.0,
    "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1,
    "num_return_sequences": 1, "repetition_penalty": 1.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
    "typical_p": 1.0, "use_cache": True, "output_scores": False, "return_dict_in_generate": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({}, ""),
        ({"_from_model_config": True, "eos_token_id": 2, "use_cache": True, "transformers_version": "5.23.0"}, ""),
        ({"num_beams": 3, "max_new_tokens": 20}, "default max_tokens=20, num_beams=3"),
        ({"max_length": 20, "min_length": 5}, "default max_tokens=19, min_tokens=4"),
        (
            {"max_length": 20, "max_new_tokens": 25, "min_new_tokens": 2, "min_length": 9},
            "default max_tokens=25, min_tokens=2; ignored min_length",
        ),
        (
            {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True},
            "default num_captions=2, num_beams=4, early_stopping=true",
        ),
        ({"do_sample": True, "temperature": 0.7, "top_k": 50}, "default do_sample=true, temperature=0.7, top_k=50"),
        ({"top_k": 50, "temperature": 1.0, "typical_p": 1.0}, "default top_k=50"),
        ({"typical_p": 0.9, "bad_words_ids": [[5]], "guidance_scale": None}, "ignored bad_words_ids, typical_p"),
        ({"early_stopping": "never", "num_beams": 3}, "default num_beams=3; ignored early_stopping"),
        ({"num_beams": 20}, "ignored num_beams"),
        ({"num_return_sequences": 3}, "ignored num_return_sequences"),
        ({"do_sample": True, "num_beams": 3, "top_p": 0.9}, "default top_p=0.9; ignored do_sample, num_beams"),
        ({"max_new_tokens": 600}, "ignored max_new_tokens"),
        ({"max_length": 1}, "ignored max_length"),
        ({"max_new_tokens": "20", "repetition_penalty": [1]}, "ignored max_new_tokens, repetition_penalty"),
        ({"seed": 5, "prompt": "a", "max_tokens": 5}, "ignored max_tokens, prompt, seed"),
        (OLD_FIELDS, "default max_tokens=19, top_k=50"),
    ],
)
def test_what_is_used(settings: dict[str, Any], shown: str) -> None:
    assert str(generation_defaults(settings, 512)) == shown


def checkpoint_with(folder: Path, generation: dict[str, Any], text: dict[str, Any]) -> Path:
    """The demo checkpoint with other settings in its generation config, and in the text_config of its config.json."""
    shutil.copytree(CHECKPOINT, folder)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= text
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def transformers_captions(folder: Path, images: list[Image.Image], **options: Any) -> list[str]:
    """What `generate` makes of images without any option but those given."""
    reference = Reference(folder)
    pixel_values = reference.processor(images, return_tensors="pt")["pixel_values"]
    tokens = reference.model.generate(pixel_values=pixel_values, **options)
    return list(reference.tokenizer.batch_decode(tokens, skip_special_tokens=True))


def our_captions(engine: Engine, embeds: Tensor, defaults: dict[str, Any]) -> list[str]:
    options = OptionDefaults(defaults).options({})
    requests = [engine.request(each, options) for each in embeds]
    engine.generate(requests)
    return [caption.text for request in requests for caption in request.captions]


@pytest.fixture(scope="module")
def embeds(reference: Reference, scene_images: list[Image.Image]) -> Tensor:
    return reference.embed(scene_images[:6])


@pytest.mark.parametrize(
    ("generation", "text"),
    [
        ({"max_new_tokens": 4}, {}),
        ({"max_length": 5}, {}),
        ({"min_length": 12, "max_length": 14}, {}),
        ({"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0}, {}),
        ({"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 10, "max_new_tokens": 25}, {}),
        ({"num_beams": 2}, {"max_new_tokens": 5}),
        ({"num_beams": 2, "max_new_tokens": 7}, {"max_new_tokens": 5}),
        ({}, OLD_FIELDS | {"max_length": 5, "num_beams": 3}),
    ],
)
@torch.inference_mode()
def test_captions_without_options_equal_transformers(
    tmp_path: Path,
    engine: Engine,
    scene_images: list[Image.Image],
    embeds: Tensor,
    generation: dict[str, Any],
    text: dict[str, Any],
) -> None:
    folder = checkpoint_with(tmp_path / "checkpoint", generation, text)
    model = BlipForConditionalGeneration.from_pretrained(folder)
    used = Checkpoint.find(str(folder)).generation(model).used
    theirs = transformers_captions(folder, scene_images[:6], generation_config=model.generation_config)
    assert our_captions(engine, embeds, used) == theirs


@torch.inference_mode()
def test_transformers_itself_ignores_the_file_unless_it_is_handed_over(
    tmp_path: Path, scene_images: list[Image.Image]
) -> None:
    """If this fails, generate(**inputs) obeys the file, and the documents say otherwise."""
    folder = checkpoint_with(tmp_path / "checkpoint", {"max_new_tokens": 4}, {})
    plain = transformers_captions(CHECKPOINT, scene_images[:2])
    assert transformers_captions(folder, scene_images[:2]) == plain
    model = BlipForConditionalGeneration.from_pretrained(folder)
    assert transformers_captions(folder, scene_images[:2], generation_config=model.generation_config) != plain
