# SPDX-License-Identifier: Apache-2.0
"""What transformers' `generate` gives for our options."""

import pytest
import torch
from torch import Tensor

from blipstream.decoding import Caption
from blipstream.options import DEFAULTS, DecodingOptions
from tests.reference import Reference


def theirs(reference: Reference, embeds: Tensor, options: DecodingOptions) -> list[list[tuple[str, float]]]:
    """transformers' captions and scores of each image."""
    names = {
        "max_tokens": "max_new_tokens",
        "min_tokens": "min_new_tokens",
        "num_captions": "num_return_sequences",
    }
    same = ("num_beams", "length_penalty", "early_stopping", "repetition_penalty", "no_repeat_ngram_size")
    unknown = {name for name in DEFAULTS if getattr(options, name) != DEFAULTS[name]} - {*names, *same, "prompt"}
    assert not unknown, f"say here what transformers calls {unknown}"
    settings = {names.get(name, name): getattr(options, name) for name in (*names, *same)}
    config = reference.model.config.text_config
    prompt_ids = [config.bos_token_id, *reference.tokenizer(options.prompt, add_special_tokens=False)["input_ids"]]
    ids = torch.tensor([prompt_ids] * len(embeds))
    output = reference.model.text_decoder.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        encoder_hidden_states=embeds,
        eos_token_id=config.sep_token_id,
        pad_token_id=config.pad_token_id,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    if options.num_beams == 1:
        transitions = reference.model.text_decoder.compute_transition_scores(
            output.sequences, output.scores, normalize_logits=True
        )
        new = output.sequences[:, len(prompt_ids) :]
        ended = (new == config.sep_token_id).long().cumsum(1)
        scores = transitions.masked_fill((ended > 0) & ~((ended == 1) & (new == config.sep_token_id)), 0).sum(1)
    else:
        scores = output.sequences_scores
    texts = reference.tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    flat = list(zip(texts, scores.tolist(), strict=True))
    return [flat[i : i + options.num_captions] for i in range(0, len(flat), options.num_captions)]


def assert_equal(ours: list[list[Caption]], expected: list[list[tuple[str, float]]]) -> None:
    assert [[caption.text for caption in captions] for captions in ours] == [
        [text for text, _ in row] for row in expected
    ]
    for captions, row in zip(ours, expected, strict=True):
        for caption, (_, score) in zip(captions, row, strict=True):
            assert caption.score == pytest.approx(score, rel=1e-4, abs=1e-4)
