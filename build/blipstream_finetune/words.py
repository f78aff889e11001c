# SPDX-License-Identifier: Apache-2.0
"""New words in the tokenizer: the base's vocabulary first, in its order, and then the pieces of a language.

BERT's uncased tokenizer makes "elan" of "Élan", and puts spaces around punctuation and ideographs. The new one splits a
caption at its spaces alone. So each caption reads back as it is, also in languages that have no spaces.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from blipstream.errors import InvalidInput
from blipstream.text.tokenizer import UNKNOWN

if TYPE_CHECKING:
    from transformers import BertTokenizer, PreTrainedTokenizerFast

CONTINUES = "##"  # begins a piece that continues a word
LONGEST_WORD = 10_000  # characters: without spaces, a caption is one word
BLIP = ("[DEC]", "[ENC]")  # which published tokenizers lack, and models have embeddings for


def add_words(
    base: "BertTokenizer", rows: int, captions: Iterable[str], size: int, *, lowercase: bool
) -> "PreTrainedTokenizerFast":
    """The base's tokenizer with at most `size` new pieces, which spell the captions in few tokens.

    `rows` is the number of embeddings that the base has. Raises InvalidInput if the captions have more new characters
    than `size`.
    """
    vocabulary = _base_vocabulary(base, rows)
    normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.BertNormalizer(handle_chinese_chars=False, strip_accents=False, lowercase=lowercase),
        ]
    )
    words = [word for caption in captions for word in normalizer.normalize_str(caption).split()]
    characters = sorted({word[0] for word in words} | {CONTINUES + each for word in words for each in word[1:]})
    alphabet = [each for each in characters if each not in vocabulary]
    if len(alphabet) > size:
        raise InvalidInput(
            f"the captions have {len(alphabet):,} characters that the base's vocabulary lacks, at the start of a word "
            f"or within one: give --new-tokens {len(alphabet)} or more"
        )
    # As special tokens, the characters have a fixed order. Otherwise ties are broken differently each time
    trainer = trainers.WordPieceTrainer(
        vocab_size=len(characters) + len(vocabulary) + size,
        min_frequency=2,
        special_tokens=characters,
        show_progress=False,
    )
    learner = Tokenizer(models.WordPiece(unk_token=UNKNOWN, max_input_chars_per_word=LONGEST_WORD))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(words, trainer)
    learnt = learner.get_vocab()
    pieces = [piece for piece in sorted(learnt, key=learnt.__getitem__) if piece not in vocabulary]
    new = list(dict.fromkeys(alphabet + pieces))[:size]
    vocabulary |= {piece: len(vocabulary) + number for number, piece in enumerate(new)}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=LONGEST_WORD))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUES, cleanup=False)
    tokenizer.post_processor = base.backend_tokenizer.post_processor
    return _wrapped(tokenizer, base, vocabulary, rows)


def load_words(folder: Path, base: "BertTokenizer", rows: int) -> "PreTrainedTokenizerFast":
    """A tokenizer that begins as the base's. Raises InvalidInput if it does not."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        backend: Tokenizer = tokenizer.backend_tokenizer
        found = backend.get_vocab(with_added_tokens=True)
    except Exception as exc:  # tokenizers raises nothing more specific
        raise InvalidInput(f"{folder} has no tokenizer that can be read: {exc}") from exc
    for piece, number in base.get_vocab().items():
        if found.get(piece) != number:
            raise InvalidInput(
                f"{folder} must have the base's vocabulary first, in its order, and its token {number} is not "
                f"{piece!r}: add your words behind it, or have them learnt by --new-tokens"
            )
    special = {number for number, token in backend.get_added_tokens_decoder().items() if token.special}
    new = sorted(set(found.values()) - set(base.get_vocab().values()) - special)
    if new != list(range(rows, rows + len(new))):
        raise InvalidInput(f"{folder} must number its new tokens from {rows} on, without a gap")
    return tokenizer


def unknown(tokenizer: Any, caption: str) -> bool:  # noqa: ANN401
    """Whether a caption has characters for which there are no pieces."""
    ids: Sequence[int] = tokenizer.backend_tokenizer.encode(caption, add_special_tokens=False).ids
    return tokenizer.unk_token_id in ids


def _base_vocabulary(base: "BertTokenizer", rows: int) -> dict[str, int]:
    """A token for each of the base's embeddings: new ones must come behind all of them."""
    found = {number: piece for piece, number in base.get_vocab().items()}
    spare = [each for each in BLIP if each not in base.get_vocab()]
    for number in range(rows):
        if number not in found:
            found[number] = spare.pop(0) if spare else f"[unused-{number}]"
    return {found[number]: number for number in range(rows)}


def _wrapped(
    tokenizer: Tokenizer, base: "BertTokenizer", vocabulary: dict[str, int], rows: int
) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    special = {name: str(token) for name, token in base.special_tokens_map.items() if isinstance(token, str)}
    special.setdefault("bos_token", BLIP[0])
    fillers = [piece for piece, number in vocabulary.items() if number < rows and piece not in base.get_vocab()]
    others = [str(each) for each in base.all_special_tokens] + [each for each in BLIP if each in vocabulary] + fillers
    tokenizer.add_special_tokens(list(dict.fromkeys(others)))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
