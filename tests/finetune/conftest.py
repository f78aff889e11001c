# SPDX-License-Identifier: Apache-2.0
"""Scenes with captions in a language of kana, which the demo's tokenizer does not know."""

import random
from pathlib import Path

import pytest

from scenes import ARRANGEMENTS, Scene, random_scene


def in_kana(caption: str) -> str:
    """A caption in a language without spaces."""
    return "".join(chr(0x3041 + 3 * (ord(each) - ord("a"))) for each in caption if each.isalpha())


@pytest.fixture(scope="session")
def training_scenes() -> list[Scene]:
    rng = random.Random("fine-tuning")
    return [random_scene(rng, ARRANGEMENTS[number % 4]) for number in range(48)]


@pytest.fixture(scope="session")
def english(training_scenes: list[Scene], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with captions beside the images."""
    folder = tmp_path_factory.mktemp("english")
    for number, scene in enumerate(training_scenes):
        scene.draw(192).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(scene.caption, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def kana(english: Path, training_scenes: list[Scene], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images, with captions in kana."""
    folder = tmp_path_factory.mktemp("kana")
    for number, scene in enumerate(training_scenes):
        (folder / f"{number}.png").symlink_to(english / f"{number}.png")
        (folder / f"{number}.txt").write_text(in_kana(scene.caption), encoding="utf-8")
    return folder
