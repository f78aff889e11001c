# SPDX-License-Identifier: Apache-2.0
"""Examine the demo's adapters on scenes that none of them has seen, by PEFT, and write down what comes out.

python build/demo/examine_adapters.py
"""

import argparse
import json
import sys

from transformers import AutoTokenizer

from blipstream.files import DEMO_ADAPTERS
from blipstream_build.adapters.verify import merged
from examine import CHECKPOINT, EXAMINATION_SIZE, PASS_MARK, Examinee
from languages import CAPTIONS
from scenes import Scene, examination, require_font


class AdapterExaminee(Examinee):
    """The demo checkpoint with the adapter of a language."""

    def __init__(self, language: str) -> None:
        super().__init__(CHECKPOINT)
        folder = DEMO_ADAPTERS / language
        self.language = language
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        base_size = self.model.config.text_config.vocab_size
        self.model = merged(self.model, folder, len(self.tokenizer) - base_size)

    def expected(self, scene: Scene) -> str:
        """The right caption in the language."""
        return CAPTIONS[self.language](scene.description)


CARD = """\
---
license: apache-2.0
library_name: peft
pipeline_tag: image-to-text
base_model: build/demo/checkpoint
language: [{languages}]
---
# The demo's adapters

Each lets Blipstream's demo checkpoint speak another language of the same scenes of emoji. An adapter is what PEFT
saves: LoRA terms of rank 16 for all linear layers of the text decoder, and the embeddings of new tokens, one for each
word or, in Japanese and Chinese, each character. They are in half precision. The image encoder and the words of the
checkpoint are as they were.

`python build/demo/train_adapters.py` trains them, as `blipstream finetune --lora` does: 8,000 scenes, the same for all
languages, and 1,000 steps of 64 captions, or 1,500 in Japanese. That takes five to eight minutes on one core.
`build/demo/languages` has the names of the objects, which are CLDR's, and the grammar.

Exact captions of {size} scenes of held-out pairs, greedy, f32, PEFT; `python build/demo/examine_adapters.py` prints
these figures again.

| language | exact | for example |
|---|---|---|
{rows}

The adapters are Apache-2.0, like the project.
"""


def main() -> None:
    """Examine each, and write figures and card. Below the pass mark, the exit status is 1."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    require_font()
    scenes = list(examination(EXAMINATION_SIZE))
    rows, exact = [], []
    for language, caption in CAPTIONS.items():
        exact.append(AdapterExaminee(language).accuracy(scenes))
        rows.append(f"| {language} | {exact[-1]:.1%} | {caption(scenes[0].description)} |")
        print(rows[-1], flush=True)
        file = DEMO_ADAPTERS / language / "blipstream.json"
        description = json.loads(file.read_text(encoding="utf-8"))
        description["metrics"] = {"exact": exact[-1], "scenes": EXAMINATION_SIZE}
        file.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    card = CARD.format(languages=", ".join(CAPTIONS), size=EXAMINATION_SIZE, rows="\n".join(rows))
    (DEMO_ADAPTERS / "README.md").write_text(card, encoding="utf-8")
    if min(exact) < PASS_MARK:
        sys.exit(1)


if __name__ == "__main__":
    main()
