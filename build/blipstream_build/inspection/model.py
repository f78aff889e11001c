# SPDX-License-Identifier: Apache-2.0
"""Checks of a loaded model: whether it has all of its weights, and is computed as every BLIP is."""

from typing import Any

import torch
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from blipstream.errors import ArtifactError
from blipstream_build.inspection import SETTINGS, listed

WRAPPERS = {  # prefixes of weights' names, and how to save the model inside the wrapper that puts them there
    "module.": "save model.module instead of what DataParallel wraps around it",
    "_orig_mod.": "save model._orig_mod instead of what torch.compile wraps around it",
    "base_model.model.": "merge the adapters by merge_and_unload() and save that",
}


def check_weights(
    model: BlipForConditionalGeneration | BlipForImageTextRetrieval, report: dict[str, Any], name: str
) -> None:
    """Check that the model has exactly its weights, by transformers' loading report, and that all are finite."""
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    for key in unexpected:
        prefix = next((prefix for prefix in WRAPPERS if key.startswith(prefix)), "")
        if prefix or ".lora_" in key or ".base_layer." in key:
            remedy = WRAPPERS[prefix or "base_model.model."]
            raise ArtifactError(f"{name} names its weights as {key}: {remedy}")
    for key, found, expected in sorted(report["mismatched_keys"]):
        raise ArtifactError(
            f"{name} has {key} in shape {list(found)} where its {SETTINGS} expects {list(expected)}: "
            f"give it the {SETTINGS} that was saved with its weights"
        )
    if missing:
        raise ArtifactError(
            f"{name} lacks {len(missing)} of the weights that its {SETTINGS} expects, as {listed(missing)}: "
            "save the whole model by save_pretrained()"
        )
    # parts that the other kind has do no harm
    parts = ("vision_model.", "text_decoder." if isinstance(model, BlipForConditionalGeneration) else "text_encoder.")
    left = [key for key in unexpected if key.startswith(parts) and not key.endswith("position_ids")]
    if left:
        raise ArtifactError(
            f"{name} has {len(left)} weights for which its {SETTINGS} has no place, as {listed(left)}: "
            f"give it the {SETTINGS} that was saved with its weights"
        )
    for key, weight in model.state_dict().items():
        if not bool(torch.isfinite(weight).all()):
            raise ArtifactError(
                f"{name} has {key} with values that are no finite numbers: its training diverged, or the file is "
                "damaged; take an earlier one"
            )
    if isinstance(model, BlipForImageTextRetrieval):
        return
    decoder = model.text_decoder
    if not torch.equal(decoder.cls.predictions.decoder.weight, decoder.bert.embeddings.word_embeddings.weight):
        raise ArtifactError(
            f"{name} has a head of its own, where its word embeddings are expected in that place, as in all of BLIP's: "
            "train it with tie_word_embeddings"
        )


def check_settings(model: BlipForConditionalGeneration | BlipForImageTextRetrieval, name: str) -> None:
    """Check that the model is computed as every BLIP is, and that its special tokens have embeddings."""
    vision, text = model.config.vision_config, model.config.text_config
    for part in (vision, text):
        if part.hidden_act != "gelu":
            raise ArtifactError(f"{name} uses the activation {part.hidden_act}: expected gelu, as all of BLIP's do")
    if not isinstance(vision.image_size, int):
        raise ArtifactError(f"{name} has image_size {vision.image_size}: expected one number, for both sides")
    ids = {key: getattr(text, key) for key in ("bos_token_id", "sep_token_id", "pad_token_id")}
    for key, value in ids.items():
        if not isinstance(value, int) or not 0 <= value < text.vocab_size:
            raise ArtifactError(
                f"{name} has {key} {value} in its {SETTINGS}: expected one of its {text.vocab_size} embeddings"
            )
    if len(set(ids.values())) < len(ids):
        shown = ", ".join(f"{key} {value}" for key, value in ids.items())
        raise ArtifactError(f"{name} has {shown} in its {SETTINGS}: expected three different tokens")
    if isinstance(model, BlipForImageTextRetrieval) and not text.is_decoder:
        raise ArtifactError(
            f"{name} has is_decoder false in the text_config of its {SETTINGS}: expected true, without which "
            "transformers gives the text encoder no cross-attention"
        )
