# SPDX-License-Identifier: Apache-2.0
"""Compare a freshly built retrieval checkpoint with transformers, stage by stage."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import BlipForImageTextRetrieval

from blipstream.images.pixels import load_pixels
from blipstream.matching import Job, Matcher
from blipstream.vision import Encoder
from blipstream_build.checkpoint import Checkpoint
from blipstream_build.verify import TOO_FAR, Stage, are_too_far


@dataclass(frozen=True)
class MatchingReport:
    """The result of a verification."""

    stages: list[Stage]

    @property
    def fault(self) -> str:
        """Why this may not be served, or "" if it may."""
        return TOO_FAR if are_too_far(self.stages) else ""


@torch.inference_mode()
def verify_matching(
    checkpoint: Checkpoint,
    model: BlipForImageTextRetrieval,
    encoder: Encoder,
    matcher: Matcher,
    images: Sequence[Path],
) -> MatchingReport:
    """Match `images` with their captions, and with each other's, by the artifacts and by transformers in f32."""
    config = matcher.config.match_config
    processor, tokenizer = checkpoint.load_image_processor(model), checkpoint.load_tokenizer(model)
    pictures = [Image.open(path) for path in images]
    resized = processor(pictures, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
    pixels = np.stack([load_pixels(path.read_bytes(), matcher.config.vision.image_size) for path in images])
    their_embeds = model.vision_model(processor(pictures, return_tensors="pt")["pixel_values"]).last_hidden_state
    our_embeds = torch.as_tensor(encoder.encode(pixels)).cpu()

    embeds = their_embeds.half()  # as between Triton's models
    captions = json.loads((images[0].parent / "captions.json").read_text(encoding="utf-8"))
    texts = [captions[path.name] for path in images]
    read = [matcher.reader.read_caption(text.encode()) for text in texts]  # whatever language the checkpoint speaks
    jobs = [Job(read, embed.numpy()) for embed in embeds]
    matcher.finish(jobs)
    logits, embeddings = [], []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]] * len(images))
        ids[:, 0] = config.text_token_id
        alone = model.text_encoder(input_ids=ids[:1]).last_hidden_state[0, 0]
        embeddings.append(normalize(model.text_proj(alone), dim=-1))
        ids[:, 0] = config.pair_token_id
        pairs = model.text_encoder(input_ids=ids, encoder_hidden_states=embeds.float()).last_hidden_state[:, 0]
        logits.append(model.itm_head(pairs).diff()[:, 0])
    our_logits = np.stack([job.logits for job in jobs])
    their_images = normalize(model.vision_proj(embeds[:, 0].float()), dim=-1)
    our_images = matcher.heads.image_embedding(embeds.numpy())
    return MatchingReport(
        [
            Stage("preprocess", "u8", torch.from_numpy(pixels).permute(0, 3, 1, 2), resized),
            Stage("encoder", encoder.dtype, our_embeds, their_embeds),
            Stage("images", "f32", torch.from_numpy(our_images), their_images),
            Stage("texts", matcher.dtype, torch.from_numpy(np.stack(jobs[0].embeddings)), torch.stack(embeddings)),
            Stage("pairs", matcher.dtype, torch.from_numpy(our_logits), torch.stack(logits, 1)),
        ]
    )
