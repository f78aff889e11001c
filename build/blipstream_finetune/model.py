# SPDX-License-Identifier: Apache-2.0
"""What of the model is frozen and what is trained, and how it is saved."""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import BlipForConditionalGeneration, BlipProcessor, PreTrainedTokenizerFast

from blipstream_build.checkpoint import Checkpoint
from blipstream_build.generation import NAME as GENERATION
from blipstream_finetune.examples import Batch
from blipstream_finetune.settings import Settings

OURS = "blipstream.json"  # beside an adapter's own files: what it was made for
# every linear layer but the head, which is the word embeddings
DECODER_LAYERS = (
    r"text_decoder\.(bert\.encoder\.layer\.\d+|cls\.predictions\.transform)(\.\w+)*\.(query|key|value|dense)"
)
ENCODER_LAYERS = r"vision_model\.encoder\.layers\.\d+\.\w+\.(qkv|projection|fc1|fc2)"


class Trained:
    """A captioner in training."""

    def __init__(self, model: BlipForConditionalGeneration, settings: Settings, tokens: int) -> None:
        """Give the model `tokens` embeddings, and freeze what is not trained."""
        old = model.config.text_config.vocab_size
        torch.manual_seed(settings.seed)
        self._adds_words = tokens > old
        if self._adds_words:
            with _quiet():
                model.resize_token_embeddings(tokens)  # the new ones are the old ones' mean, and a little noise
        self.captioner = model
        self.settings = settings
        self.adapted: PeftModel | None = None
        if settings.lora:
            layers = "|".join(f"({each})" for each in (DECODER_LAYERS, ENCODER_LAYERS)[: 1 + settings.encoder])
            config = LoraConfig(
                r=settings.rank,
                lora_alpha=settings.alpha,
                target_modules=layers,
                trainable_token_indices={"word_embeddings": list(range(old, tokens))} if self._adds_words else None,
            )
            with _quiet():
                self.adapted = get_peft_model(model, config)
            if self._adds_words:
                head = model.text_decoder.cls.predictions
                # Until it is merged, PEFT 0.21 computes the head without its bias: trainable_tokens/layer.py
                head.decoder.register_forward_hook(lambda _module, _inputs, logits: logits + head.bias)
        elif not settings.encoder:
            model.vision_model.requires_grad_(False)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: each for name, each in self.captioner.named_parameters() if each.requires_grad}

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take weights of `parameters`."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])

    def embed(self, pixel_values: Tensor) -> Tensor:
        """image_embeds [B, N, E] of pixel_values [B, 3, H, W]."""
        embeds: Tensor = self.captioner.vision_model(pixel_values).last_hidden_state
        return embeds

    def loss(self, batch: Batch, label_smoothing: float) -> Tensor:
        """The mean over the tokens that are learnt, as BlipForConditionalGeneration computes it."""
        decoder = self.captioner.text_decoder
        decoder.label_smoothing = label_smoothing
        loss: Tensor = decoder(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            encoder_hidden_states=batch.images if batch.images.ndim == 3 else self.embed(batch.images),
            labels=batch.labels,
        ).loss
        return loss

    def save(
        self,
        folder: Path,
        checkpoint: Checkpoint,
        name: str,
        language: str,
        tokenizer: PreTrainedTokenizerFast,
        metrics: dict[str, float],
    ) -> None:
        """Write what `blipstream build` takes: an adapter, or a whole checkpoint.

        `name` is that of the checkpoint, as the user gave it.
        """
        if self.adapted and self.settings.is_adapter:
            for config in self.adapted.peft_config.values():
                config.base_model_name_or_path = name
            # the embeddings' new rows are among the adapter's own
            self.adapted.save_pretrained(str(folder), save_embedding_layers=False)
            if self._adds_words:
                tokenizer.save_pretrained(folder)
            ours = {
                "base": checkpoint.name,
                "base_revision": checkpoint.revision,
                "language": language,
                "metrics": metrics,
            }
            (folder / OURS).write_text(json.dumps(ours, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            return
        model = self.adapted.merge_and_unload() if self.adapted else self.captioner
        model.save_pretrained(folder)
        BlipProcessor(checkpoint.load_image_processor(model), tokenizer).save_pretrained(folder)
        if (checkpoint.folder / GENERATION).exists():
            shutil.copy(checkpoint.folder / GENERATION, folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers and PEFT say of each other."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
