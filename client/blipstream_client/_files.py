# SPDX-License-Identifier: Apache-2.0
"""Image files: which may be read, up to what size and for how long."""

import os
import stat
from concurrent.futures import Future
from threading import Thread
from typing import Any, BinaryIO, TypeAlias

from blipstream_client._deadline import Deadline
from blipstream_client._exceptions import BlipstreamError, InvalidImage, RequestTimeout
from blipstream_client._text import quoted

MAX_BYTES = 32 * 2**20  # of an encoded image: the server has the same limit
TOO_LARGE = f"it is larger than {MAX_BYTES >> 20} MiB, which is the most that an image may have"

PathLike: TypeAlias = str | os.PathLike[str]

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class NotRegular(OSError):
    """The path is a pipe, a socket or a device."""


def open_regular(path: PathLike) -> BinaryIO:
    """Open a regular file. Any other may have no end, or block. Raises OSError (NotRegular) or ValueError."""
    _check_regular(os.stat(path))  # noqa: PTH116  # before opening, which has an effect on some devices
    file: BinaryIO = open(path, "rb", opener=_open_at_once)  # noqa: SIM115
    try:
        _check_regular(os.fstat(file.fileno()))  # again, since it may have been replaced
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
            return file.read(size)  # files in /proc say that they are empty, and may have no end
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
    except BlipstreamError:
        raise
    except Exception as exc:  # what is unpacked as it is read may raise any, such as gzip's EOFError
        raise InvalidImage(f"Cannot read the image from the file object: {exc}") from exc


def _in_time(file: BinaryIO, deadline: Deadline) -> bytes:
    """Read in another thread, since nothing ends the wait for a silent pipe."""
    content: Future[bytes] = Future()

    def read() -> None:
        try:
            content.set_result(_read_all(file))
        except BaseException as exc:
            content.set_exception(exc)

    Thread(target=read, name="blipstream-read", daemon=True).start()
    return content.result(deadline.left())


def _read_all(file: BinaryIO) -> bytes:
    chunks: list[bytes] = []
    left = MAX_BYTES + 1
    while left > 0:
        chunk: Any = file.read(left)
        if not isinstance(chunk, bytes):
            raise InvalidImage(f"Expected a binary file, but reading it gave {type(chunk).__name__}: open it as 'rb'")
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
        left -= len(chunk)
    raise InvalidImage(f"Cannot read the image from the file object: {TOO_LARGE}")
