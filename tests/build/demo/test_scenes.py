# SPDX-License-Identifier: Apache-2.0
import random

import numpy as np
import pytest

from scenes import (
    ARRANGEMENTS,
    BACKGROUNDS,
    OBJECTS,
    Arrangement,
    examination,
    held_out_pairs,
    is_held_out,
    random_scene,
)


def many(arrangement: Arrangement, *, held_out: bool = False) -> list[tuple[str, ...]]:
    rng = random.Random(arrangement)
    scenes = [random_scene(rng, arrangement, held_out=held_out) for _ in range(500)]
    return [(scene.caption, *(placement.name for placement in scene.placements)) for scene in scenes]


def test_variety() -> None:
    assert len(OBJECTS) >= 60
    assert len(set(OBJECTS.values())) == len(OBJECTS)
    assert len(BACKGROUNDS) == 8
    assert 0.15 < len(held_out_pairs()) / (len(OBJECTS) * (len(OBJECTS) - 1) / 2) < 0.25


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_captions_name_what_is_drawn(arrangement: Arrangement) -> None:
    for caption, *names in many(arrangement):
        assert names[0][:3] in caption  # only the start: the plural of "butterfly" is "butterflies"
        if arrangement in ("left", "above"):
            assert caption.index(names[0]) < caption.rindex(names[1])


def test_articles_and_plurals() -> None:
    captions = " ".join(caption for arrangement in ARRANGEMENTS for caption, *_ in many(arrangement))
    for right in ("an elephant", "a unicorn", "two butterflies", "two cacti", "two foxes", "two fish"):
        assert right in captions
    for wrong in ("a elephant", "an unicorn", "butterflys", "foxs", "fishs"):
        assert wrong not in captions


def test_training_and_examination_share_no_pair() -> None:
    for arrangement in ("left", "above"):
        assert not any(is_held_out(first, second) for _, first, second in many(arrangement))
    for scene in examination(100):
        first, second = (placement.name for placement in scene.placements)
        assert is_held_out(first, second)
        assert is_held_out(second, first)


@pytest.mark.parametrize("arrangement", ["left", "above"])
def test_relations_are_never_in_doubt(arrangement: Arrangement) -> None:
    rng = random.Random(7)
    for _ in range(500):
        first, second = random_scene(rng, arrangement).placements
        across, along = abs(first.x - second.x), abs(first.y - second.y)
        if arrangement == "left":
            assert first.x < second.x
            across, along = along, across
        else:
            assert first.y < second.y
        assert along > 1.2 * across


def test_drawing() -> None:
    scene = next(examination(1))
    image = scene.draw(96)
    assert (image.mode, image.size) == ("RGB", (96, 96))
    pixels = np.asarray(image)
    assert tuple(pixels[0, 0]) == scene.background
    for placement in scene.placements:
        x, y, reach = round(placement.x * 96), round(placement.y * 96), round(placement.size * 24)
        assert (pixels[y - reach : y + reach, x - reach : x + reach] != scene.background).any()
    assert scene.draw(96).tobytes() == image.tobytes()
