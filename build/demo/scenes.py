# SPDX-License-Identifier: Apache-2.0
"""Emoji scenes with known captions, right and wrong, for training and examining the demo checkpoints."""

import random
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont, ImageOps

FONT_PACKAGE = "fonts-noto-color-emoji"
FONT_PATH = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
GLYPH_SIZE = 109  # pixels; the font stores its bitmaps in this size alone
SPRITE_SIZE = 136  # pixels; side of the square in which a glyph is centred

OBJECTS = {
    "airplane": "✈️",
    "alarm clock": "⏰",
    "anchor": "⚓",
    "apple": "🍎",
    "avocado": "🥑",
    "balloon": "🎈",
    "banana": "🍌",
    "basketball": "🏀",
    "bell": "🔔",
    "bicycle": "🚲",
    "book": "📕",
    "bus": "🚌",
    "butterfly": "🦋",
    "cactus": "🌵",
    "camera": "📷",
    "candle": "🕯️",
    "car": "🚗",
    "carrot": "🥕",
    "cat": "🐱",
    "cherry": "🍒",
    "chicken": "🐔",
    "coconut": "🥥",
    "crab": "🦀",
    "crown": "👑",
    "cucumber": "🥒",
    "dog": "🐶",
    "door": "🚪",
    "doughnut": "🍩",
    "duck": "🦆",
    "egg": "🥚",
    "eggplant": "🍆",
    "elephant": "🐘",
    "fish": "🐟",
    "flower": "🌻",
    "fox": "🦊",
    "frog": "🐸",
    "ghost": "👻",
    "gift": "🎁",
    "guitar": "🎸",
    "hamburger": "🍔",
    "hammer": "🔨",
    "hat": "🎩",
    "house": "🏠",
    "key": "🔑",
    "kiwi": "🥝",
    "ladybug": "🐞",
    "leaf": "🍁",
    "lemon": "🍋",
    "light bulb": "💡",
    "lion": "🦁",
    "magnet": "🧲",
    "mushroom": "🍄",
    "octopus": "🐙",
    "owl": "🦉",
    "panda": "🐼",
    "pear": "🍐",
    "pencil": "✏️",
    "penguin": "🐧",
    "pig": "🐷",
    "pineapple": "🍍",
    "pizza": "🍕",
    "pumpkin": "🎃",
    "robot": "🤖",
    "rocket": "🚀",
    "shark": "🦈",
    "snail": "🐌",
    "snowman": "⛄",
    "star": "⭐",
    "strawberry": "🍓",
    "sun": "🌞",
    "tractor": "🚜",
    "tree": "🌲",
    "trophy": "🏆",
    "trumpet": "🎺",
    "turtle": "🐢",
    "umbrella": "☂️",
    "unicorn": "🦄",
    "watch": "⌚",
    "watermelon": "🍉",
    "whale": "🐳",
}

PLURALS = {
    "bus": "buses",
    "butterfly": "butterflies",
    "cactus": "cacti",
    "cherry": "cherries",
    "fish": "fish",
    "fox": "foxes",
    "leaf": "leaves",
    "octopus": "octopuses",
    "strawberry": "strawberries",
    "trophy": "trophies",
    "watch": "watches",
}

BACKGROUNDS = {  # RGB
    "blue": (70, 120, 220),
    "brown": (130, 85, 50),
    "green": (90, 170, 90),
    "grey": (128, 128, 128),
    "pink": (250, 180, 205),
    "purple": (130, 75, 170),
    "white": (250, 250, 250),
    "yellow": (245, 225, 110),
}

ROTATIONS = range(-25, 26, 5)  # degrees

Arrangement = Literal["one", "two", "left", "above"]
ARRANGEMENTS: tuple[Arrangement, ...] = ("one", "two", "left", "above")
_OPPOSITES: dict[Arrangement, Arrangement] = {"one": "two", "two": "one", "left": "above", "above": "left"}


@dataclass(frozen=True)
class Description:
    """What a caption says: which objects, how they lie, and on which background. str() gives the caption."""

    arrangement: Arrangement
    names: tuple[str, ...]  # the one on the left or above comes first; two of a kind are named once
    background: str | None  # None if the caption does not speak of it

    def __str__(self) -> str:
        first, last = self.names[0], self.names[-1]
        match self.arrangement:
            case "one":
                subject = _with_article(first)
            case "two":
                subject = f"two {PLURALS.get(first, first + 's')}"
            case "left":
                subject = f"{_with_article(first)} to the left of {_with_article(last)}"
            case "above":
                subject = f"{_with_article(first)} above {_with_article(last)}"
        return f"{subject} on a {self.background} background" if self.background else subject

    def without_background(self) -> "Description":
        """The same, less the background: it stays right."""
        return replace(self, background=None)

    def with_wrong_object(self, rng: random.Random) -> "Description":
        """One object is another. A held-out pair stays a held-out one, so that no pair is wrong in itself."""
        index = rng.randrange(len(self.names))
        names = list(self.names)
        while True:
            names[index] = rng.choice(list(OBJECTS))
            if names[index] not in self.names and is_held_out(names[0], names[-1]) == is_held_out(
                self.names[0], self.names[-1]
            ):
                return replace(self, names=tuple(names))

    def with_wrong_background(self, rng: random.Random) -> "Description":
        """The background has another colour."""
        return replace(self, background=rng.choice([name for name in BACKGROUNDS if name != self.background]))

    def with_wrong_arrangement(self) -> "Description":
        """Two instead of one, above instead of left of, and the other way round."""
        return replace(self, arrangement=_OPPOSITES[self.arrangement])

    def swapped(self) -> "Description":
        """The two objects change places. Only for pairs."""
        return replace(self, names=self.names[::-1])

    def spoiled(self, rng: random.Random) -> "list[Description]":
        """One of each kind of wrong description, in random order: three, or four of a pair."""
        wrong = [self.with_wrong_object(rng), self.with_wrong_background(rng), self.with_wrong_arrangement()]
        if len(self.names) == 2:
            wrong.append(self.swapped())
        rng.shuffle(wrong)
        return wrong


@dataclass(frozen=True)
class Placement:
    """One object in a scene. Centre and size are fractions of the scene's side; rotation is in degrees."""

    name: str
    x: float
    y: float
    size: float
    rotation: int


@dataclass(frozen=True)
class Scene:
    """What to draw, and its right description."""

    description: Description
    background: tuple[int, int, int]
    placements: tuple[Placement, ...]

    @property
    def caption(self) -> str:
        """The right caption."""
        return str(self.description)

    def draw(self, side: int) -> Image.Image:
        """The scene as an RGB image of `side` by `side` pixels."""
        image = Image.new("RGB", (side, side), self.background)
        for placement in self.placements:
            sprite = ImageOps.scale(_sprite(placement.name, placement.rotation), placement.size * side / SPRITE_SIZE)
            x, y = placement.x * side - sprite.width / 2, placement.y * side - sprite.height / 2
            image.paste(sprite, (round(x), round(y)), mask=sprite)
        return image


@cache
def _sprite(name: str, rotation: int) -> Image.Image:
    font = ImageFont.truetype(str(FONT_PATH), GLYPH_SIZE)
    sprite = Image.new("RGBA", (SPRITE_SIZE, SPRITE_SIZE))
    ImageDraw.Draw(sprite).text(
        (SPRITE_SIZE / 2, SPRITE_SIZE / 2), OBJECTS[name], font=font, embedded_color=True, anchor="mm"
    )
    return sprite.rotate(rotation, Image.Resampling.BICUBIC, expand=True)


def require_font() -> None:
    """Exit with one sentence if the emoji font is not installed."""
    if not FONT_PATH.exists():
        sys.exit(f"Error: the scenes need {FONT_PATH}: install the Debian package {FONT_PACKAGE}")


def is_held_out(first: str, second: str) -> bool:
    """Whether two objects never share a training scene. A fixed fifth of all pairs is kept for the examination."""
    return first != second and zlib.crc32("+".join(sorted((first, second))).encode()) % 5 == 0


def held_out_pairs() -> list[tuple[str, str]]:
    """All pairs of objects that no training scene contains, each in alphabetical order."""
    return [pair for pair in combinations(sorted(OBJECTS), 2) if is_held_out(*pair)]


def random_scene(rng: random.Random, arrangement: Arrangement, *, held_out: bool = False) -> Scene:
    """A random training scene or, with `held_out` and two different objects, a scene of a held-out pair."""
    background = rng.choice(list(BACKGROUNDS))
    return arrange(rng, Description(arrangement, _choose_objects(rng, arrangement, held_out), background))


def arrange(rng: random.Random, description: Description) -> Scene:
    """A random scene of which the description is right. Without a background, there is a ValueError."""
    if description.background is None:
        raise ValueError(f"expected a description that names the background, not {str(description)!r}")
    names = description.names * 2 if description.arrangement == "two" else description.names
    vertical = description.arrangement == "above" or (description.arrangement == "two" and rng.random() < 0.5)
    return Scene(
        description,
        background=_jitter(rng, BACKGROUNDS[description.background]),
        placements=tuple(_place(rng, names, vertical)),
    )


def examination(count: int, seed: int = 0) -> Iterator[Scene]:
    """`count` scenes of held-out pairs, in turn with one object left of or above the other."""
    rng = random.Random(f"examination {seed}")
    for i in range(count):
        yield random_scene(rng, ("left", "above")[i % 2], held_out=True)


def _choose_objects(rng: random.Random, arrangement: Arrangement, held_out: bool) -> tuple[str, ...]:
    if arrangement in ("one", "two"):
        return (rng.choice(list(OBJECTS)),)
    while True:
        first, second = rng.sample(list(OBJECTS), 2)
        if is_held_out(first, second) == held_out:
            return first, second


def _place(rng: random.Random, names: tuple[str, ...], vertical: bool) -> Iterator[Placement]:
    if len(names) == 1:
        size = rng.uniform(0.35, 0.7)
        yield Placement(names[0], _inside(rng, size), _inside(rng, size), size, rng.choice(ROTATIONS))
        return
    middle = rng.uniform(0.3, 0.7)  # both objects lie near this line, so that left of and above are never in doubt
    for index, name in enumerate(names):
        size = rng.uniform(0.3, 0.44)
        along = size / 2 + 0.03 + rng.uniform(0, 0.44 - size) + 0.5 * index  # each object has one half of the scene
        across = min(max(middle + rng.uniform(-0.1, 0.1), size / 2), 1 - size / 2)
        x, y = (across, along) if vertical else (along, across)
        yield Placement(name, x, y, size, rng.choice(ROTATIONS))


def _inside(rng: random.Random, size: float) -> float:
    return rng.uniform(size / 2 + 0.02, 1 - size / 2 - 0.02)


def _jitter(rng: random.Random, colour: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, value + rng.randint(-12, 12))) for value in colour)
    return red, green, blue


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' and name != 'unicorn' else 'a'} {name}"
