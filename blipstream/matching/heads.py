# SPDX-License-Identifier: Apache-2.0
"""What matching computes from hidden states: the logit of a pair, and embeddings of images and texts. In f32."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from blipstream.config import BUILD_HINT
from blipstream.errors import ArtifactError

WEIGHTS_NAME = "heads.safetensors"
EPSILON = 1e-12  # of torch's `normalize`

Floats = npt.NDArray[np.float32]


class Heads:
    """Three linear layers. D is the width of embeddings, E that of image_embeds, h that of hidden states."""

    def __init__(self, folder: Path) -> None:
        """Load an artifact's heads. Raises ArtifactError if they are missing or broken."""
        file = folder / WEIGHTS_NAME
        try:
            self._weights: dict[str, Floats] = load_file(file)
        except (OSError, SafetensorError) as exc:
            raise ArtifactError(f"{file} cannot be loaded: {BUILD_HINT}") from exc

    @property
    def direction(self) -> Floats:
        """What the logit's gradient is in hidden states: [h]."""
        difference: Floats = self._weights["match.weight"][1] - self._weights["match.weight"][0]
        return difference

    def logits(self, hidden: Floats) -> Floats:
        """How much more likely than not each text matches its image, as a log-odds: [..., h] -> [...]."""
        scores = self._linear("match", hidden)  # of "no" and "yes"
        difference: Floats = scores[..., 1] - scores[..., 0]
        return difference

    def text_embeddings(self, hidden: Floats) -> Floats:
        """Texts that were read alone, [..., h] -> [..., D]."""
        return _normalized(self._linear("text", hidden))

    def image_embedding(self, image_embeds: Floats) -> Floats:
        """An image, [..., N, E] -> [..., D]."""
        return _normalized(self._linear("image", image_embeds[..., 0, :].astype(np.float32)))

    def similarities(self, image_embeds: Floats, text_embeddings: Sequence[Floats]) -> Floats:
        """The cosines of one image, [N, E], and each of its texts, [D] each -> [texts]."""
        cosines: Floats = np.stack(text_embeddings) @ self.image_embedding(image_embeds)
        return cosines

    def _linear(self, name: str, x: Floats) -> Floats:
        output: Floats = x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]
        return output


def probabilities(logits: Floats, temperature: float = 1.0) -> Floats:
    """The logistic function of logits / temperature, without overflow."""
    small = np.exp(-np.abs(logits) / temperature)
    result: Floats = (np.where(logits >= 0, 1, small) / (1 + small)).astype(np.float32)
    return result


def _normalized(x: Floats) -> Floats:
    normalized: Floats = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), EPSILON)
    return normalized
