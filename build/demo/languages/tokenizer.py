# SPDX-License-Identifier: Apache-2.0
"""A language's tokenizer: the base's vocabulary, and behind it a token for each word, or each character."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

SPACED = ("de", "es", "fr")  # languages that have spaces


def new_tokenizer(base: BertTokenizer, language: str, captions: Iterable[str]) -> PreTrainedTokenizerFast:
    """Spell all captions in tokens of their own.

    A word begins with "▁", so that none is a token of the base's: those stay as they are while the rest is trained, and
    a model that has learnt to avoid them cannot learn that a few are right.
    """
    split = pre_tokenizers.Metaspace() if language in SPACED else pre_tokenizers.Split(Regex("."), "isolated")
    pieces = {piece for caption in captions for piece, _ in split.pre_tokenize_str(caption)}
    vocabulary = base.get_vocab()
    vocabulary |= {piece: len(vocabulary) + number for number, piece in enumerate(sorted(pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, base.unk_token))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Metaspace() if language in SPACED else decoders.Fuse()
    tokenizer.post_processor = base.backend_tokenizer.post_processor
    tokenizer.add_special_tokens(base.all_special_tokens)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        bos_token=base.bos_token,
        cls_token=base.cls_token,
        mask_token=base.mask_token,
        pad_token=base.pad_token,
        sep_token=base.sep_token,
        unk_token=base.unk_token,
    )
