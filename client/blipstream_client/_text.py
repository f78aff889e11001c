# SPDX-License-Identifier: Apache-2.0
"""How much an error message repeats of a value that somebody sent, which may be a whole file."""

import re
from urllib.parse import urlsplit

LONGEST_EXCERPT = 60  # characters of a value
LONGEST_SENTENCE = 300  # characters of another program's message


def excerpt(text: object, most: int = LONGEST_EXCERPT) -> str:
    """The text on one line, without its middle if it has more than `most` characters."""
    shown = " ".join(str(text).split())
    return shown if len(shown) <= most else f"{shown[: most * 2 // 3]}...{shown[-(most // 3) :]}"


def printable(text: str) -> str:
    r"""The text in characters that a terminal shows and does not obey: the others as escapes, such as \x1b."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def quoted(value: object) -> str:
    """An excerpt of the value's repr."""
    try:
        return excerpt(repr(value))
    except ValueError:  # a whole number of thousands of digits
        return f"a very long {type(value).__name__}"


def shown_url(url: str) -> str:
    """An excerpt of the URL without its user name and password."""
    try:
        _ = urlsplit(url).port
        userinfo = r"(?<=://)[^/?#]*@"
    except ValueError:  # such as a password with a slash in it
        userinfo = r"(?<=://).*@"
    return excerpt(re.sub(userinfo, "", url))
