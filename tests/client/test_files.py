# SPDX-License-Identifier: Apache-2.0
"""Files as images: regular ones only, up to the size limit, and within the timeout."""

import io
import os
import socket
from pathlib import Path

import pytest

from blipstream_client import Client, InvalidImage, RequestTimeout
from blipstream_client._deadline import Deadline
from blipstream_client._files import MAX_BYTES
from blipstream_client._images import encode
from tests.support.tiny_triton import TinyTriton


def special(kind: str, path: Path) -> Path:
    """Files that are not regular."""
    match kind:
        case "a pipe":
            os.mkfifo(path)
        case "a socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        case _:
            path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a device"])
def test_regular_files_only(tmp_path: Path, tiny: TinyTriton, kind: str) -> None:
    path = special(kind, tmp_path / "a.jpg")
    with pytest.raises(InvalidImage, match=rf"a\.jpg': expected a file, got {kind}: pipe its content in"):
        encode(path)
    with Client(tiny.url("grpc")) as client:
        (result,) = client.caption_many([str(path)])
    assert isinstance(result, InvalidImage)


def test_files_that_claim_to_be_empty_have_no_end() -> None:
    assert Path("/proc/self/smaps").read_bytes()
    with pytest.raises(InvalidImage, match="got 0 bytes"):
        encode("/proc/self/smaps")


def test_nothing_larger_than_an_image(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(MAX_BYTES)
    assert len(encode(tmp_path / "a.jpg")) == len(encode(bytes(MAX_BYTES))) == MAX_BYTES
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(2**42)  # 4 TiB, more than any memory
    for image in (tmp_path / "a.jpg", memoryview(bytes(MAX_BYTES + 1)), io.BytesIO(bytes(MAX_BYTES + 1))):
        with pytest.raises(InvalidImage, match="it is larger than 32 MiB"):
            encode(image)
    with Path("/dev/zero").open("rb") as zeros, pytest.raises(InvalidImage, match="it is larger than 32 MiB"):
        encode(zeros)


def test_a_file_object_that_gives_a_little_at_a_time(jpeg: bytes) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(7, size or 0))

    assert encode(Slow(jpeg)) == encode(Slow(jpeg), Deadline(60)) == jpeg


def test_a_file_object_that_never_ends(tiny: TinyTriton) -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as silent, os.fdopen(write, "wb"), Client(tiny.url("grpc"), timeout=0.1) as client:
        with pytest.raises(RequestTimeout, match=r"The file object has not ended within 0\.1 s"):
            client.caption(silent)
        os.close(os.dup(write))
        os.write(write, b"x")
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)  # this ends the pipe, and the thread that reads it


@pytest.mark.parametrize("name", ["a" * 20_000, "data:image/png;base64," + "A" * 18_000, "é" * 300])
def test_errors_do_not_repeat_what_came(name: str) -> None:
    with pytest.raises(InvalidImage, match="File name too long") as caught:
        encode(name)
    assert len(str(caught.value)) < 200
