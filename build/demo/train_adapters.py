# SPDX-License-Identifier: Apache-2.0
"""Train the demo's adapters, one a language, by what `blipstream finetune --lora` does.

python build/demo/train_adapters.py                  # about forty minutes on two cores
python build/demo/examine_adapters.py                # their accuracy and their cards
"""

import argparse
import os
import random
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from blipstream.files import DEMO_ADAPTERS, DEMO_CHECKPOINT, ROOT
from blipstream_client.bulk.items import Item
from blipstream_finetune.run import Words, Work, finetune
from blipstream_finetune.settings import LORA
from blipstream_finetune.sources import Source
from languages import CAPTIONS
from languages.tokenizer import new_tokenizer
from scenes import ARRANGEMENTS, Scene, random_scene, require_font

CACHE = ROOT / ".adapters_cache"  # the scenes and their embeddings, for all languages
IMAGE_SIZE = 192  # pixels, as the checkpoint has it
SCENES = 8_000
STEPS = {"ja": 1_500}  # others take 1,000
SETTINGS = replace(LORA, dtype="f32")  # so that all processors compute the same
WEIGHTS = "adapter_model.safetensors"
KEPT = ("adapter_config.json", WEIGHTS, "blipstream.json", "tokenizer.json", "tokenizer_config.json")


def draw_scenes() -> dict[Path, Scene]:
    """The scenes to learn from, by the files that show them."""
    rng = random.Random("adapters")
    folder = CACHE / "scenes"
    folder.mkdir(parents=True, exist_ok=True)
    scenes = {}
    for number in range(SCENES):
        scene = random_scene(rng, rng.choices(ARRANGEMENTS, weights=(2, 2, 4, 4))[0])  # as the checkpoint was trained
        scenes[folder / f"{number}.png"] = scene
    for file, scene in scenes.items():
        if not file.exists():
            scene.draw(IMAGE_SIZE).save(file)
    return scenes


def train(language: str, scenes: dict[Path, Scene]) -> None:
    """Train the adapter of a language, and keep it in half precision."""
    captions = {str(file): CAPTIONS[language](scene.description) for file, scene in scenes.items()}
    items = (Item(file, partial(str, file), (caption,)) for file, caption in captions.items())
    output, tokenizer = CACHE / language, CACHE / f"{language}-tokenizer"
    shutil.rmtree(output, ignore_errors=True)
    base = AutoTokenizer.from_pretrained(DEMO_CHECKPOINT)
    new_tokenizer(base, language, captions.values()).save_pretrained(tokenizer)
    finetune(
        os.path.relpath(DEMO_CHECKPOINT),  # as it is written beside the weights
        Source(items, str),
        output,
        replace(SETTINGS, steps=STEPS.get(language, 1_000)),
        words=Words(tokenizer),
        language=language,
        work=Work(cache=CACHE),
    )
    weights = {name: weight.half() for name, weight in load_file(output / WEIGHTS).items()}
    save_file(weights, output / WEIGHTS, {"format": "pt"})
    folder = DEMO_ADAPTERS / language
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(output / name, folder / name)


def main() -> None:
    """Train them all, or one."""
    parser = argparse.ArgumentParser(description="Train the demo's adapters.")
    parser.add_argument("--language", choices=CAPTIONS, help="default: all")
    arguments = parser.parse_args()
    require_font()
    scenes = draw_scenes()
    for language in [arguments.language] if arguments.language else CAPTIONS:
        click.echo(language)
        train(language, scenes)


if __name__ == "__main__":
    main()
