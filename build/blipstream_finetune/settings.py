# SPDX-License-Identifier: Apache-2.0
"""What is trained and how."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

Metric = Literal["loss", "exact", "cider"]
METRICS = get_args(Metric)
TrainingDType = Literal["auto", "f32", "bf16"]
MAX_NORM = 1.0  # gradients are clipped to it


@dataclass(frozen=True)
class Settings:
    """All that decides the weights, beside checkpoint and data. The defaults are the recipe of BLIP's authors.

    Source: Li and others, BLIP, 2022, and their caption_coco.yaml.
    """

    lora: bool = False  # low-rank terms of the text decoder's linear layers, instead of its weights
    encoder: bool = True  # whether the image encoder is trained
    learning_rate: float = 1e-5  # the highest
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    batch: int = 32  # pairs a step
    accumulate: int = 1  # parts in which a step is computed
    epochs: float = 5
    steps: int | None = None  # instead of epochs
    rank: int = 16  # of LoRA
    alpha: int = 32  # LoRA's terms are multiplied by alpha / rank
    prompt: str = ""  # before each caption, and not learnt
    metric: Metric = "loss"  # which weights are best
    validate_steps: int | None = None  # after so many steps, instead of each epoch
    patience: int | None = None  # validations without a better one, after which training ends
    dtype: TrainingDType = "auto"
    seed: int = 0

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter comes out. With terms in the encoder it could not share it, so those are merged."""
        return self.lora and not self.encoder

    @property
    def schedule(self) -> str:
        """How the learning rate goes."""
        return "one cycle" if self.lora else "cosine to 0"

    def as_dict(self) -> dict[str, Any]:
        """By name, for JSON."""
        return asdict(self)


FULL = Settings()
# measured on the demo checkpoint: a learning rate of 4e-3 diverges
LORA = replace(FULL, lora=True, encoder=False, learning_rate=1.5e-3, weight_decay=0.0, label_smoothing=0.0, batch=64)
