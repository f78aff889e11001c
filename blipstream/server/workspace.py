# SPDX-License-Identifier: Apache-2.0
"""The files of one server: its temporary folder, its shared memory, and the locks that say it is alive."""

import os
import re
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

from blipstream.errors import ServerError
from blipstream.server import leftovers, open_files

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108


class Workspace:
    """A place for one server's files. It outlives a restart, which so needs nothing that a full disk would refuse."""

    def __init__(self) -> None:
        """Remove what dead servers left, and make this one's folder and locks. Raises ServerError."""
        self.name = leftovers.new_name()
        self.temporary = _temporary_folder()
        self._locks: dict[Path, int] = {}  # open files, by the folder that they lie in
        try:
            for place in {SHARED_MEMORY, self.temporary}:
                leftovers.sweep(place)
                self._locks[place] = leftovers.claim(place, self.name)
            self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=self.temporary))
        except OSError as error:
            self.close()
            raise ServerError(f"{place} cannot be written ({error.strerror}): see that there is room") from error

    @property
    def locks(self) -> tuple[int, ...]:
        """The open locks, which every process of the server shall inherit."""
        return tuple(self._locks.values())

    @property
    def regions(self) -> str:
        """What the names of the server's regions in shared memory begin with."""
        return f"{self.name}-shm-"

    def link(self, target: Path, *name: str) -> Path:
        """A link in the folder, whose path has none of the characters that its target's may have."""
        link = self.folder.joinpath(*name)
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # it was made at the last start
            link.symlink_to(target.absolute())
        return link

    def write(self, text: str, *name: str) -> None:
        """Write a file in the folder, unless it says that already."""
        file = self.folder.joinpath(*name)
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")

    def remove_regions(self) -> None:
        """Remove the server's regions in shared memory, if this process may open files; else `close` does."""
        with suppress(OSError):
            for region in open_files.retry(lambda: list(SHARED_MEMORY.glob(f"{self.regions}*"))):
                region.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove everything and release the locks. What cannot be removed, the next server to start removes."""
        for place, lock in self._locks.items():
            with suppress(OSError):
                open_files.retry(partial(leftovers.clear, place, self.name))
            os.close(lock)
        self._locks = {}


def _temporary_folder() -> Path:
    """Where temporary files go. Triton hands the paths of models to a shell without quotes."""
    folders = [Path(tempfile.gettempdir()), Path("/tmp"), SHARED_MEMORY]  # noqa: S108
    for folder in folders:
        if re.fullmatch(r"[\w/.+-]+", str(folder), re.ASCII) and os.access(folder, os.W_OK):
            return folder
    raise ServerError(
        f"the folder for temporary files must have a path of letters, digits and /.+-_ alone, not {folders[0]}: "
        "set TMPDIR to one"
    )
