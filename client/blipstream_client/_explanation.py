# SPDX-License-Identifier: Apache-2.0
"""Where the model looked for each word of a caption: the heatmaps, and pictures of them."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from blipstream_client import _pictures
from blipstream_client._captions import Caption, parse_caption
from blipstream_client._exceptions import InvalidImage, InvalidRequest, ServerError
from blipstream_client._tensors import Tensors
from blipstream_client._text import excerpt, quoted


@dataclass(frozen=True, eq=False)
class Explanation:
    """A caption, and for each of its words where the model looked. As text, it is the caption's own."""

    caption: Caption
    words: tuple[str, ...]  # of the caption that is explained; joined with spaces, they are its text
    attention: npt.NDArray[np.float32] = field(repr=False)  # [W, P, P]: the share of each of P x P patches, 1 in all
    image: bytes = field(repr=False)  # the file that was sent
    resize_mode: str = "stretch"  # how the image was fitted to the model's square, which the patches divide

    def __str__(self) -> str:
        return self.caption.text

    def overlay(self, word: str | int) -> Image.Image:
        """The image in grey, with color where the model looked for a word.

        The word is given as in `words`, or by its number, from 0 on. Several words that follow each other, such as
        "alarm clock", share one picture. Raises InvalidRequest if the caption has no such word.
        """
        return _pictures.overlay(self._picture(), self.attention[self._places(word)].mean(0), self.resize_mode)

    def strip(self) -> Image.Image:
        """The image, and the overlays of all words, with the words beneath."""
        return _pictures.strip(self._picture(), self.words, list(self.attention), self.resize_mode)

    def save_gif(self, path: str | os.PathLike[str]) -> None:
        """Write an animation that goes through the caption word by word. Raises OSError if it cannot be written."""
        if not self.words:
            raise InvalidRequest("The caption has no words to show: ask for more tokens")
        frames = _pictures.animation(self._picture(), self.words, list(self.attention), self.resize_mode)
        with Path(path).open("wb") as file:
            _pictures.save_animation(frames, file)

    def _picture(self) -> Image.Image:
        try:
            return _pictures.upright_picture(self.image)
        except Exception as exc:  # on bad data PIL raises nearly every built-in type
            raise InvalidImage(
                f"The server could read the image, but it cannot be drawn on here: {excerpt(exc)}"
            ) from exc

    def _places(self, word: str | int) -> list[int]:
        """The numbers of a word, or of words that follow each other."""
        if isinstance(word, int):
            if -len(self.words) <= word < len(self.words):
                return [word]
            raise InvalidRequest(f"The caption has {len(self.words)} words, so there is no number {word}")
        wanted = word.lower().split()
        for begin in range(len(self.words)):
            if wanted and [each.lower() for each in self.words[begin : begin + len(wanted)]] == wanted:
                return [*range(begin, begin + len(wanted))]
        raise InvalidRequest(f"The caption has no {quoted(word)}; its words are {excerpt(', '.join(self.words), 200)}")


def parse_explanation(tensors: Tensors, image: bytes, resize_mode: str) -> Explanation:
    """From the tensors of `parse_caption`, and `words` BYTES [1, W] and `attention` FP32 [1, W, P, P].

    Raises ServerError if one is missing.
    """
    caption = parse_caption(tensors)
    try:
        (words,) = tensors["words"].tolist()
        (attention,) = tensors["attention"]
        if attention.ndim != 3 or len(attention) != len(words):
            raise ValueError("they do not fit")
        return Explanation(caption, tuple(word.decode() for word in words), attention, image, resize_mode)
    except (LookupError, AttributeError, TypeError, ValueError) as exc:
        shapes = excerpt({name: tensor.shape for name, tensor in tensors.items()})
        raise ServerError(
            f"Expected words of shape [1, W] and attention of shape [1, W, P, P], got {shapes}: does the model explain?"
        ) from exc
