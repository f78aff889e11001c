# SPDX-License-Identifier: Apache-2.0
"""Where the model looked for each word of a caption or a text: the heatmaps, and pictures of them."""

import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from blipstream_client import _pictures
from blipstream_client._captions import Caption, parse_caption
from blipstream_client._exceptions import InvalidImage, InvalidRequest, ServerError
from blipstream_client._tensors import Tensors
from blipstream_client._text import excerpt, quoted

ANIMATION = ".gif"


@dataclass(frozen=True, eq=False)
class Heatmaps:
    """Words, and for each of them where the model looked. As text, it is the words."""

    words: tuple[str, ...]  # joined with spaces, they are the text; in Japanese and Chinese, without
    attention: npt.NDArray[np.float32] = field(repr=False)  # [W, P, P]: the share of each of P x P patches, 1 in all
    _text: ClassVar[str] = "caption"  # what errors call the words
    image: bytes = field(repr=False)  # the file that was sent
    resize_mode: str = "stretch"  # how the image was fitted to the model's square, which the patches divide

    def __str__(self) -> str:
        return " ".join(self.words)

    def overlay(self, word: str | int) -> Image.Image:
        """The image in grey, with color where the model looked for a word.

        The word is given by its letters, in any case, or by its number, from 0 on. Several words that follow each
        other, such as "alarm clock", share one picture. Raises InvalidRequest if there is no such word, and
        InvalidImage if the image cannot be drawn on.
        """
        places = self._places(word)
        return _pictures.overlay(self._picture(), self.attention[places].mean(0), self.resize_mode)

    def strip(self) -> Image.Image:
        """The image, and the overlays of all words, with the words beneath.

        Raises InvalidRequest if there are no words, and InvalidImage if the image cannot be drawn on.
        """
        return _pictures.strip(self._picture(), self.words, list(self.attention), self.resize_mode)

    def save_gif(self, path: str | os.PathLike[str]) -> None:
        """Write an animation that goes through the text word by word, to a file that ends in .gif.

        Raises InvalidRequest if that is no such file, or cannot be written, and as `strip` does.
        """
        if not isinstance(path, str | os.PathLike) or Path(path).suffix.lower() != ANIMATION:
            raise InvalidRequest(f"path must be that of a file that ends in {ANIMATION}, got {quoted(path)}")
        frames = _pictures.animation(self._picture(), self.words, list(self.attention), self.resize_mode)
        try:
            with Path(path).open("wb") as file:
                _pictures.save_animation(frames, file)
        except (OSError, ValueError) as exc:  # ValueError: the path has a zero byte
            raise InvalidRequest(f"Cannot write {quoted(path)}: {getattr(exc, 'strerror', None) or exc}") from exc

    def _picture(self) -> Image.Image:
        """What to draw on. Raises InvalidRequest if there is nothing to draw, and InvalidImage."""
        self._check_words()
        try:
            return _pictures.upright_picture(self.image)
        except Exception as exc:  # on bad data PIL raises nearly every built-in type
            raise InvalidImage(
                f"The server could read the image, but it cannot be drawn on here: {excerpt(exc)}"
            ) from exc

    def _check_words(self) -> None:
        if not self.words:
            raise InvalidRequest(f"The {self._text} is empty, so there is no word to show: explain another one")

    def _places(self, word: str | int) -> list[int]:
        """The numbers of a word, or of words that follow each other."""
        if not isinstance(word, str | Integral) or isinstance(word, bool):
            raise InvalidRequest(f"word must be a word of the {self._text}, or its number, got {quoted(word)}")
        self._check_words()
        if isinstance(word, Integral):
            if -len(self.words) <= word < len(self.words):
                return [int(word)]
            raise InvalidRequest(f"The {self._text} has {len(self.words)} words, so there is no number {quoted(word)}")
        split = _without_punctuation if _without_punctuation(word) else str.split
        wanted, parts = split(word), [(number, part) for number, each in enumerate(self.words) for part in split(each)]
        for begin in range(len(parts)):
            found = parts[begin : begin + len(wanted)]
            if wanted and [part for _, part in found] == wanted:
                return [*range(found[0][0], found[-1][0] + 1)]
        words = excerpt(", ".join(self.words), 200)
        raise InvalidRequest(f"The {self._text} has no {quoted(word)}; its words are {words}")


@dataclass(frozen=True, eq=False)
class Explanation(Heatmaps):
    """A caption, and for each of its words where the model looked. As text, it is the caption's own."""

    # the one that is explained. Its alternatives are the others, if num_captions asked for them
    caption: Caption = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class MatchExplanation(Heatmaps):
    """A text, and for each of its words where it meets the image. As text, it is the model's reading of it.

    A word that says nothing for the match has zeros.
    """

    _text = "text"
    match: float = field(kw_only=True)  # as in Match
    logit: float = field(kw_only=True)  # as in Match


AnyExplanation = Explanation | MatchExplanation


def parse_explanation(tensors: Tensors, image: bytes, resize_mode: str, index: int | None) -> Explanation:
    """From the tensors of `parse_caption`, and `words` BYTES [1, W] and `attention` FP32 [1, W, P, P].

    `index` is that of the caption that is explained; None is 0. Raises ServerError if one is missing.
    """
    best = parse_caption(tensors)
    captions = [replace(best, alternatives=()), *best.alternatives]
    with _expected(tensors):
        caption = replace(captions.pop(index or 0), alternatives=tuple(captions))
        return Explanation(*_heatmaps(tensors), image, resize_mode, caption=caption)


def parse_match_explanation(tensors: Tensors, image: bytes, resize_mode: str) -> MatchExplanation:
    """From `words` BYTES [1, W], `attention` FP32 [1, W, P, P], `match` and `logit` FP32 [1, 1].

    Raises ServerError if one is missing.
    """
    with _expected(tensors):
        match, logit = (tensors[name].item() for name in ("match", "logit"))
        return MatchExplanation(*_heatmaps(tensors), image, resize_mode, match=match, logit=logit)


def _heatmaps(tensors: Tensors) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
    """The words, and their heatmaps. Raises ValueError and others if there are none."""
    (words,) = tensors["words"].tolist()
    (attention,) = tensors["attention"]
    if attention.ndim != 3 or len(attention) != len(words):
        raise ValueError("they do not fit")
    return tuple(word.decode() for word in words), attention


@contextmanager
def _expected(tensors: Tensors) -> Iterator[None]:
    """Raise ServerError if a model has other outputs."""
    try:
        yield
    except (LookupError, AttributeError, TypeError, ValueError) as exc:
        shapes = excerpt({name: tensor.shape for name, tensor in tensors.items()})
        raise ServerError(
            f"Expected words of shape [1, W] and attention of shape [1, W, P, P], got {shapes}: does the model explain?"
        ) from exc


def _without_punctuation(text: str) -> list[str]:
    """The parts of a text between spaces, punctuation and symbols, whatever their case: the model reads them apart."""
    return "".join(" " if unicodedata.category(each)[0] in "PSZC" else each for each in text.casefold()).split()
