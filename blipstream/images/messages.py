# SPDX-License-Identifier: Apache-2.0
"""What error messages quote, cut to a length that people read."""


def excerpt(sent: bytes | str) -> str:
    """The beginning of what a client sent."""
    return repr(sent[:40])[:60]


def one_line(error: Exception) -> str:
    """Another library's error, to stand within a sentence of ours."""
    return " ".join((str(error) or type(error).__name__).split())[:120].rstrip(".")
