# SPDX-License-Identifier: Apache-2.0
"""The committed checkpoint, its card and its samples."""

from PIL import Image
from transformers import BlipProcessor

from scenes import Scene
from tests.conftest import CHECKPOINT, SAMPLES
from tests.reference import Reference


def test_size() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 12e6


def test_accuracy(reference: Reference, scenes: list[Scene], scene_images: list[Image.Image]) -> None:
    """Test the first 200 of the 500 examination scenes. build/demo/examine.py takes them all."""
    answers = [
        one.text for i in range(0, 200, 50) for one in reference.generate(reference.embed(scene_images[i : i + 50]))
    ]
    assert sum(answer == scene.caption for answer, scene in zip(answers, scenes, strict=True)) >= 0.97 * len(scenes)


def test_processor_loads() -> None:
    processor = BlipProcessor.from_pretrained(CHECKPOINT)
    ids = processor.tokenizer("a strawberry")["input_ids"]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == "a strawberry"


def test_card() -> None:
    card = (CHECKPOINT / "README.md").read_text()
    for part in ("## Data", "## Training", "## Accuracy", "SIL Open Font License", "500 of held-out pairs"):
        assert part in card


def test_samples(samples: dict[str, str]) -> None:
    assert len(samples) == 8
    assert {path.name for path in SAMPLES.glob("*.jpg")} == set(samples)
