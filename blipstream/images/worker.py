# SPDX-License-Identifier: Apache-2.0
"""Images that may take long, decoded in a process that can be ended: an alarm does so when an image's time is over."""

import json
import os
import resource
import signal
import subprocess
import sys
import weakref
from dataclasses import asdict
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np

from blipstream.deadline import Deadline
from blipstream.errors import FAILED, BlipstreamError, InvalidInput
from blipstream.images.pixels import DEFAULT_LIMITS, TOO_SLOW, ImageLimits, Pixels, load_pixels

ALARM = signal.SIGPROF
GRACE_SECONDS = 0.5  # for a decoder that reads on, and so learns by itself that its time is over
LOOK_SECONDS = 0.1  # how often a worker's owner looks whether anybody still waits
NICENESS = 5  # quick images come first
MEMORY = 4 * 2**30  # of addresses; what is decoded takes 20 bytes a pixel, and half a gigabyte is there from the start

PIXELS, REFUSED = b"pixels", b"refused"


class ImageWorker:
    """Such a process, started when there is something for it to do, and again after its end."""

    def __init__(self, image_size: int, jpeg_scaling: str = "exact", limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self._image_size, self._jpeg_scaling, self._limits = image_size, jpeg_scaling, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection

    def load(self, image: bytes, mode: str, deadline: Deadline | None = None) -> Pixels:
        """As load_pixels. Raises InvalidInput, Gone, TimedOut, or BlipstreamError where the process dies of itself."""
        _ask(deadline)
        if self._process is None or self._process.poll() is not None:
            self._start()
        try:
            self._connection.send_bytes(mode.encode())
            self._connection.send_bytes(image)
            while not self._connection.poll(LOOK_SECONDS):
                _ask(deadline)
            kind, answer = self._connection.recv_bytes(), self._connection.recv_bytes()
        except (EOFError, OSError) as exc:
            raise self._ended() from exc
        except BlipstreamError:
            self.close()  # what nobody waits for
            raise
        if kind == REFUSED:
            raise InvalidInput(answer.decode())
        return np.frombuffer(bytearray(answer), np.uint8).reshape(self._image_size, self._image_size, 3)

    def close(self) -> None:
        """End it, whatever it is at."""
        if self._process is not None:
            self._process.kill()
            self._wait()

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
                # a model's Python may have been told of its paths in ways that a program's is not
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"},
            )
            self._finalizer = weakref.finalize(self, _end, self._process)

    def _wait(self) -> int:
        """Let go of a process that ends; its status."""
        process, self._process = self._process, None
        self._connection.close()
        self._finalizer.detach()
        return process.wait() if process else 0

    def _ended(self) -> BlipstreamError:
        """Why it has."""
        status = self._wait()
        if status == -ALARM:
            return InvalidInput(TOO_SLOW)
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return BlipstreamError(f"{FAILED} (its decoder ended with {how}): try again, or save the image anew")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Whose owner nobody has any more."""
    process.kill()
    process.wait()


def _ask(deadline: Deadline | None) -> None:
    """Raises Gone or TimedOut where nobody waits any more."""
    if deadline is not None:
        deadline.left()


def serve(connection: Connection, image_size: int, jpeg_scaling: str, limits: ImageLimits) -> None:
    """Load what comes until nobody is there any more."""
    while True:
        try:
            mode, image = connection.recv_bytes().decode(), connection.recv_bytes()
        except EOFError:
            return
        try:
            pixels = load_pixels(image, image_size, mode, limits, jpeg_scaling, alarm=_set_alarm)
            kind, answer = PIXELS, pixels.tobytes()
        except InvalidInput as exc:
            kind, answer = REFUSED, str(exc).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send_bytes(kind)
        connection.send_bytes(answer)


def _set_alarm(seconds: float) -> None:
    """Be ended after so many seconds of a processor's time."""
    signal.setitimer(signal.ITIMER_PROF, seconds + GRACE_SECONDS)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, whose end is ours
    signal.signal(ALARM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [ALARM])
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, file, image_size, jpeg_scaling, limits = sys.argv
    serve(Connection(int(file)), int(image_size), jpeg_scaling, ImageLimits(**json.loads(limits)))
