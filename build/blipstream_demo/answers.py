# SPDX-License-Identifier: Apache-2.0
"""What a server answers to the samples, and tables of it."""

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from blipstream_client import BlipstreamError, Caption, Client, Explanation

Answer = Caption | BlipstreamError
Answers = dict[str, Answer]  # by file name


@dataclass(frozen=True)
class Found:
    """The image whose embedding is nearest to that of a text."""

    text: str
    file: Path
    similarity: float
    match: float


def ask(url: str, files: list[Path]) -> Answers:
    """The caption that the server at `url` gives each file, or the error."""
    with Client(url) as client:
        return {file.name: answer for file, answer in zip(files, client.caption_many(files), strict=True)}


def explain_longest(url: str, files: list[Path], answers: Answers) -> Explanation:
    """The explanation of the file whose caption has the most words, by the server at `url`."""
    with Client(url) as client:
        return client.explain(_longest(files, answers))


def search(url: str, files: list[Path], texts: tuple[str, ...]) -> list[Found]:
    """What the server at `url` finds for each text among the files."""
    with Client(url) as client:
        embeddings = [client.embed_image(file) for file in files]

        def find(text: str) -> Found:
            wanted = client.embed_text(text)
            similarity, file = max((float(each @ wanted), file) for each, file in zip(embeddings, files, strict=True))
            return Found(text, file, similarity, client.match(file, [text]).best.match)

        return [find(text) for text in texts]


def translate_longest(url: str, files: list[Path], answers: Answers, adapters: list[str]) -> dict[str, str]:
    """The captions that the server at `url` gives the same file in English and with each adapter, by language."""
    file = _longest(files, answers)
    with Client(url) as client:
        return {adapter or "en": client.caption(file, adapter=adapter).text for adapter in ("", *adapters)}


def _longest(files: list[Path], answers: Answers) -> Path:
    return max(files, key=lambda file: len(words(answers[file.name]).split()))


def words(answer: Answer) -> str:
    """The caption, or what the error says."""
    return answer.text if isinstance(answer, Caption) else str(answer)


def is_right(answer: Answer, expected: str) -> bool:
    """Whether the answer is exactly the expected caption."""
    return isinstance(answer, Caption) and answer.text == expected


def table(expected: dict[str, str], over_grpc: Answers, over_http: Answers) -> Table:
    """A table of one line an image: the caption over gRPC, and whether it was right over gRPC and HTTP."""
    result = Table("caption", "gRPC", "HTTP", title=f"{len(expected)} scenes, captioned by Triton")
    for name, caption in expected.items():
        marks = ("✓" if is_right(answers[name], caption) else "✗" for answers in (over_grpc, over_http))
        result.add_row(words(over_grpc[name]), *marks)
    return result


def language_table(translations: dict[str, str]) -> Table:
    """A table of one line a language."""
    result = Table("language", "caption", title="One scene, one checkpoint, an adapter for each language")
    for language, caption in translations.items():
        result.add_row(language, caption)
    return result


def search_table(found: list[Found]) -> Table:
    """A table of one line a text: the file that was found for it, and how well they fit."""
    result = Table("text", "found", "similarity", "match", title="The samples, searched by text")
    for each in found:
        result.add_row(each.text, each.file.name, f"{each.similarity:.2f}", f"{each.match:.2f}")
    return result
