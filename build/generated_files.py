# SPDX-License-Identifier: Apache-2.0
"""Write the files that are generated and checked in; --check says which of them are stale."""

import sys
from pathlib import Path

import click

from alerts_page import alerts_page
from blipstream.options import EXPLAIN_OPTIONS, OPTIONS, RERANK_OPTIONS
from client_options import client_options
from model_configs import model_configs
from options_table import options_table

ROOT = Path(__file__).resolve().parent.parent
# what is generated between two lines of a file: the files, the lines and the text
PAGES = ("README.md", "docs/*.md", "client/README.md")
PAGE_MARKS = ("<!-- options: `make configs` writes this table -->\n", "<!-- end of options -->\n")
ALERTS_PAGE = "deploy/prometheus/user/alerts.html"
CLIENT = ("client/blipstream_client/*.py",)
CLIENT_MARKS = ("    # options: `make configs` writes these lines\n", "    # end of options\n")
# the options, by what the marks call them: each in other files, since a file is written once
KINDS = {"options": OPTIONS, "explain options": EXPLAIN_OPTIONS, "rerank options": RERANK_OPTIONS}


def generated_files(root: Path) -> dict[Path, str]:
    """What each file below `root` is to contain."""
    files = {root / "model_repository" / name: text for name, text in model_configs().items()}
    for kind, options in KINDS.items():
        for patterns, marks, text in (
            (PAGES, PAGE_MARKS, options_table(options)),
            (CLIENT, CLIENT_MARKS, client_options(options)),
        ):
            first, last = (mark.replace("options", kind, 1) for mark in marks)
            for path in (path for pattern in patterns for path in root.glob(pattern)):
                before, begin, rest = path.read_text(encoding="utf-8").partition(first)
                _, end, after = rest.partition(last)
                if begin and end:
                    files[path] = before + begin + text + end + after
    monitoring = root / "docs" / "monitoring.md"
    if monitoring.exists():
        files[root / ALERTS_PAGE] = alerts_page(monitoring.read_text(encoding="utf-8"))
    return files


def stale_files(root: Path) -> dict[Path, str]:
    """Those that contain something else, or are missing."""
    return {
        path: text
        for path, text in generated_files(root).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }


@click.command()
@click.option("--check", is_flag=True, help="Write nothing, and fail if a file is stale.")
def main(check: bool) -> None:
    """Write model configs, the client's options, the documents' table of options, and the page of alerts."""
    stale = stale_files(ROOT)
    for path, text in stale.items():
        if check:
            click.echo(f"{path.relative_to(ROOT)} is stale: run `make configs`", err=True)
        else:
            path.write_text(text, encoding="utf-8")
            click.echo(f"wrote {path.relative_to(ROOT)}")
    sys.exit(bool(check and stale))


if __name__ == "__main__":
    main()
