# SPDX-License-Identifier: Apache-2.0
"""A bound on the images between preprocess and decoder, so that no stage works for what a later one would refuse.

Triton can bound a model's queue, but not what an ensemble has under way. Asked for more than it can do, its first stage
would go on taking processors from its last for images that then find a queue full. So preprocess waits while enough
images are on their way, and what comes meanwhile is refused at the door, at once and before any work on it. Enough is
what decoders take up in ROOM_SECONDS, since it is in the first queue alone that whose time is over is dropped.

The models' processes share a few numbers in a file that the server makes for them: how many images are at each stage,
or on their way to the next. On the way images get lost, since Triton drops from its queues whose sender has gone, and
tells nobody. But an encoder that begins a batch has emptied its queue, and one that is free has none. So what has not
come to a stage by then is lost, and its place is free again.
"""

import fcntl
import os
import struct
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from itertools import accumulate
from pathlib import Path

FILE = "BLIPSTREAM_BACKPRESSURE"  # without it, nothing waits
HANDOVER_SECONDS = 0.1  # for an image to come to a stage that is free
BLIND_SECONDS = 0.5  # the same, where an encoder is no Python, and so does not tell when it is free
POLL_SECONDS = 0.02
ROOM_SECONDS = 2.0  # of a decoder's work that may be under way
LEAST_ROOM = 16  # images that may be at any pace: one batch of a CPU's encoder, and the next


@dataclass
class Counts:
    """What the processes share."""

    room: int = 0  # images that may be under way at most
    entered: int = 0  # images in preprocess
    loaded: int = 0  # images that wait for an encoder
    encoding: int = 0  # images in an encoder
    encoded: int = 0  # images that wait for a decoder to take them up
    taken: int = 0  # images that a decoder has taken up, ever
    encoders: int = 0  # that tell what they do
    full: int = 0  # decoders that take up nothing before others are finished
    loaded_at: float = 0.0  # when some were last loaded, in seconds of the machine's clock
    encoded_at: float = 0.0  # when an encoder last became free, or a decoder took something up

    layout = struct.Struct("<8q2d")

    @property
    def under_way(self) -> int:
        """Images between the door and a decoder."""
        return self.entered + self.loaded + self.encoding + self.encoded

    def forget_lost(self) -> None:
        """Whatever has been on its way to a stage for longer than it takes, while that was free, comes no more."""
        patience = HANDOVER_SECONDS if self.encoders else BLIND_SECONDS
        waited = time.monotonic() - self.encoded_at
        if not self.full and waited > patience:
            self.encoded = 0
            if not self.encoding and time.monotonic() - self.loaded_at > patience:
                self.loaded = 0


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

    def add_encoder(self) -> None:
        """There is one more encoder, which will tell what it does."""
        with self._counts() as counts:
            counts.encoders += 1

    def enter(self, images: Sequence[int]) -> int:
        """Wait until there is room, and take it; for how many requests of so many images each, at least the first."""
        while True:
            with self._counts() as counts:
                counts.forget_lost()
                enough = min(counts.room, max(LEAST_ROOM, int(self._pace(counts.taken) * ROOM_SECONDS)))
                left = enough - counts.under_way if counts.room else sum(images) + 1
                if left > 0:
                    entering = max(bisect_right(list(accumulate(images)), left), 1)
                    counts.entered += sum(images[:entering])
                    return entering
            time.sleep(POLL_SECONDS)

    def hand_on(self, entered: int, loaded: int) -> None:
        """Of images that entered, so many go on to an encoder."""
        with self._counts() as counts:
            counts.entered = max(counts.entered - entered, 0)
            counts.loaded += loaded
            counts.loaded_at = time.monotonic()

    def _pace(self, taken: int) -> float:
        """Images a second that decoders took up of late, if by now they have taken so many."""
        now = time.monotonic()
        pace = (taken - self._taken) / max(now - self._since, ROOM_SECONDS)  # a batch of the encoder comes at once
        best = max(pace, self._last_pace)
        if now - self._since > ROOM_SECONDS:
            self._since, self._taken, self._last_pace = now, taken, pace
        return best

    @contextmanager
    def encoding(self, images: int, *, leaves: bool) -> Iterator[None]:
        """As long as this lasts, so many are encoded; a batch that is full leaves others in the queue."""
        with self._counts() as counts:
            counts.loaded = max(counts.loaded - images, 0) if leaves else 0
            counts.encoding += images
        try:
            yield
        finally:
            with self._counts() as counts:
                if not counts.full:
                    counts.encoded = 0  # those of the batch before have come, or are lost
                counts.encoding = max(counts.encoding - images, 0)
                counts.encoded += images
                counts.encoded_at = time.monotonic()

    def take(self, images: int) -> None:
        """So many have come to a decoder; they may also come from a client."""
        with self._counts() as counts:
            if counts.encoders:
                counts.encoded = max(counts.encoded - images, 0)
            else:
                counts.loaded, counts.encoded_at = max(counts.loaded - images, 0), time.monotonic()
            counts.taken += images

    @contextmanager
    def full(self) -> Iterator[None]:
        """As long as this lasts, a decoder takes up nothing."""
        with self._counts() as counts:
            counts.full += 1
        try:
            yield
        finally:
            with self._counts() as counts:
                counts.full -= 1

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
