# SPDX-License-Identifier: Apache-2.0
"""What a repository's matcher says of pairs, computed as the server does."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from blipstream.config import image_encoder_of
from blipstream.errors import InvalidInput
from blipstream.images.pixels import load_pixels
from blipstream.images.shapes import Pixels
from blipstream.matching import Job, Matcher
from blipstream.vision import load_encoder
from blipstream_build.configs import Config
from blipstream_calibrate.pairs import Pair

IMAGES = 8  # at once


class Scorer:
    """The image encoder and the matcher of a repository."""

    def __init__(self, artifact: Path, repository: Path, config: Config) -> None:
        """Load both. Raises ArtifactError if one is missing or broken."""
        encoder = repository / image_encoder_of(artifact, repository) / "1" / config.runtime
        device = config.device if torch.cuda.is_available() else "cpu"
        self._encoder = load_encoder(config.runtime, encoder, device)
        self._matcher = Matcher.load(config.text_runtime, artifact, device)

    def logits(
        self, pairs: Sequence[Pair], *, truncate: bool, advance: Callable[[int], None]
    ) -> npt.NDArray[np.float64]:
        """The logit of each pair, [pairs]. An image is read once for all of its texts.

        `advance` gets the number of images that have just been read. Raises InvalidInput if one of them, or a text,
        cannot be read.
        """
        ids = [self._ids(pair, truncate) for pair in pairs]
        places: dict[Path, list[int]] = {}
        for number, pair in enumerate(pairs):
            places.setdefault(pair.image, []).append(number)
        images = list(places)
        logits = np.zeros(len(pairs))
        for start in range(0, len(images), IMAGES):
            batch = [places[image] for image in images[start : start + IMAGES]]
            pixels = np.stack([self._pixels(pairs[numbers[0]]) for numbers in batch])
            embeds = torch.as_tensor(self._encoder.encode(pixels)).cpu().half().numpy()  # as between Triton's models
            texts = [[ids[number] for number in numbers] for numbers in batch]
            jobs = [Job(*each) for each in zip(texts, embeds, strict=True)]
            self._matcher.finish(jobs)
            for numbers, job in zip(batch, jobs, strict=True):
                logits[numbers] = job.logits
            advance(len(batch))
        return logits

    def _ids(self, pair: Pair, truncate: bool) -> list[int]:
        try:
            return self._matcher.reader.read([pair.text.encode("utf-8", "surrogatepass")], truncate=truncate)[0]
        except InvalidInput as exc:
            raise InvalidInput(f"{pair.place}: {str(exc).replace('set truncate', 'give --truncate')}") from exc

    def _pixels(self, pair: Pair) -> Pixels:
        try:
            return load_pixels(pair.image.read_bytes(), self._matcher.config.vision.image_size)
        except OSError as exc:
            raise InvalidInput(f"{pair.place}: {pair.image} cannot be read: {exc.strerror}") from exc
        except InvalidInput as exc:
            raise InvalidInput(f"{pair.place}: {pair.image}: {exc}") from exc
