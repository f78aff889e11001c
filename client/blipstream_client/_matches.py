# SPDX-License-Identifier: Apache-2.0
"""How well texts match an image, and embeddings of both: what is sent to ask for them, and how the answer is read."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from blipstream_client._exceptions import InvalidRequest, ServerError
from blipstream_client._options import in_utf8
from blipstream_client._tensors import Tensors
from blipstream_client._text import excerpt, quoted

Embedding = npt.NDArray[np.float32]  # [256], of length 1

MATCH, EMBED_IMAGE, EMBED_TEXT = "match", "embed_image", "embed_text"  # the server's names for the models


@dataclass(frozen=True)
class Match:
    """How well one text matches an image."""

    text: str
    match: float  # the probability that it does
    logit: float  # match is the logistic function of logit / temperature, which is 1 if matching is not calibrated
    similarity: float  # the cosine of both embeddings, from -1 to 1, which is no probability


class Matches(tuple[Match, ...]):
    """How well each of several texts matches one image, in the order of the texts."""

    __slots__ = ()

    @property
    def best(self) -> Match:
        """The text that matches most likely. Raises InvalidRequest if there is none."""
        if not self:
            raise InvalidRequest("There are no texts, so none is the best")
        return self.ranked[0]

    @property
    def ranked(self) -> "Matches":
        """The same, the likeliest first."""
        return Matches(sorted(self, key=lambda each: -each.logit))


def listed(texts: Iterable[str]) -> list[str]:
    """The texts. Raises InvalidRequest if they are not several."""
    several = isinstance(texts, Iterable) and getattr(texts, "ndim", 1) == 1  # no table or number of numpy's or pandas'
    if not several or isinstance(texts, str | bytes | bytearray | Mapping):
        raise InvalidRequest(f"texts must be a list of texts, got {quoted(texts)}")
    return [*texts]


def text_tensors(texts: Iterable[str], truncate: bool | None) -> Tensors:
    """The inputs `text`, BYTES [1, N], and `truncate`, BOOL [1, 1], if that is given. Raises InvalidRequest."""
    encoded = np.array([[_encoded(text) for text in listed(texts)]], np.object_)
    if not encoded.size:
        raise InvalidRequest("texts must have at least one text, got none")
    if truncate is None:
        return {"text": encoded}
    if not isinstance(truncate, bool):
        raise InvalidRequest(f"truncate must be True or False, got {quoted(truncate)}")
    return {"text": encoded, "truncate": np.array([[truncate]])}


def parse_matches(texts: Sequence[str], tensors: Tensors) -> Matches:
    """The scores, from `match`, `logit` and `similarity`, each FP32 [1, N]. Raises ServerError."""
    try:
        scores = [tensors[name][0].tolist() for name in ("match", "logit", "similarity")]
        return Matches(Match(*each) for each in zip(texts, *scores, strict=True))
    except (LookupError, AttributeError, TypeError, ValueError) as exc:
        raise _unexpected("match, logit and similarity of shape [1, N]", tensors) from exc


def parse_embedding(tensors: Tensors) -> Embedding:
    """The vector, from `embedding`, FP32 [1, D]. Raises ServerError."""
    try:
        (embedding,) = tensors["embedding"].astype(np.float32)
    except (LookupError, AttributeError, TypeError, ValueError) as exc:
        raise _unexpected("embedding of shape [1, D]", tensors) from exc
    return np.array(embedding)


def _encoded(text: Any) -> bytes:  # noqa: ANN401
    if not isinstance(text, str):
        raise InvalidRequest(f"A text must be str, got {quoted(text)}")
    return in_utf8(text, "A text must be one")


def _unexpected(expected: str, tensors: Tensors) -> ServerError:
    shapes = excerpt({name: tensor.shape for name, tensor in tensors.items()})
    return ServerError(f"Expected {expected}, got {shapes}: is it a model for matching?")
