# SPDX-License-Identifier: Apache-2.0
"""Server-sent events as in the HTML standard: lines of `data:`, then an empty line."""

from collections.abc import Iterator


class EventReader:
    """Reads the events in a response that comes in chunks, which may be cut anywhere."""

    def __init__(self) -> None:
        self._line = b""  # the last one, if it is not complete
        self._data: list[bytes] = []  # of the event that is not complete

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of each event that this chunk completes."""
        *lines, self._line = (self._line + chunk).split(b"\n")
        for line in lines:
            field, _, value = line.removesuffix(b"\r").partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
            elif not line.strip() and self._data:
                data, self._data = b"\n".join(self._data), []
                yield data
