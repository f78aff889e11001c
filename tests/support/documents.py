# SPDX-License-Identifier: Apache-2.0
"""The Markdown pages, as the tests read them: code blocks, commands, headings and links."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
CARD = ROOT / "build" / "demo" / "checkpoint" / "README.md"  # the demo checkpoint's, which transformers' users read
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
REDIRECTION = re.compile(r"(?<=\s)\d?[<>]{1,2}&?\s*[^\s;)|]+")
OPERATORS = set(";&|()<>{}")


class Block(NamedTuple):
    """A fenced block of code."""

    page: Path
    line: int
    language: str
    code: str
    printed: str | None  # what the `text` block right after it says that it prints

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every Markdown page of the repository that Git knows or would take."""
    listed = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md")
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return sorted(ROOT / name for name in names if name and (ROOT / name).exists() and ROOT / name != CARD)


def site() -> list[Path]:
    """The pages in docs/."""
    return sorted((ROOT / "docs").rglob("*.md"))


def text_of(*paths: str) -> str:
    """All pages of some files and folders as one text, to look for words in."""
    found = [
        page for path in paths for page in ([ROOT / path] if path.endswith(".md") else (ROOT / path).rglob("*.md"))
    ]
    return "\n".join(page.read_text(encoding="utf-8") for page in sorted(found))


def blocks(page: Path) -> Iterator[Block]:
    """The code of a page, without the `text` blocks that say what other code prints."""
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    for number, block in enumerate(found):
        after = found[number + 1] if number + 1 < len(found) else None
        if block[1] == "text":
            continue
        printed = None
        if after and after[1] == "text" and not text[block.end() : after.start()].strip():
            printed = after[2]
        yield Block(page, text.count("\n", 0, block.start()) + 1, block[1], block[2], printed)


def all_blocks(*languages: str) -> list[Block]:
    """The code of all pages in some languages."""
    return [block for page in pages() for block in blocks(page) if block.language in languages]


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def commands(script: str) -> Iterator[list[str]]:
    """The simple commands of a shell script, as far as they stand on lines of their own: words without assignments."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(REDIRECTION.sub("", line), posix=True, punctuation_chars="".join(OPERATORS))
        lexer.whitespace_split = True
        words: list[str] = []
        for token in [*lexer, ";"]:
            if set(token) <= OPERATORS:
                while words and (re.match(r"\w+=", words[0]) or words[0] == "sudo"):
                    del words[0]
                if words:
                    yield words
                words = []
            else:
                words.append(token)


def sessions(console: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block, and what it prints."""
    for session in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        command, _, printed = session.partition("\n")
        yield command, printed


def anchors(page: Path) -> set[str]:
    """What a link may have after its #: the page's headings, as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
