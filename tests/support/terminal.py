# SPDX-License-Identifier: Apache-2.0
"""What commands print, as a terminal of 80 columns shows it."""

WIDTH = 80


def sentence(printed: str) -> str:
    """A sentence that was broken into lines, as one line. A line that could have been broken must fit."""
    assert printed.endswith("\n")
    lines = printed.splitlines()
    assert all(len(line) <= WIDTH or " " not in line for line in lines), printed
    return " ".join(lines)
