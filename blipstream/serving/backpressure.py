# SPDX-License-Identifier: Apache-2.0
"""A bound on the images between preprocess and decoder, so that no stage works for what a later one would refuse.

Triton can bound the queue of a model, but not what an ensemble has under way. Under more load than the server can
carry, the first stage would keep taking processor time from the last one, for images that then find a full queue. So
preprocess loads nothing while enough images are under way. What arrives meanwhile waits in its queue, or is refused
there, at once and before any work. "Enough" is what the decoders take up in ROOM_SECONDS: only the first queue drops
requests that have timed out, so little may wait behind it.

The models' processes share a few numbers in a file that the server creates: how many images are at each stage, or on
their way to the next one. Images can get lost on the way, because Triton drops a request from its queues when the
sender has gone, and tells nobody. But an encoder that begins a batch has emptied its queue, and one that is idle has an
empty queue. So images that have not reached a stage by then are lost, and their places are free again.
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
from threading import Lock

FILE = "BLIPSTREAM_BACKPRESSURE"  # names the shared file; without it, nothing waits
HANDOVER_SECONDS = 0.1  # an image takes at most this long to reach an idle stage
BLIND_SECONDS = 0.5  # the same where the encoder is not a Python model, and cannot say when it is idle
POLL_SECONDS = 0.02  # between two looks for room
ROOM_SECONDS = 2.0  # the decoders' work that may be under way
# Images that may be on their way to a decoder, by device: the encoder's largest batches, so that it never runs dry. In
# a simulation of a GPU, 64 for each of two decoders bounded 2,170 images a second, and 128 2,500
ROOM = {"cpu": 64, "cuda": 128}
LEAST_ROOM = 16  # images that may always be under way: two batches of a CPU's encoder


@dataclass
class Counts:
    """What the processes share."""

    room: int = 0  # images that may be under way
    entered: int = 0  # images in preprocess
    loaded: int = 0  # images that wait for an encoder
    encoding: int = 0  # images in an encoder
    encoded: int = 0  # images that wait for a decoder to take them up
    taken: int = 0  # images that a decoder has taken up, ever
    encoders: int = 0  # encoders that tell what they do
    full: int = 0  # decoders that take up nothing until a caption is finished
    loaded_at: float = 0.0  # when images were last loaded, in seconds of time.monotonic
    encoded_at: float = 0.0  # when an encoder last became idle, or a decoder took an image up

    layout = struct.Struct("<8q2d")

    @property
    def under_way(self) -> int:
        """Images between entering preprocess and being taken up by a decoder."""
        return self.entered + self.loaded + self.encoding + self.encoded

    def forget_lost(self) -> None:
        """Forget images that should have reached an idle stage by now."""
        handover = HANDOVER_SECONDS if self.encoders else BLIND_SECONDS
        now = time.monotonic()
        if not self.full and now - self.encoded_at > handover:
            self.encoded = 0
            if not self.encoding and now - self.loaded_at > handover:
                self.loaded = 0


def create(path: Path) -> None:
    """Write a file that says that nothing is under way. An existing one is overwritten and takes no more space."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.write(file, Counts.layout.pack(*astuple(Counts())))
    finally:
        os.close(file)


class Backpressure:
    """One process's access to the shared numbers."""

    def __init__(self) -> None:
        path = os.environ.get(FILE)
        self._file = os.open(path, os.O_RDWR) if path else None
        self._threads = Lock()  # the file's lock holds off other processes alone
        self._since, self._taken, self._last_pace = time.monotonic(), 0, 0.0

    def add_room(self, images: int) -> None:
        """Register a decoder, for which so many images may be under way."""
        with self._counts() as counts:
            counts.room += images

    def add_encoder(self) -> None:
        """Register an encoder that tells what it does."""
        with self._counts() as counts:
            counts.encoders += 1

    def enter(self, images: Sequence[int]) -> int:
        """Take the room that there is. Returns for how many of the requests: 0, or at least the first.

        `images` has the number of images of each request.
        """
        with self._counts() as counts:
            counts.forget_lost()
            enough = min(counts.room, max(LEAST_ROOM, int(self._pace(counts.taken) * ROOM_SECONDS)))
            left = enough - counts.under_way if counts.room else sum(images) + 1
            if left <= 0 or not images:
                return 0
            entering = max(bisect_right(list(accumulate(images)), left), 1)
            counts.entered += sum(images[:entering])
            return entering

    def hand_over(self, entered: int, loaded: int) -> None:
        """Count `entered` images out of preprocess, or 0 out of a decoder; `loaded` of them go to an encoder."""
        with self._counts() as counts:
            counts.entered = max(counts.entered - entered, 0)
            if loaded:
                counts.loaded += loaded
                counts.loaded_at = time.monotonic()

    def _pace(self, taken: int) -> float:
        """Images that decoders took up per second lately; `taken` is how many they have taken up in total."""
        now = time.monotonic()
        pace = (taken - self._taken) / max(now - self._since, ROOM_SECONDS)  # a batch of the encoder comes at once
        best = max(pace, self._last_pace)
        if now - self._since > ROOM_SECONDS:
            self._since, self._taken, self._last_pace = now, taken, pace
        return best

    @contextmanager
    def encoding(self, images: int, *, leaves: bool, is_alone: bool = True) -> Iterator[None]:
        """Count images as being encoded inside the block. A full batch `leaves` others in the encoder's queue.

        An encoder that is not alone knows nothing of the other one's images, and forgets none of them.
        """
        with self._counts() as counts:
            counts.loaded = max(counts.loaded - images, 0) if leaves or not is_alone else 0
            counts.encoding += images
        try:
            yield
        finally:
            with self._counts() as counts:
                if is_alone and not counts.full:
                    counts.encoded = 0  # those of the batch before have arrived, or are lost
                counts.encoding = max(counts.encoding - images, 0)
                counts.encoded += images
                counts.encoded_at = time.monotonic()

    def take(self, images: int, *, again: bool = False) -> None:
        """Count images that a decoder has taken up. They may also come straight from a client.

        With `again`, another decoder has taken them up before, and handed them over to a second encoder.
        """
        with self._counts() as counts:
            if counts.encoders:
                counts.encoded = max(counts.encoded - images, 0)
            else:
                counts.loaded, counts.encoded_at = max(counts.loaded - images, 0), time.monotonic()
            counts.taken += 0 if again else images

    @contextmanager
    def full(self) -> Iterator[None]:
        """Count a decoder as full inside the block."""
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
        with self._threads:
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
