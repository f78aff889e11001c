# SPDX-License-Identifier: Apache-2.0
"""Server-sent events, as the HTML standard has them: lines of `data:`, ended by an empty one."""

from collections.abc import Iterator


class EventReader:
    """Takes a response in chunks, wherever they were cut, and gives the data of each event as soon as it is whole."""

    def __init__(self) -> None:
        self._line = b""  # begun
        self._data: list[bytes] = []  # of the event that has begun

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The events that this chunk completes."""
        *lines, self._line = (self._line + chunk).split(b"\n")
        for line in lines:
            field, _, value = line.removesuffix(b"\r").partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
            elif not line.strip() and self._data:
                data, self._data = b"\n".join(self._data), []
                yield data
