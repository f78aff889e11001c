# SPDX-License-Identifier: Apache-2.0
"""Files that hold an image: what may be read of them, and for how long."""

import os
import stat
from concurrent.futures import Future
from threading import Thread
from typing import Any, BinaryIO, TypeAlias

from blipstream_client._exceptions import InvalidImage, RequestTimeout, quoted
from blipstream_client._transport import Deadline

MAX_BYTES = 32 * 2**20  # of an encoded image, as the server
TOO_LARGE = f"it is larger than {MAX_BYTES >> 20} MiB, which is the most that an image may have"

PathLike: TypeAlias = str | os.PathLike[str]

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class NotRegular(OSError):
    """There is something other than a file with contents of its own."""


def open_regular(path: PathLike) -> BinaryIO:
    """The file, if it is a regular one: others may have no end, or wait for somebody. Raises OSError or ValueError."""
    _check_regular(os.stat(path))  # noqa: PTH116  # before it is opened, which means something to some devices
    file: BinaryIO = open(path, "rb", opener=_open_at_once)  # noqa: SIM115
    try:
        _check_regular(os.fstat(file.fileno()))  # by now it may be another
    except NotRegular:
        file.close()
        raise
    return file


def _check_regular(status: os.stat_result) -> None:
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is not None:
        raise NotRegular(f"expected a file, got {kind}: pipe its content in and give -, or in Python give its bytes")


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_path(path: PathLike) -> bytes:
    """The content of a file. Raises InvalidImage."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise InvalidImage(f"Cannot read the image file {_shown(path)}: {TOO_LARGE}")
            return file.read(size)  # and nothing of those in /proc, which claim to be empty and may have no end
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise InvalidImage(f"Cannot read the image file {_shown(path)}: {reason}") from exc


def _shown(path: PathLike) -> str:
    return quoted(os.fspath(path))


def read_file(file: BinaryIO, deadline: Deadline | None) -> bytes:
    """The rest of an open file. Raises InvalidImage or RequestTimeout."""
    try:
        return _read_all(file) if deadline is None else _in_time(file, deadline)
    except TimeoutError as exc:
        raise RequestTimeout(
            f"The file object has not ended within {deadline.seconds if deadline else 0:g} s: give it a longer timeout"
        ) from exc
    except (OSError, ValueError) as exc:  # ValueError: closed, or text that does not decode
        raise InvalidImage(f"Cannot read the image from the file object: {exc}") from exc


def _in_time(file: BinaryIO, deadline: Deadline) -> bytes:
    """Read by another thread, since nothing ends the wait for a pipe that is silent."""
    content: Future[bytes] = Future()

    def read() -> None:
        try:
            content.set_result(_read_all(file))
        except BaseException as exc:
            content.set_exception(exc)

    Thread(target=read, name="blipstream-read", daemon=True).start()
    return content.result(deadline.left())


def _read_all(file: BinaryIO) -> bytes:
    pieces: list[bytes] = []
    left = MAX_BYTES + 1
    while left > 0:
        piece: Any = file.read(left)
        if not isinstance(piece, bytes):
            raise InvalidImage(f"Expected a binary file, but reading it gave {type(piece).__name__}: open it as 'rb'")
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        left -= len(piece)
    raise InvalidImage(f"Cannot read the image from the file object: {TOO_LARGE}")
