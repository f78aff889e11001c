# SPDX-License-Identifier: Apache-2.0
"""Retrieval checkpoints with random weights, and what transformers makes of them."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from blipstream.files import DEMO_CHECKPOINT as CHECKPOINT

PARTS = ("tokenizer.json", "tokenizer_config.json", "processor_config.json")


@torch.no_grad()
def save_retrieval_checkpoint(folder: Path, *, own_vision: bool = True, seed: int = 1) -> Path:
    """A retrieval checkpoint of the demo's shape, whose text encoder has random weights, and return the folder.

    Its vision encoder has random weights, too, or, without `own_vision`, the demo's.
    """
    config = BlipConfig.from_pretrained(CHECKPOINT)
    config.initializer_range = config.text_config.initializer_range = 0.1  # with 0.02, all scores are nearly the same
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BlipForImageTextRetrieval(config)
        for name, weight in model.named_parameters():
            if "bias" in name or "norm" in name.lower():  # else they are zeros and ones, which hide mistakes
                weight.add_(torch.randn_like(weight) * 0.1)
        if own_vision:
            for weight in model.vision_model.parameters():
                weight.add_(torch.randn_like(weight) * 0.05)
        else:
            captioner = BlipForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
            model.vision_model.load_state_dict(captioner.vision_model.state_dict())
    model.save_pretrained(folder)
    for part in PARTS:
        shutil.copyfile(CHECKPOINT / part, folder / part)
    return folder


class Scores(NamedTuple):
    """What transformers says of pairs: numbers [N] of each."""

    match: Tensor
    logit: Tensor
    similarity: Tensor


class Maps(NamedTuple):
    """Where a text meets an image, by transformers' attention and torch's gradients."""

    logit: float
    words: list[str]
    layers: Tensor  # [layers, heads, W, P, P]: of each word, attention times positive gradient; without [CLS]


class RetrievalReference:
    """A retrieval checkpoint as transformers runs it, in f32, one text at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = BlipForImageTextRetrieval.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.processor = BlipImageProcessorPil.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def score(self, image: Image.Image, texts: Sequence[str]) -> Scores:
        """The scores of one image and each of the texts: matching by [ENC], similarity by [CLS]."""
        pixel_values = self.processor(image, return_tensors="pt")["pixel_values"]
        pairs, similarities = [], []
        for text in texts:
            ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
            similarities.append(self.model(ids, pixel_values, use_itm_head=False).itm_score[0, 0])
            ids[:, 0] = self.tokenizer.convert_tokens_to_ids("[ENC]")
            pairs.append(self.model(ids, pixel_values).itm_score[0])
        scores = torch.stack(pairs)
        return Scores(scores.softmax(-1)[:, 1], scores[:, 1] - scores[:, 0], torch.stack(similarities))

    def maps(self, image_embeds: Tensor, text: str) -> Maps:
        """The maps of the words of a text, for image_embeds [N, E]."""
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        ids[:, 0] = self.tokenizer.convert_tokens_to_ids("[ENC]")
        words: list[str] = []
        positions: list[list[int]] = []
        for position, piece in enumerate(self.tokenizer.convert_ids_to_tokens(ids[0])[1:-1], 1):
            if piece.startswith("##"):
                words[-1] += piece.removeprefix("##")
                positions[-1].append(position)
            else:
                words.append(piece)
                positions.append([position])
        with torch.inference_mode(False), torch.enable_grad():
            seen = image_embeds[None].clone().float().requires_grad_()
            output = self.model.text_encoder(input_ids=ids, encoder_hidden_states=seen, output_attentions=True)
            scores = self.model.itm_head(output.last_hidden_state[0, 0])
            logit = scores[1] - scores[0]
            gradients = torch.autograd.grad(logit, output.cross_attentions)
        layers = []
        for weights, gradient in zip(output.cross_attentions, gradients, strict=True):
            tokens = (weights.detach() * gradient.clamp(min=0))[0, :, :, 1:]  # [heads, T, P P]
            layers.append(torch.stack([tokens[:, each].mean(1) for each in positions], 1))
        maps = torch.stack(layers)
        side = int(maps.shape[-1] ** 0.5)
        return Maps(logit.item(), words, maps.reshape(*maps.shape[:-1], side, side))

    @torch.inference_mode()
    def image_embeds(self, image: Image.Image) -> Tensor:
        """image_embeds [N, E]."""
        embeds: Tensor = self.model.vision_model(
            self.processor(image, return_tensors="pt")["pixel_values"]
        ).last_hidden_state[0]
        return embeds

    @torch.inference_mode()
    def embed_image(self, image: Image.Image) -> Tensor:
        """The image's embedding [D]."""
        embedded: Tensor = torch.nn.functional.normalize(self.model.vision_proj(self.image_embeds(image)[0]), dim=-1)
        return embedded

    @torch.inference_mode()
    def embed_text(self, text: str) -> Tensor:
        """The text's embedding [D]."""
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        hidden = self.model.text_encoder(input_ids=ids).last_hidden_state[0, 0]
        embedded: Tensor = torch.nn.functional.normalize(self.model.text_proj(hidden), dim=-1)
        return embedded
