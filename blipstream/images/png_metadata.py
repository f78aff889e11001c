# SPDX-License-Identifier: Apache-2.0
"""PNG files without their metadata: PIL refuses a whole file for a fault in any chunk."""

import struct
from io import BytesIO

from PIL.PngImagePlugin import PngStream

from blipstream.images.limits import TimeBudget

_SIGNATURE_BYTES = 8
_CHUNK_OVERHEAD = 12  # bytes: length and name before a chunk's content, checksum after it

_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
# Beside eXIf, texts with these keys may hold the orientation.
_TEXT_CHUNKS = {b"tEXt", b"zTXt", b"iTXt"}
_ORIENTATION_KEYS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
_MAX_TEXTS = 16  # each of at most 1 MB: PIL reads no more


def strip_metadata(data: bytes, budget: TimeBudget) -> bytes:
    """A PNG file with only the chunks that hold its pixels, and those that PIL can read an orientation from."""
    view = memoryview(data)
    kept, texts, at = [view[:_SIGNATURE_BYTES]], 0, _SIGNATURE_BYTES
    while at + 8 <= len(data):
        budget.check()
        length, name = struct.unpack_from(">I4s", data, at)
        chunk = view[at : at + length + _CHUNK_OVERHEAD]
        is_text = name in _TEXT_CHUNKS and chunk[8:40].tobytes().startswith(_ORIENTATION_KEYS) and texts < _MAX_TEXTS
        if name in _PIXEL_CHUNKS or ((is_text or name == b"eXIf") and _is_readable(name, chunk)):
            kept.append(chunk)
            texts += is_text
        at = len(data) if name == b"IEND" else at + len(chunk)
    return data if sum(map(len, kept)) == len(data) else b"".join(kept)


def _is_readable(name: bytes, chunk: memoryview) -> bool:
    """Whether PIL can read a chunk. It cannot if the chunk is damaged, or holds more than a megabyte of text."""
    stream = PngStream(BytesIO(chunk[8:]))
    try:
        stream.crc(name, stream.call(name, 0, len(chunk) - _CHUNK_OVERHEAD))
    except Exception:
        return False
    return True
