# SPDX-License-Identifier: Apache-2.0
"""The mix of requests of a load test: a YAML file with images, sizes and options, from which users draw by weight."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from PIL import Image

from blipstream.files import SAMPLES
from blipstream_client import Client, ExplainOptions

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
ORIGINAL = "original"
JPEG_QUALITY = 90

T = TypeVar("T")


class MixError(Exception):
    """The mix file cannot be used; the text is one sentence."""


@dataclass(frozen=True)
class CaptionRequest:
    """One request to send."""

    kind: str
    size: str
    image: bytes
    options: dict[str, Any]
    stream: bool = False
    explain: bool = False
    embed: bool = False
    texts: tuple[str, ...] = ()  # to be matched with the image or embedded, instead of captioning it

    def ask(self, client: Client) -> list[float]:
        """Send the request and wait for the answer. Raises BlipstreamError.

        Returns when the texts of a stream came, by time.perf_counter(), and nothing for other requests.
        """
        if self.explain:
            client.explain(self.image, **self.options)
            return []
        if self.embed:
            if self.texts:
                client.embed_text(*self.texts)
            else:
                client.embed_image(self.image, **self.options)
            return []
        if self.texts:
            client.match(self.image, self.texts, **self.options)
            return []
        if not self.stream:
            client.caption(self.image, **self.options)
            return []
        return [time.perf_counter() for piece in client.stream(self.image, **self.options) if piece.text]


@dataclass(frozen=True)
class Mix:
    """The requests that users send, and how often."""

    images: dict[str, list[bytes]]  # by size
    sizes: dict[str, float]  # weights
    kinds: dict[str, float]  # weights
    options: dict[str, dict[str, Any]]  # by kind; of a list, each request has one value
    streams: frozenset[str] = frozenset()  # kinds that are answered word by word
    explained: frozenset[str] = frozenset()  # kinds that are answered with heatmaps
    embedded: frozenset[str] = frozenset()  # kinds that are answered with an embedding, of one text if they have texts
    texts: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by kind, of those that match or embed texts

    def draw(self, rng: random.Random) -> CaptionRequest:
        """A random request; kind and size are drawn by weight."""
        return self._request(_by_weight(rng, self.kinds), _by_weight(rng, self.sizes), rng)

    def one_of_each(self) -> Iterator[CaptionRequest]:
        """The fewest requests that have each kind and each size, to warm up with."""
        rng = random.Random(0)  # noqa: S311
        kinds, sizes = list(self.kinds), list(self.sizes)
        for i in range(max(len(kinds), len(sizes))):
            yield self._request(kinds[i % len(kinds)], sizes[i % len(sizes)], rng)

    def _request(self, kind: str, size: str, rng: random.Random) -> CaptionRequest:
        options = {
            name: rng.choice(value) if isinstance(value, list) else value for name, value in self.options[kind].items()
        }
        texts, embed = self.texts.get(kind, ()), kind in self.embedded
        return CaptionRequest(
            kind,
            size,
            image=rng.choice(self.images[size]),
            options=options,
            stream=kind in self.streams,
            explain=kind in self.explained,
            embed=embed,
            texts=(rng.choice(texts),) if embed and texts else texts,
        )


def load(path: Path) -> Mix:
    """Read a mix file and the images that it names. Raises MixError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as exc:
        raise MixError(f"{path} cannot be read as YAML: {' '.join(str(exc).split())}") from exc
    content = _mapping(content, path, "the file", {"images", "requests"})
    images = _mapping(content.get("images"), path, "images", {"folder", "sizes"})
    requests = _mapping(content.get("requests"), path, "requests")
    kinds = {
        str(kind): _mapping(
            each, path, f"requests.{kind}", {"weight", "options", "stream", "explain", "embed", "texts"}
        )
        for kind, each in requests.items()
    }
    sizes = _weights(_mapping(images.get("sizes"), path, "images.sizes"), path, "images.sizes")
    weights = _weights({kind: each.get("weight", 1) for kind, each in kinds.items()}, path, "requests")
    folder = path.parent / str(images["folder"]) if images.get("folder") else SAMPLES
    return Mix(
        images=_read_images(folder, sizes, path),
        sizes=sizes,
        kinds=weights,
        options={kind: _options(kinds[kind].get("options") or {}, path, kind) for kind in weights},
        streams=_switched("stream", weights, kinds, path),
        explained=_switched("explain", weights, kinds, path),
        embedded=_switched("embed", weights, kinds, path),
        texts={kind: _texts(kinds[kind], path, kind) for kind in weights if "texts" in kinds[kind]},
    )


def _mapping(value: object, path: Path, where: str, known: set[str] | None = None) -> dict[Any, Any]:
    if not isinstance(value, dict) or not value:
        raise MixError(f"{path}: {where} must be a mapping, got {value!r}")
    if known and (strange := set(value) - known):
        raise MixError(
            f"{path}: {where} has {', '.join(sorted(map(str, strange)))}; known are {', '.join(sorted(known))}"
        )
    return value


def _weights(values: dict[Any, Any], path: Path, where: str) -> dict[str, float]:
    """The weights above zero, by name."""
    for name, weight in values.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
            raise MixError(f"{path}: the weight of {name} in {where} must be a number of at least 0, got {weight!r}")
    weights = {str(name): float(weight) for name, weight in values.items() if weight}
    if not weights:
        raise MixError(f"{path}: {where} needs at least one weight above 0")
    return weights


def _switched(name: str, weights: dict[str, float], kinds: dict[str, dict[Any, Any]], path: Path) -> frozenset[str]:
    """The kinds with a weight for which a switch is on."""
    for kind in weights:
        value = kinds[kind].get(name, False)
        if not isinstance(value, bool):
            raise MixError(f"{path}: requests.{kind}.{name} must be true or false, got {value!r}")
        if value:
            _check_beside(name, kinds[kind], path, kind)
    return frozenset(kind for kind in weights if kinds[kind].get(name))


def _texts(request: dict[Any, Any], path: Path, kind: str) -> tuple[str, ...]:
    """The texts that are to be matched with an image, or embedded."""
    texts = request["texts"]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise MixError(f"{path}: requests.{kind}.texts must be a list of texts, got {texts!r}")
    _check_beside("texts", request, path, kind)
    return tuple(texts)


def _check_beside(name: str, request: dict[Any, Any], path: Path, kind: str) -> None:
    """Check that nothing stands beside an entry of a request that has no meaning there."""
    if name == "explain" and request.get("stream"):
        raise MixError(f"{path}: requests.{kind} is both stream and explain: leave one of them out")
    if name in ("embed", "texts"):
        known = set() if request.get("embed") and request.get("texts") else {"resize_mode"}
        if request.get("stream") or request.get("explain") or set(request.get("options") or {}) - known:
            meant = f"only the option {known.pop()} has a meaning" if known else "no option has a meaning"
            raise MixError(f"{path}: requests.{kind} has {name}, beside which {meant}")


def _options(options: object, path: Path, kind: str) -> dict[str, Any]:
    """Check the names of options; the client checks the values when it sends them."""
    known = set(get_type_hints(ExplainOptions))
    options = _mapping(options, path, f"requests.{kind}.options", known) if options else {}
    for name, value in options.items():
        if value == []:
            raise MixError(f"{path}: requests.{kind}.options.{name} needs at least one value to choose from")
    return options


def _read_images(folder: Path, sizes: dict[str, float], path: Path) -> dict[str, list[bytes]]:
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise MixError(f"{path}: images.folder {folder} has no images: put JPEG, PNG or WebP files there")
    originals = [file.read_bytes() for file in files]
    images = {}
    for size in sizes:
        if size != ORIGINAL and not (size.isdecimal() and int(size) > 0):
            raise MixError(f"{path}: a size in images.sizes must be {ORIGINAL!r} or pixels such as 640, got {size!r}")
        try:
            images[size] = originals if size == ORIGINAL else [_resized(image, int(size)) for image in originals]
        except OSError as exc:
            raise MixError(f"{path}: an image in {folder} cannot be resized: {exc}") from exc
    return images


def _resized(encoded: bytes, longer_side: int) -> bytes:
    buffer = BytesIO()
    with Image.open(BytesIO(encoded)) as image:
        ratio = longer_side / max(image.size)
        size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _by_weight(rng: random.Random, weights: dict[T, float]) -> T:
    return rng.choices(list(weights), list(weights.values()))[0]
