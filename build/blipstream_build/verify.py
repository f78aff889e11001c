# SPDX-License-Identifier: Apache-2.0
"""Compare freshly built artifacts with transformers, stage by stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BlipForConditionalGeneration

from blipstream.config import TextConfig
from blipstream.decoding import Engine
from blipstream.images.pixels import load_pixels
from blipstream.options import DecodingOptions
from blipstream.vision import Encoder
from blipstream_build.checkpoint import Checkpoint
from blipstream_build.quantisation import Agreement

# The largest relative error of a stage's output, by dtype. Twelve post-norm layers add up more of it than a ViT's
TOLERANCE = {
    "preprocess": {"u8": 0.0},
    "encoder": {"f32": 1e-4, "f16": 5e-3, "bf16": 1e-2, "fp8": 0.25},  # fp8: captions decide
    "decoder": {"f32": 1e-4, "f16": 5e-3, "bf16": 3e-2},
    # of matching: embeddings of images and texts, and logits of pairs, which are differences
    "images": {"f32": 1e-4},
    "texts": {"f32": 1e-4, "f16": 5e-3, "bf16": 3e-2},
    "pairs": {"f32": 1e-4, "f16": 1e-2, "bf16": 5e-2},
}


TOO_FAR = "what was built is too far from transformers"


@dataclass(frozen=True)
class Stage:
    """A stage's output and the reference's, from the same input, compared in f64."""

    name: str
    dtype: str
    ours: Tensor
    theirs: Tensor

    @property
    def maximum(self) -> float:
        """max |ours - theirs|."""
        return float((self.ours.double() - self.theirs.double()).abs().max())

    @property
    def relative(self) -> float:
        """‖ours - theirs‖ / ‖theirs‖."""
        theirs = self.theirs.double()
        return float((self.ours.double() - theirs).norm() / theirs.norm())

    @property
    def tolerance(self) -> float:
        """The largest relative error that passes."""
        return TOLERANCE[self.name][self.dtype]


class Captions(NamedTuple):
    """The captions of one image."""

    image: str
    ours: str
    theirs: str


def show(stages: Sequence[Stage]) -> None:
    """Print how far the stages are from the reference."""
    for each in stages:
        click.echo(
            f"  {each.name:10} {each.dtype:4}  max error {each.maximum:.1e}  "
            f"relative error {each.relative:.1e}  allowed {each.tolerance:.0e}"
        )


def are_too_far(stages: Sequence[Stage]) -> bool:
    """Whether a stage differs from the reference by more than it may."""
    return any(not stage.relative <= stage.tolerance for stage in stages)  # written so that NaN fails, too


@dataclass(frozen=True)
class Report:
    """The result of a verification."""

    stages: list[Stage]
    captions: list[Captions]  # of the samples
    opening: str  # the first token for a plain picture: health checks ask a server for no more
    agreement: Agreement | None = None  # of an encoder in 8 bits with f32, on the user's images

    @property
    def fault(self) -> str:
        """Why this may not be served, or "" if it may.

        A stage may differ too much. Ours and transformers' may also be wrong in the same way: a caption without words
        is none. A sample's caption that differs is no fault, since a near tie may change it in bf16. In 8 bits,
        too many captions of the user's images may differ.
        """
        if self.agreement and self.agreement.fault:
            return self.agreement.fault
        if are_too_far(self.stages):
            return TOO_FAR
        silent = [each.image for each in self.captions if not (has_words(each.ours) and has_words(each.theirs))]
        if silent:
            return f"it has no words for {len(silent)} of {len(self.captions)} samples, such as {silent[0]}"
        if not self.opening.strip():  # a quotation mark alone is fine
            return "it says nothing of a plain picture, for which health checks ask"
        return ""

    @property
    def is_monotonous(self) -> bool:
        """Whether all samples got one caption, as from an untrained checkpoint, or from one for a narrow field."""
        return len({each.ours for each in self.captions}) == 1 < len(self.captions)


def has_words(caption: str) -> bool:
    """Whether a caption has a letter or a digit. Random weights say `) ) ) )` of every image."""
    return any(character.isalnum() for character in caption)


def logits_after(model: BlipForConditionalGeneration, ids: Tensor, image_embeds: Tensor) -> Tensor:
    """The reference's logits of the token after ids [R, T], given image_embeds [R, N, E]: [R, V]."""
    logits: Tensor = model.text_decoder(input_ids=ids, encoder_hidden_states=image_embeds.float()).logits
    return logits[:, -1]


def greedy_tokens(
    model: BlipForConditionalGeneration, image_embeds: Tensor, text: TextConfig, max_tokens: int
) -> Tensor:
    """The reference's captions by greedy search, int64 [R, T] from the start token on, given image_embeds [R, N, E]."""
    tokens: Tensor = model.text_decoder.generate(
        input_ids=torch.full((len(image_embeds), 1), text.start_token_id),
        encoder_hidden_states=image_embeds.float(),
        eos_token_id=text.end_token_id,
        pad_token_id=model.config.text_config.pad_token_id,
        max_new_tokens=max_tokens,
        min_new_tokens=0,  # config.json may ask for more
        do_sample=False,
    )
    return tokens


@torch.inference_mode()
def verify(
    checkpoint: Checkpoint,
    model: BlipForConditionalGeneration,
    encoder: Encoder,
    engine: Engine,
    images: Sequence[Path],
) -> Report:
    """Caption `images` by the artifacts and by transformers in f32, and compare after each stage."""
    text = engine.config.text

    processor = checkpoint.load_image_processor(model)
    pictures = [Image.open(path) for path in images]
    resized = processor(pictures, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
    pixels = np.stack([load_pixels(path.read_bytes(), engine.config.vision.image_size) for path in images])

    pixel_values = processor(pictures, return_tensors="pt")["pixel_values"]
    their_embeds = model.vision_model(pixel_values).last_hidden_state
    our_embeds = torch.as_tensor(encoder.encode(pixels)).cpu()

    embeds = their_embeds.half()  # as between Triton's models
    start = torch.full((len(images), 1), text.start_token_id)
    their_logits = logits_after(model, start, embeds)
    our_logits = engine.logits(start, embeds).cpu()

    options = DecodingOptions()
    requests = [engine.request(embed, options) for embed in our_embeds.half()]
    plain = torch.as_tensor(encoder.encode(np.full_like(pixels[:1], 128))).cpu().half()
    opening = engine.request(plain[0], DecodingOptions(max_tokens=1))
    engine.generate([*requests, opening])
    tokens = greedy_tokens(model, embeds, text, options.max_tokens)
    captions = checkpoint.load_tokenizer(model).batch_decode(tokens, skip_special_tokens=True)
    return Report(
        [
            Stage("preprocess", "u8", torch.from_numpy(pixels).permute(0, 3, 1, 2), resized),
            Stage("encoder", encoder.dtype, our_embeds, their_embeds),
            Stage("decoder", engine.dtype, our_logits, their_logits),
        ],
        [
            Captions(path.name, request.captions[0].text, caption)
            for path, request, caption in zip(images, requests, captions, strict=True)
        ],
        opening.captions[0].text,
    )
