# SPDX-License-Identifier: Apache-2.0
"""What a server answers to the samples, and a table of it."""

from pathlib import Path

from rich.table import Table

from blipstream_client import BlipstreamError, Caption, Client, Explanation

Answer = Caption | BlipstreamError
Answers = dict[str, Answer]  # by file name


def ask(url: str, files: list[Path]) -> Answers:
    """The caption that the server at `url` gives each file, or the error."""
    with Client(url) as client:
        return {file.name: answer for file, answer in zip(files, client.caption_many(files), strict=True)}


def explain_longest(url: str, files: list[Path], answers: Answers) -> Explanation:
    """The explanation of the file whose caption has the most words, by the server at `url`."""
    with Client(url) as client:
        return client.explain(max(files, key=lambda file: len(words(answers[file.name]).split())))


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
