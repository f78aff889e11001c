# SPDX-License-Identifier: Apache-2.0
"""Tar shards: their images, one after the other, and whatever strangers wrote into their headers."""

import bz2
import gzip
import lzma
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import IO, Any, BinaryIO, Self, cast

from blipstream_client._exceptions import InvalidImage, excerpt
from blipstream_client._files import MAX_BYTES, TOO_LARGE, open_regular
from blipstream_client.bulk.errors import translated
from blipstream_client.bulk.items import SIGNATURE_BYTES, Item, LeftOut, is_image, is_image_name
from blipstream_client.bulk.rows import spelled

BLOCK = 1 << 20
HEADER_BYTES = 1 << 20  # of one member, long names and all
MOST_LINKS = 40  # one behind the other, as in Linux
MOST_GLOBAL_HEADERS = 100  # which go into each member's
COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}


def tar_items(path: str, left_out: LeftOut) -> Iterator[Item]:
    """The images in a tar file, and then its links to them. Raises InvalidRequest where it cannot be read."""
    links: dict[str, list[str]] = {}  # what they lead to, and their names
    with translated(f"Cannot read {excerpt(spelled(path))}"):
        for member in _members(path):
            if member.target is not None:
                links.setdefault(member.target, []).append(member.name)
            elif member.is_file and member.is_image():
                yield member.item(path, member.name)
            elif member.is_file:
                left_out.add(f"{path}/{member.name}")
        if links:
            yield from _linked(path, links, left_out)


def _linked(path: str, links: dict[str, list[str]], left_out: LeftOut) -> Iterator[Item]:
    """What links lead to, once more from the beginning: nothing but their names is held."""
    names = {posixpath.normpath(name): target for target, several in links.items() for name in several}
    wanted: dict[str, list[str]] = {}
    for target, several in links.items():
        wanted.setdefault(_end(target, names), []).extend(several)
    for member in _members(path):
        for name in wanted.pop(posixpath.normpath(member.name), ()) if member.is_file else ():
            if member.is_image():
                yield member.item(path, name)
            else:
                left_out.add(f"{path}/{name}")
    for name in (each for several in wanted.values() for each in several):
        left_out.add(f"{path}/{name}", "linked to no file")


def _end(target: str, links: dict[str, str]) -> str:
    """Where a link to a link leads in the end."""
    for _ in range(MOST_LINKS):
        target = links.get(target, target)
    return target


class Member:
    """What lies in a tar file, to be read once while its turn is."""

    def __init__(self, tar: tarfile.TarFile, stream: "Stream", info: tarfile.TarInfo) -> None:
        self.name = info.name
        self.is_file = info.isfile()
        self._tar = tar
        self._stream = stream
        self._info = info

    @property
    def target(self) -> str | None:
        """What a link leads to, if it is one."""
        if self._info.issym():
            return posixpath.normpath(posixpath.join(posixpath.dirname(self.name), self._info.linkname))
        return posixpath.normpath(self._info.linkname) if self._info.islnk() else None

    def item(self, path: str, name: str) -> Item:
        """It, under this name in the tar file."""
        return Item(f"{path}/{name}", lambda: self.content)

    def is_image(self) -> bool:
        """By its name, or else by its first bytes."""
        return is_image_name(self.name) or (not self._info.issparse() and is_image(self._first_bytes))

    @cached_property
    def content(self) -> bytes:
        """All of it. Raises InvalidImage."""
        for problem, is_there in (
            (TOO_LARGE, self._info.size > MAX_BYTES),
            ("expected a plain file, and it is stored with holes", self._info.issparse()),
        ):
            if is_there:
                raise InvalidImage(f"Cannot read {excerpt(spelled(self.name))}: {problem}")
        return self._first_bytes + self._file.read()

    @cached_property
    def _first_bytes(self) -> bytes:
        return self._file.read(SIGNATURE_BYTES)  # and on from there: a compressed file begins anew to go back

    @cached_property
    def _file(self) -> IO[bytes]:
        self._stream.allow(MAX_BYTES)
        return cast(IO[bytes], self._tar.extractfile(self._info))  # not None, since it is a file


def _members(path: str) -> Iterator[Member]:
    """Each in turn; none is remembered."""
    with open_regular(path) as file:
        first_bytes = file.read(SIGNATURE_BYTES)
        file.seek(0)
        unpack = next((unpack for magic, unpack in COMPRESSED.items() if first_bytes.startswith(magic)), None)
        stream = Stream(unpack(file) if unpack else file)
        with tarfile.TarFile(fileobj=stream, tarinfo=Header) as tar:  # type: ignore[arg-type]
            begun_at = -1
            while (info := tar.next()) is not None:
                if not (begun_at < info.offset < tar.offset and len(tar.pax_headers) <= MOST_GLOBAL_HEADERS):
                    raise tarfile.ReadError(f"it is damaged at byte {info.offset}")
                begun_at = info.offset
                yield Member(tar, stream, info)
                tar.members = []  # type: ignore[attr-defined]  # else it remembers all of them
                stream.allow(HEADER_BYTES)
            stream.allow(BLOCK)
            while block := stream.read(BLOCK):
                if block.strip(b"\0"):
                    raise tarfile.ReadError("something comes after its end")
                stream.allow(BLOCK)


class Stream:
    """What TarFile reads, which would take all the memory that a header asks for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell
        self.allow(HEADER_BYTES)

    def allow(self, size: int) -> None:
        """From now on, so many bytes may be read, and a block."""
        self._left = size + BLOCK

    def read(self, size: int) -> bytes:
        """So many bytes. Raises ReadError."""
        self._left -= size
        if size < 0 or self._left < 0:
            raise tarfile.ReadError(f"the header at byte {self.tell()} is damaged, or larger than {BLOCK >> 20} MiB")
        return self._file.read(size)


class Header(tarfile.TarInfo):
    """What begins a member. TarFile takes a damaged one for the end of the file, which is a block of zeros."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        """The next one. Raises ReadError."""
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as exc:
            raise tarfile.ReadError(f"it is damaged or cut off at byte {tar.offset} ({exc})") from exc
