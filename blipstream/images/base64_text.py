# SPDX-License-Identifier: Apache-2.0
"""Files that arrive as base64 text, plain or in a data URL (RFC 2397): JSON cannot carry bytes."""

import re
from base64 import b64decode
from string import whitespace

from blipstream.errors import InvalidImage
from blipstream.images.limits import ImageLimits, check_bytes
from blipstream.images.messages import excerpt, one_line

# How base64 of each format's signature begins. No file of these formats begins so itself.
_SIGNATURES = re.compile(rb"[/_]9j[/_]|iVBORw0KGgo|UklGR|Qk[0-3]|R0lGODdh|R0lGODlh|SUk[qr]|TU0AK")
_URLSAFE = bytes.maketrans(b"-_", b"+/")
_ESCAPES = {b"%2B": b"+", b"%2F": b"/", b"%3D": b"=", b"%0A": b"", b"%0D": b""}  # of base64 in a URL


def decode_text(data: bytes, limits: ImageLimits) -> bytes:
    """The file that base64 text or a data URL holds; `data` itself if it is neither.

    Raises InvalidImage if the text is damaged, or if the file would be too large.
    """
    payload = data
    if data[:5].lower() == b"data:":
        header, comma, payload = data.partition(b",")
        if not comma or not re.search(rb";\s*base64\s*$", header, re.IGNORECASE):
            raise InvalidImage(f"a data URL must begin like data:image/jpeg;base64, but it begins with {excerpt(data)}")
        for escape, character in _ESCAPES.items() if b"%" in payload else ():
            payload = payload.replace(escape, character).replace(escape.lower(), character)
    elif not _SIGNATURES.match(data):
        return data
    text = payload.translate(_URLSAFE, whitespace.encode()).rstrip(b"=")
    check_bytes(len(text) * 3 // 4, limits)
    try:
        return b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except ValueError as exc:
        raise InvalidImage(
            f"image that is sent as text must be complete base64, but its {len(data):,} bytes are not "
            f"({one_line(exc)}): send it again in full"
        ) from exc
