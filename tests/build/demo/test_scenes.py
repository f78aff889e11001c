# SPDX-License-Identifier: Apache-2.0
import random

import numpy as np
import pytest

from scenes import (
    ARRANGEMENTS,
    BACKGROUNDS,
    OBJECTS,
    Arrangement,
    Description,
    arrange,
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


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_wrong_descriptions(arrangement: Arrangement) -> None:
    """Each kind changes one thing, and neither makes nor unmakes a held-out pair."""
    rng = random.Random(arrangement)
    for held_out in {False, arrangement in ("left", "above")}:
        for _ in range(100):
            right = random_scene(rng, arrangement, held_out=held_out).description
            other = right.with_wrong_object(rng)
            assert sum(a != b for a, b in zip(right.names, other.names, strict=True)) == 1
            assert len(set(other.names)) == len(other.names)
            assert (other.arrangement, other.background) == (right.arrangement, right.background)
            assert right.with_wrong_background(rng).background in BACKGROUNDS.keys() - {right.background}
            assert {right.arrangement, right.with_wrong_arrangement().arrangement} in (
                {"one", "two"},
                {"left", "above"},
            )
            spoiled = right.spoiled(rng)
            captions = {str(right), *(str(wrong) for wrong in spoiled)}
            assert len(captions) == 1 + len(spoiled) == (5 if len(right.names) == 2 else 4)
            assert {is_held_out(wrong.names[0], wrong.names[-1]) for wrong in spoiled} == {held_out}


def test_captions_of_descriptions() -> None:
    pair = Description("left", ("cat", "egg"), "blue")
    assert str(pair) == "a cat to the left of an egg on a blue background"
    assert str(pair.swapped()) == "an egg to the left of a cat on a blue background"
    assert str(pair.with_wrong_arrangement().without_background()) == "a cat above an egg"
    assert str(Description("one", ("bus",), "pink").with_wrong_arrangement()) == "two buses on a pink background"


def test_scene_of_a_description() -> None:
    description = Description("above", ("egg", "cat"), "blue")
    scene = arrange(random.Random(0), description)
    assert scene.description == description
    assert [placement.name for placement in scene.placements] == ["egg", "cat"]
    assert scene.placements[0].y < scene.placements[1].y
    with pytest.raises(ValueError, match="a description that names the background, not 'an egg above a cat'"):
        arrange(random.Random(0), description.without_background())
