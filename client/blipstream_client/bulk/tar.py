# SPDX-License-Identifier: Apache-2.0
"""The images in a tar file, alone or with their texts. It may come from a stranger: its headers are not trusted."""

import bz2
import gzip
import lzma
import posixpath
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from typing import IO, Any, BinaryIO, Self, cast

from blipstream_client._exceptions import InvalidImage
from blipstream_client._files import MAX_BYTES, TOO_LARGE, open_regular
from blipstream_client._text import excerpt
from blipstream_client.bulk.errors import translated
from blipstream_client.bulk.items import SIGNATURE_BYTES, Item, LeftOut, is_image, is_image_name, suffix
from blipstream_client.bulk.rows import as_utf8

BLOCK = 1 << 20
HEADER_BYTES = 1 << 20  # of one member, with long names
TEXT_SUFFIXES = (".txt", ".json")  # of a sample's files: the first one that has a text counts
MOST_TEXT = 1 << 20  # bytes of such a file
MOST_LINKS = 40  # in a chain, as in Linux
MOST_GLOBAL_HEADERS = 100  # each is copied into every later member
COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}


def tar_items(path: str, left_out: LeftOut) -> Iterator[Item]:
    """The images in a tar file, and then its links to images. Raises InvalidRequest if it cannot be read."""
    links: dict[str, list[str]] = {}  # names of links, by their target
    with translated(f"Cannot read {excerpt(as_utf8(path))}"), _opened(path) as members:
        for member in members:
            if member.target is not None:
                links.setdefault(member.target, []).append(member.name)
            elif member.is_file and member.is_image():
                yield member.item(path, member.name)
            elif member.is_file:
                left_out.add(f"{path}/{member.name}")
    if links:
        yield from _linked(path, links, left_out)


def tar_pairs(path: str, texts_of: Callable[[str, bytes], Sequence[str]], left_out: LeftOut) -> Iterator[Item]:
    """The first image of each sample, with its texts, which are those of its text files.

    A sample is a run of files whose names are the same up to the first dot, as in webdataset. `texts_of` takes a file's
    suffix and content. Raises InvalidRequest if the tar file cannot be read.
    """
    with translated(f"Cannot read {excerpt(as_utf8(path))}"), _opened(path) as all_members:
        files = _files(path, all_members, left_out)
        for _, members in groupby(files, lambda member: _sample(member.name)):
            image: Item | None = None
            texts: dict[str, Sequence[str]] = {}
            for member in members:
                kind = suffix(member.name)
                if kind in TEXT_SUFFIXES and member.is_small:
                    texts[kind] = texts_of(kind, member.content)
                elif not member.is_image():
                    left_out.add(f"{path}/{member.name}")
                elif image is None:
                    image = member.item(path, member.name)
                    member.keep()
                else:
                    left_out.add(f"{path}/{member.name}", "second image")
            found = next((texts[kind] for kind in TEXT_SUFFIXES if texts.get(kind)), ())
            if image is not None:
                yield replace(image, texts=tuple(found))
            elif found:
                left_out.add(f"{path}/{member.name}", "text without an image")


def _files(path: str, members: Iterator["Member"], left_out: LeftOut) -> Iterator["Member"]:
    for member in members:
        if member.is_file:
            yield member
        elif member.target is not None:
            left_out.add(f"{path}/{member.name}", "link")


def _sample(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def _linked(path: str, links: dict[str, list[str]], left_out: LeftOut) -> Iterator[Item]:
    """The images that links lead to. The file is read again, so that only names are held in memory."""
    names = {posixpath.normpath(name): target for target, several in links.items() for name in several}
    wanted: dict[str, list[str]] = {}
    for target, several in links.items():
        wanted.setdefault(_end(target, names), []).extend(several)
    with translated(f"Cannot read {excerpt(as_utf8(path))}"), _opened(path) as members:
        for member in members:
            for name in wanted.pop(posixpath.normpath(member.name), ()) if member.is_file else ():
                if member.is_image():
                    yield member.item(path, name)
                else:
                    left_out.add(f"{path}/{name}")
    for name in (each for several in wanted.values() for each in several):
        left_out.add(f"{path}/{name}", "linked to no file")


def _end(target: str, links: dict[str, str]) -> str:
    """The end of a chain of links."""
    for _ in range(MOST_LINKS):
        target = links.get(target, target)
    return target


class Member:
    """A member of a tar file. It can be read before the next member, or later if it was kept."""

    def __init__(self, tar: tarfile.TarFile, stream: "Stream", info: tarfile.TarInfo) -> None:
        self.name = info.name
        self.is_file = info.isfile()
        self._tar = tar
        self._stream = stream
        self._info = info

    @property
    def target(self) -> str | None:
        """The target of a link. None if it is no link."""
        if self._info.issym():
            return posixpath.normpath(posixpath.join(posixpath.dirname(self.name), self._info.linkname))
        return posixpath.normpath(self._info.linkname) if self._info.islnk() else None

    def item(self, path: str, name: str) -> Item:
        """The member as an item of this name."""
        return Item(f"{path}/{name}", lambda: self.content)

    @property
    def is_small(self) -> bool:
        """Whether it is a plain file of a size that texts have."""
        return self._info.size <= MOST_TEXT and not self._info.issparse()

    def keep(self) -> None:
        """Make sure that it can be read once the next member has begun, as long as the tar file is open."""
        if self._stream.is_compressed:  # seeking back decompresses everything again
            with suppress(InvalidImage):
                _ = self.content

    def is_image(self) -> bool:
        """Whether its name or its first bytes are an image's."""
        return is_image_name(self.name) or (not self._info.issparse() and is_image(self._first_bytes))

    @cached_property
    def content(self) -> bytes:
        """The member's bytes. Raises InvalidImage."""
        for problem, is_there in (
            (TOO_LARGE, self._info.size > MAX_BYTES),
            ("expected a plain file, and it is stored with holes", self._info.issparse()),
        ):
            if is_there:
                raise InvalidImage(f"Cannot read {excerpt(as_utf8(self.name))}: {problem}")
        first_bytes = self._first_bytes
        self._stream.allow(MAX_BYTES)
        return first_bytes + self._file.read()

    @cached_property
    def _first_bytes(self) -> bytes:
        return self._file.read(SIGNATURE_BYTES)  # `content` reads on: seeking back is slow if compressed

    @cached_property
    def _file(self) -> IO[bytes]:
        self._stream.allow(MAX_BYTES)
        return cast(IO[bytes], self._tar.extractfile(self._info))  # not None, since it is a file


@contextmanager
def _opened(path: str) -> Iterator[Iterator[Member]]:
    """The members in turn, which can be read as long as the tar file is open."""
    with open_regular(path) as file:
        first_bytes = file.read(SIGNATURE_BYTES)
        file.seek(0)
        unpack = next((unpack for magic, unpack in COMPRESSED.items() if first_bytes.startswith(magic)), None)
        stream = Stream(unpack(file) if unpack else file, is_compressed=unpack is not None)
        with tarfile.TarFile(fileobj=stream, tarinfo=Header) as tar:  # type: ignore[arg-type]
            yield _members(tar, stream)


def _members(tar: tarfile.TarFile, stream: "Stream") -> Iterator[Member]:
    begun_at = -1
    while (info := tar.next()) is not None:
        if not (begun_at < info.offset < tar.offset and len(tar.pax_headers) <= MOST_GLOBAL_HEADERS):
            raise tarfile.ReadError(f"it is damaged at byte {info.offset}")
        begun_at = info.offset
        yield Member(tar, stream, info)
        tar.members = []  # type: ignore[attr-defined]  # else they all stay in memory
        stream.allow(HEADER_BYTES)
    stream.allow(BLOCK)
    while block := stream.read(BLOCK):
        if block.strip(b"\0"):
            raise tarfile.ReadError("something comes after its end")
        stream.allow(BLOCK)


class Stream:
    """The stream for TarFile, which otherwise reads as many bytes as a header says."""

    def __init__(self, file: BinaryIO, *, is_compressed: bool) -> None:
        self.is_compressed = is_compressed
        self._file = file
        self.seek = file.seek
        self.tell = file.tell
        self.allow(HEADER_BYTES)

    def allow(self, size: int) -> None:
        """Let so many more bytes be read, and a block."""
        self._left = size + BLOCK

    def read(self, size: int) -> bytes:
        """The next bytes. Raises ReadError."""
        self._left -= size
        if size < 0 or self._left < 0:
            raise tarfile.ReadError(f"the header at byte {self.tell()} is damaged, or larger than {BLOCK >> 20} MiB")
        return self._file.read(size)


class Header(tarfile.TarInfo):
    """The header of a member. TarFile takes a damaged one for the block of zeros that ends a file."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        """The next header. Raises ReadError."""
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as exc:
            raise tarfile.ReadError(f"it is damaged or cut off at byte {tar.offset} ({exc})") from exc
