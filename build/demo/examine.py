# SPDX-License-Identifier: Apache-2.0
"""Examine the demo checkpoint on scenes it has never seen, and write its model card and the sample images.

python build/demo/examine.py
"""

import argparse
import json
import random
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, BlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from scenes import (
    ARRANGEMENTS,
    BACKGROUNDS,
    OBJECTS,
    Scene,
    examination,
    held_out_pairs,
    random_scene,
    require_font,
)

DEMO = Path(__file__).resolve().parent
CHECKPOINT = DEMO / "checkpoint"
SAMPLES = DEMO / "samples"
SCENE_SIZE = 384  # pixels; twice the checkpoint's image size, so that resizing is tested
EXAMINATION_SIZE = 500
PASS_MARK = 0.97


class Examinee:
    """A checkpoint as transformers runs it: PIL preprocessing, greedy generation in f32."""

    def __init__(self, folder: Path) -> None:
        self.model = BlipForConditionalGeneration.from_pretrained(folder).eval()
        self.processor = BlipImageProcessorPil.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def expected(self, scene: Scene) -> str:
        """The right caption."""
        return scene.caption

    @torch.inference_mode()
    def captions(self, scenes: list[Scene]) -> list[str]:
        """The caption of each scene."""
        answers: list[str] = []
        for start in range(0, len(scenes), 50):
            images = [scene.draw(SCENE_SIZE) for scene in scenes[start : start + 50]]
            pixel_values = self.processor(images, return_tensors="pt")["pixel_values"]
            tokens = self.model.generate(pixel_values=pixel_values, max_new_tokens=30, do_sample=False)
            answers += self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return answers

    def accuracy(self, scenes: list[Scene]) -> float:
        """The fraction of scenes whose caption is exactly right."""
        answers = self.captions(scenes)
        expected = [self.expected(scene) for scene in scenes]
        wrong = [pair for pair in zip(answers, expected, strict=True) if pair[0] != pair[1]]
        for answer, caption in wrong[:5]:
            print(f"    {answer!r} instead of {caption!r}")
        return 1 - len(wrong) / len(scenes)


def write_samples() -> None:
    """Write two scenes of each arrangement as JPEG files beside captions.json. Pairs are held-out ones."""
    rng = random.Random("samples")
    SAMPLES.mkdir(exist_ok=True)
    captions = {}
    for arrangement in ARRANGEMENTS * 2:
        scene = random_scene(rng, arrangement, held_out=arrangement in ("left", "above"))
        name = scene.caption.partition(" on a ")[0].replace(" ", "-") + ".jpg"
        scene.draw(SCENE_SIZE).save(SAMPLES / name, quality=92)
        captions[name] = scene.caption
    text = json.dumps(dict(sorted(captions.items())), indent=2)
    (SAMPLES / "captions.json").write_text(text + "\n", encoding="utf-8")


def write_card(examinee: Examinee, held_out: float, others: dict[str, float]) -> None:
    """Write the checkpoint's README.md: data, training, accuracy, licences."""
    parameters = sum(p.numel() for p in examinee.model.parameters())
    rows = "\n".join(f"| {what} | {accuracy:.1%} |" for what, accuracy in others.items())
    (CHECKPOINT / "README.md").write_text(
        CARD.format(
            parameters=f"{parameters / 1e6:.1f}M",
            image_size=examinee.model.config.vision_config.image_size,
            tokens=len(examinee.tokenizer),
            objects=len(OBJECTS),
            backgrounds=len(BACKGROUNDS),
            pairs=len(held_out_pairs()),
            size=EXAMINATION_SIZE,
            held_out=f"{held_out:.1%}",
            rows=rows,
            names=", ".join(sorted(OBJECTS)),
        ),
        encoding="utf-8",
    )


CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-to-text
language: en
---
# Blipstream's demo checkpoint

A BLIP captioner of {parameters} parameters in transformers' own format, for trying and testing Blipstream where the
real checkpoints cannot be downloaded. It captions scenes of emoji and nothing else: a photograph gets nonsense.

```python
from transformers import BlipForConditionalGeneration, BlipProcessor

model = BlipForConditionalGeneration.from_pretrained("build/demo/checkpoint")
processor = BlipProcessor.from_pretrained("build/demo/checkpoint")
```

## Data
Scenes drawn by `build/demo/scenes.py`: {objects} objects from Noto Color Emoji on {backgrounds} plain backgrounds; one
object, two of a kind, one to the left of another, or one above another; position, size, rotation and background
colour vary. {pairs} of the pairs of objects never share a training scene. Captions look like "a key to the left of a
strawberry on a blue background"; a WordPiece vocabulary of {tokens} tokens spells them, many names in several pieces.

## Training
`python build/demo/train.py`: from random weights, on 200,000 scenes of {image_size} x {image_size} pixels, each drawn
once; Muon for the matrices, AdamW for the rest, bf16 autocast; about an hour on two CPU cores. The vision
position embedding starts from 2-D sine tables, without which relations are learnt long after objects.

## Accuracy
Exact captions, greedy, f32, transformers; `python build/demo/examine.py` prints these figures again.

| scenes | exact |
|---|---|
| {size} of held-out pairs | {held_out} |
{rows}

## Licences
The checkpoint is Apache-2.0, like the project. The scenes show glyphs of Noto Color Emoji, a font by Google under the
SIL Open Font License 1.1, which leaves documents and pictures made with the font to their makers. The font itself
is not part of this project: Debian's package fonts-noto-color-emoji brings it.

Objects: {names}.
"""


def main() -> None:
    """Examine the checkpoint, and write card and samples. Below the pass mark, the exit status is 1."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    require_font()
    examinee = Examinee(CHECKPOINT)
    held_out = examinee.accuracy(list(examination(EXAMINATION_SIZE)))
    print(f"{held_out:.1%} of {EXAMINATION_SIZE} captions of held-out pairs are exact (pass mark {PASS_MARK:.0%})")
    rng = random.Random("examination of the rest")
    others = {}
    for arrangement, label in zip(ARRANGEMENTS, ("one object", "two of a kind", "left of", "above"), strict=True):
        accuracy = examinee.accuracy([random_scene(rng, arrangement) for _ in range(200)])
        others[f"200 of {label}, any pair in training"] = accuracy
        print(f"{accuracy:.1%} of 200 with {label}")
    if held_out < PASS_MARK:
        sys.exit(1)
    write_samples()
    write_card(examinee, held_out, others)


if __name__ == "__main__":
    main()
