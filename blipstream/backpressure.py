# SPDX-License-Identifier: Apache-2.0
"""A bound on the images between preprocess and decoder, so that no stage works for what a later one would refuse.

Triton can bound a model's queue, but not what an ensemble has under way. Asked for more than it can do, its first stage
would go on taking processors from its last for images that then find a queue full. So preprocess waits while enough
images are on their way, and what comes meanwhile is refused at the door, at once and before any work on it. Enough is
what decoders take up in ROOM_SECONDS, since it is in the first queue alone that whose time is over is dropped.

The models' processes share a few numbers in a file that the server makes for them. Images can get lost on the way (a
request's time is over, a client asks for pixels only): once nothing has been at work or taken up for IDLE_SECONDS,
nothing is under way, whatever was counted.
"""

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path

FILE = "BLIPSTREAM_BACKPRESSURE"  # without it, nothing waits
IDLE_SECONDS = 0.5
POLL_SECONDS = 0.02
ROOM_SECONDS = 2.0  # of a decoder's work that may be under way
LEAST_ROOM = 16  # images that may be at any pace: one batch of a CPU's encoder, and the next


@dataclass
class Counts:
    """What the processes share."""

    room: int = 0  # images that may be under way at most
    under_way: int = 0
    taken: int = 0  # images that a decoder has taken up, ever
    busy: int = 0  # stages at work, or waiting for room themselves

    layout = struct.Struct("<4q")


def create(path: Path) -> None:
    """Begin with nothing under way. Where the file is there already, it takes no more of a disk."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.write(file, Counts.layout.pack(*astuple(Counts())))
    finally:
        os.close(file)


class Backpressure:
    """One process's hold on the file."""

    def __init__(self) -> None:
        path = os.environ.get(FILE)
        self._file = os.open(path, os.O_RDWR) if path else None
        self._since, self._taken, self._last_pace = time.monotonic(), 0, 0.0

    def add_room(self, images: int) -> None:
        """There is one more decoder, for which so many images may be under way."""
        with self._counts() as counts:
            counts.room += images

    def enter(self, images: int) -> int:
        """Wait until there is room for more images, and take it; for how many of those, at least one."""
        idle_since, taken = time.monotonic(), -1
        while True:
            with self._counts() as counts:
                if counts.busy or counts.taken != taken:
                    idle_since, taken = time.monotonic(), counts.taken
                elif time.monotonic() - idle_since > IDLE_SECONDS:
                    counts.under_way = 0
                enough = min(counts.room, max(LEAST_ROOM, int(self._pace(counts.taken) * ROOM_SECONDS)))
                entering = min(images, enough - counts.under_way) if counts.room else images
                if entering > 0:
                    counts.under_way += entering
                    return entering
            time.sleep(POLL_SECONDS)

    def correct(self, images: int) -> None:
        """So many more are under way than had entered, or fewer."""
        with self._counts() as counts:
            counts.under_way = max(counts.under_way + images, 0)

    def _pace(self, taken: int) -> float:
        """Images a second that decoders took up of late, if by now they have taken so many."""
        now = time.monotonic()
        pace = (taken - self._taken) / max(now - self._since, ROOM_SECONDS)  # a batch of the encoder comes at once
        best = max(pace, self._last_pace)
        if now - self._since > ROOM_SECONDS:
            self._since, self._taken, self._last_pace = now, taken, pace
        return best

    def take(self, images: int) -> None:
        """So many have come to a decoder."""
        with self._counts() as counts:
            counts.under_way = max(counts.under_way - images, 0)  # embeddings may also come from a client
            counts.taken += images

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """As long as this lasts, something is under way."""
        with self._counts() as counts:
            counts.busy += 1
        try:
            yield
        finally:
            with self._counts() as counts:
                counts.busy -= 1

    @contextmanager
    def _counts(self) -> Iterator[Counts]:
        """The numbers, to read and to change while no other process does."""
        if self._file is None:
            yield Counts()
            return
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            counts = Counts(*Counts.layout.unpack(os.pread(self._file, Counts.layout.size, 0)))
            before = astuple(counts)
            yield counts
            if astuple(counts) != before:
                with suppress(OSError):  # a full disk loses counts, not requests
                    os.pwrite(self._file, Counts.layout.pack(*astuple(counts)), 0)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
