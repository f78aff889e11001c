# SPDX-License-Identifier: Apache-2.0
"""Compare a freshly converted adapter with PEFT, which reads the same folder by its own code."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from PIL import Image
from tokenizers import Tokenizer
from transformers import BlipForConditionalGeneration

from blipstream.decoding import Engine
from blipstream.errors import ArtifactError
from blipstream.options import DecodingOptions
from blipstream_build.adapters.peft_folder import PeftFolder
from blipstream_build.checkpoint import Checkpoint
from blipstream_build.inspection import reason
from blipstream_build.verify import Captions, Stage, are_too_far, greedy_tokens, logits_after


@dataclass(frozen=True)
class AdapterReport:
    """The result of a verification."""

    stage: Stage
    captions: list[Captions]  # of the samples

    @property
    def fault(self) -> str:
        """Why this may not be served, or "" if it may. In bf16, a near tie may change a caption."""
        different = [each for each in self.captions if each.ours != each.theirs]
        if are_too_far([self.stage]) or (different and self.stage.dtype == "f32"):
            return "what was converted is too far from PEFT"
        return ""


@torch.inference_mode()
def verify(
    name: str,
    adapter: PeftFolder,
    checkpoint: Checkpoint,
    engine: Engine,
    num_words: int,
    tokenizer: Path,
    images: Sequence[Path],
) -> AdapterReport:
    """Caption `images` by the engine's adapter `name` and by PEFT in f32, and compare logits and captions.

    The logits are those that follow the start token, and those that follow PEFT's captions. `tokenizer` is the file of
    the adapter's, or else of the base's.
    """
    base = checkpoint.load_model()
    model = merged(base, adapter.folder, num_words)
    processor = checkpoint.load_image_processor(base)
    pixel_values = processor([Image.open(path) for path in images], return_tensors="pt")["pixel_values"]
    embeds = model.vision_model(pixel_values).last_hidden_state.half()  # as between Triton's models
    text, options = engine.config.text, DecodingOptions(adapter=name)
    start = torch.full((len(images), 1), text.start_token_id)
    tokens = greedy_tokens(model, embeds, text, options.max_tokens)
    ours, theirs = [engine.logits(start, embeds, name).cpu()], [logits_after(model, start, embeds)]
    for caption, embed in zip(tokens, embeds, strict=True):
        ended = (caption == text.end_token_id).nonzero()
        ids = caption[None, : int(ended[0]) if len(ended) else None]
        ours.append(engine.logits(ids, embed[None], name).cpu())
        theirs.append(logits_after(model, ids, embed[None]))
    requests = [engine.request(embed, options) for embed in embeds]
    engine.generate(requests)
    decoder = Tokenizer.from_file(str(tokenizer))
    known = text.vocab_size + num_words  # the engine has room for more
    return AdapterReport(
        Stage("decoder", engine.dtype, torch.cat(ours)[:, :known], torch.cat(theirs)),
        [
            Captions(path.name, request.captions[0].text, decoder.decode(caption.tolist(), skip_special_tokens=True))
            for path, request, caption in zip(images, requests, tokens, strict=True)
        ],
    )


def merged(base: BlipForConditionalGeneration, folder: Path, num_words: int) -> BlipForConditionalGeneration:
    """The base with an adapter that PEFT has merged into it. Raises ArtifactError if PEFT refuses it.

    Before that, PEFT 0.21 leaves out the head's bias if words are added: it computes the tied head as F.linear(x, W).
    """
    if num_words:
        base.resize_token_embeddings(base.config.text_config.vocab_size + num_words, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as that fan_in_fan_out is of no use here
        try:
            return PeftModel.from_pretrained(base, folder).merge_and_unload().eval()
        except Exception as exc:  # PEFT raises many kinds
            raise ArtifactError(f"PEFT cannot load {folder} ({reason(exc)}): save it again") from exc
