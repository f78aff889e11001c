# SPDX-License-Identifier: Apache-2.0
"""transformers, which every stage is held against."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil


@dataclass(frozen=True)
class Generated:
    """What `generate` gave for one image: new tokens, prompt's first, and the new ones' summed log-probability."""

    text: str
    new_ids: list[int]
    score: float


class Reference:
    """A checkpoint as transformers runs it, in f32."""

    def __init__(self, folder: Path) -> None:
        self.model = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = BlipImageProcessorPil.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """image_embeds, f32 [B, N, E]."""
        pixel_values = self.processor(list(images), return_tensors="pt")["pixel_values"]
        embeds: Tensor = self.model.vision_model(pixel_values).last_hidden_state
        return embeds

    @torch.inference_mode()
    def generate(self, image_embeds: Tensor, prompt: str = "", **options: Any) -> list[Generated]:
        """Greedy captions of image_embeds [B, N, E], all with one prompt; `options` as transformers names them."""
        config = self.model.config.text_config
        prompt_ids = [config.bos_token_id, *self.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        ids = torch.tensor([prompt_ids] * len(image_embeds))
        output = self.model.text_decoder.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            encoder_hidden_states=image_embeds.float(),
            eos_token_id=config.sep_token_id,
            pad_token_id=config.pad_token_id,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **({"max_new_tokens": 30} | options),
        )
        scores = self.model.text_decoder.compute_transition_scores(
            output.sequences, output.scores, normalize_logits=True
        )
        results = []
        for sequence, row in zip(output.sequences, scores, strict=True):
            new_ids = sequence[len(prompt_ids) :].tolist()
            if config.sep_token_id in new_ids:  # what follows is padding
                new_ids = new_ids[: new_ids.index(config.sep_token_id) + 1]
            text = self.tokenizer.decode(prompt_ids + new_ids, skip_special_tokens=True)
            results.append(Generated(text, new_ids, float(row[: len(new_ids)].sum())))
        return results


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """‖ours - theirs‖ / ‖theirs‖, in f64."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())
