# SPDX-License-Identifier: Apache-2.0
"""The images' embeddings on disk, in f16 as between Triton's models: a frozen encoder gives the same each epoch."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from blipstream.errors import BlipstreamError

Embeddings = npt.NDArray[np.float16]  # [images, N, E]
REVISION = 12  # characters of it in a file's name


class EmbeddingCache:
    """One revision's embeddings, by the images' digests. A list has a digest for each row that is complete.

    Rows are only added. So whoever is killed leaves all those behind that the list has.
    """

    def __init__(self, folder: Path, revision: str, dtype: str, shape: tuple[int, int]) -> None:
        """`shape` is [N, E] of one image."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"embeddings-{revision[:REVISION]}-{dtype}"
        self._rows, self._list, self._shape = folder / f"{name}.f16", folder / f"{name}.txt", shape
        self._list.touch()
        whole, _, _ = self._list.read_text(encoding="ascii").rpartition("\n")
        self._places = {digest: row for row, digest in enumerate(whole.split())}
        with self._list.open("wb") as file:
            file.write("".join(f"{each}\n" for each in self._places).encode())
        with self._rows.open("ab") as file:
            file.truncate(len(self._places) * self._row_bytes)

    @property
    def bytes(self) -> int:
        """The size on disk."""
        return len(self._places) * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return 2 * self._shape[0] * self._shape[1]

    def __contains__(self, digest: str) -> bool:
        return digest in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def add(self, digests: Sequence[str], embeds: Embeddings) -> None:
        """Add rows [B, N, E]."""
        with self._rows.open("ab") as rows, self._list.open("a", encoding="ascii") as lines:
            rows.write(np.ascontiguousarray(embeds, np.float16).tobytes())
            rows.flush()
            lines.write("".join(f"{digest}\n" for digest in digests))
        self._places |= {digest: len(self._places) + number for number, digest in enumerate(digests)}

    def get(self, digests: Sequence[str]) -> Embeddings:
        """The embeddings [B, N, E] of images that are there."""
        rows = np.memmap(self._rows, np.float16, "r", shape=(len(self._places), *self._shape))
        return np.stack([rows[self._places[digest]] for digest in digests])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder. Raises BlipstreamError if one is there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise BlipstreamError(f"another run is at work in {folder}: wait for it, or choose another folder") from exc
        yield
