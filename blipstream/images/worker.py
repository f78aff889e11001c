# SPDX-License-Identifier: Apache-2.0
"""Decodes images that may be slow, in a process of its own: a timer ends it when an image's time budget is spent."""

import json
import os
import resource
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from dataclasses import asdict
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from blipstream.deadline import Deadline
from blipstream.errors import FAILED, BlipstreamError, InvalidImage, InvalidInput, format_error, parse_error
from blipstream.images.limits import DEFAULT_LIMITS, TOO_SLOW, ImageLimits
from blipstream.images.pixels import load_pixels
from blipstream.images.shapes import Pixels

ALARM = signal.SIGPROF  # ends the process; its timer counts processor time
GRACE_SECONDS = 0.5  # a decoder that reads on notices by itself that its budget is spent, and the process can stay
POLL_SECONDS = 0.1  # how often a worker's owner looks whether its client still waits
NICENESS = 5  # quick images come first
# Bytes of address space. Decoding takes 20 bytes a pixel, and a process has half a gigabyte from the start.
MAX_MEMORY = 4 * 2**30
MAX_IDLE_MEMORY = 128 << 20  # bytes that a process may hold when it has answered; it has 25 MB from the start

PIXELS, REFUSED = b"pixels", b"refused"  # what kind of answer follows


class ImageWorker:
    """A worker process. It starts with the first image, and again after it has ended. One thread drives it.

    One that has grown beyond MAX_IDLE_MEMORY is ended once it has answered.
    """

    def __init__(self, image_size: int, jpeg_scaling: str = "exact", limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self._image_size, self._jpeg_scaling, self._limits = image_size, jpeg_scaling, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection

    def load(self, image: bytes, mode: str, deadline: Deadline | None = None) -> Pixels:
        """As load_pixels.

        Raises InvalidInput, Gone, TimedOut, or BlipstreamError if the process dies of anything but its timer.
        """
        _check(deadline)
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None
        try:
            self._connection.send_bytes(mode.encode())
            self._connection.send_bytes(image)
            while not self._connection.poll(POLL_SECONDS):
                _check(deadline)
            kind, answer = self._connection.recv_bytes(), self._connection.recv_bytes()
        except (EOFError, OSError) as exc:
            raise self._cause_of_death() from exc
        except BlipstreamError:
            self.close()  # nobody waits for this image any more
            raise
        if _private_memory(self._process.pid) > MAX_IDLE_MEMORY:  # it would keep that for images that may never come
            self.close()
        if kind == REFUSED:
            raise parse_error(answer.decode())
        return np.frombuffer(bytearray(answer), np.uint8).reshape(self._image_size, self._image_size, 3)

    def close(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def _start(self) -> None:
        self.close()
        self._connection, theirs = Pipe()
        with theirs:
            limits = json.dumps(asdict(self._limits))
            arguments = map(str, (theirs.fileno(), self._image_size, self._jpeg_scaling, limits))
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # a Python that is embedded in Triton may have paths that a new process would not find by itself
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"},
            )
            self._finalizer = weakref.finalize(self, _kill, self._process)

    def _reap(self) -> int:
        """Forget the process, wait for its end, and return its status."""
        process, self._process = self._process, None
        self._connection.close()
        self._finalizer.detach()
        return process.wait() if process else 0

    def _cause_of_death(self) -> BlipstreamError:
        status = self._reap()
        if status == -ALARM:
            return InvalidImage(TOO_SLOW)
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return BlipstreamError(f"{FAILED} (its decoder ended with {how}): try again, or save the image again")


def _private_memory(pid: int) -> int:
    """The bytes of a process that it does not share; 0 if it has ended."""
    with suppress(OSError, ValueError):
        resident, shared = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1:3]
        return (int(resident) - int(shared)) * resource.getpagesize()
    return 0


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process whose ImageWorker is no longer referenced."""
    process.kill()
    process.wait()


def _check(deadline: Deadline | None) -> None:
    """Raises Gone or TimedOut if the client does not wait any more."""
    if deadline is not None:
        deadline.left()


def serve(connection: Connection, image_size: int, jpeg_scaling: str, limits: ImageLimits) -> None:
    """Load images until the other end closes."""
    while True:
        try:
            mode, image = connection.recv_bytes().decode(), connection.recv_bytes()
        except EOFError:
            return
        try:
            pixels = load_pixels(image, image_size, mode, limits, jpeg_scaling, set_alarm=_set_alarm)
            kind, answer = PIXELS, pixels.tobytes()
        except InvalidInput as exc:
            kind, answer = REFUSED, format_error(exc).encode()
        del image  # it may be large, and the next one may not come for long
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send_bytes(kind)
        connection.send_bytes(answer)


def _set_alarm(seconds: float) -> None:
    """End this process after so many seconds of processor time, and a few more."""
    signal.setitimer(signal.ITIMER_PROF, seconds + GRACE_SECONDS)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, and this process ends with it
    signal.signal(ALARM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [ALARM])
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, file, image_size, jpeg_scaling, limits = sys.argv
    serve(Connection(int(file)), int(image_size), jpeg_scaling, ImageLimits(**json.loads(limits)))
