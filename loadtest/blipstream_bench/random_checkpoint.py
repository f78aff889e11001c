# SPDX-License-Identifier: Apache-2.0
"""BLIPs of the real shapes with random weights: as fast as the real ones, and as good for comparing outputs.

save_random_checkpoint(Path("checkpoint"), "base")
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blipstream.files import DEMO_CHECKPOINT

CAPTIONER = "BlipForConditionalGeneration"
IMAGE_SIZE = 384  # pixels, both sides
STANDARD_DEVIATION = 0.02  # the default for the vision tower, 1e-10, becomes zeros in fp16
VOCABULARY = 30524
# As in BERT's vocabulary, which BLIP uses. Every other id is a word of its own, so different ids give different texts
SPECIAL_TOKENS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, "[DEC]": 30522, "[ENC]": 30523}
WORDS = {  # the build recognises that vocabulary by them
    "a": 1037,
    "the": 1996,
    "on": 2006,
    "with": 2007,
    "her": 2014,
    "woman": 2450,
    "beach": 3509,
    "sitting": 3564,
    "dog": 3899,
}


@dataclass(frozen=True)
class Vision:
    """The shape of a vision tower."""

    width: int
    mlp_width: int
    layers: int
    heads: int


ARCHITECTURES = {"base": Vision(768, 3072, 12, 12), "large": Vision(1024, 4096, 24, 16)}


def save_random_checkpoint(
    folder: Path,
    architecture: str,
    layers: int | None = None,
    seed: int = 0,
    kind: str = CAPTIONER,
) -> Path:
    """Write a checkpoint of an architecture into `folder`, in transformers' format, and return the folder.

    `layers` replaces the number of layers in the vision tower and in the text model. `kind` is a class of transformers.
    """
    import torch  # here, because both are slow to import
    import transformers
    from transformers import BlipConfig, BlipTextConfig, BlipVisionConfig

    vision = ARCHITECTURES[architecture]
    config = BlipConfig(
        text_config=BlipTextConfig(
            vocab_size=VOCABULARY,
            encoder_hidden_size=vision.width,
            num_attention_heads=12,
            num_hidden_layers=layers or 12,
            initializer_range=STANDARD_DEVIATION,
        ),
        vision_config=BlipVisionConfig(
            hidden_size=vision.width,
            intermediate_size=vision.mlp_width,
            num_attention_heads=vision.heads,
            num_hidden_layers=layers or vision.layers,
            image_size=IMAGE_SIZE,
            initializer_range=STANDARD_DEVIATION,
        ),
        initializer_range=STANDARD_DEVIATION,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        getattr(transformers, kind)(config).save_pretrained(folder)
    shutil.copyfile(DEMO_CHECKPOINT / "tokenizer_config.json", folder / "tokenizer_config.json")
    _write(folder / "tokenizer.json", tokenizer_settings())
    processor = _read(DEMO_CHECKPOINT / "processor_config.json")
    processor["image_processor"]["size"] = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    _write(folder / "processor_config.json", processor)
    return folder


def tokenizer_settings() -> dict[str, Any]:
    """The content of the demo's tokenizer.json with a vocabulary of the real size."""
    settings = _read(DEMO_CHECKPOINT / "tokenizer.json")
    by_id = {number: token for token, number in (SPECIAL_TOKENS | WORDS).items()}
    settings["model"]["vocab"] = {by_id.get(number, f"w{number}"): number for number in range(VOCABULARY)}
    for token in settings["added_tokens"]:
        token["id"] = SPECIAL_TOKENS[token["content"]]
    for token in settings["post_processor"]["special_tokens"].values():
        token["ids"] = [SPECIAL_TOKENS[token["id"]]]
    return settings


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
