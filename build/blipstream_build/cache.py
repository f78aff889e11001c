# SPDX-License-Identifier: Apache-2.0
"""The user's cache folder, where a build puts a model repository if it is not told where. Nothing there is removed."""

import os
import pwd
import re
import shlex
from datetime import datetime
from pathlib import Path

from blipstream.errors import ArtifactError

LONGEST_NAME = 80  # characters of a checkpoint's name; a file system takes 255 bytes
REVISION = 12  # characters of it in a folder's name


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/blipstream, or ~/.cache/blipstream. Raises ArtifactError if there is no home either.

    Source: the XDG base directory specification, which has relative paths ignored.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():
        return given / "blipstream"
    try:
        home = os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir  # Path.home() takes an empty HOME for /
    except KeyError as exc:
        raise ArtifactError("you have no home folder for a cache: set XDG_CACHE_HOME, or give a --repository") from exc
    return Path(home, ".cache", "blipstream")


def cached_repository(checkpoint: str, revision: str, config: str, dtype: str) -> Path:
    """The model repository of one revision of a checkpoint, in one configuration and dtype."""
    name = re.sub(r"[^\w.-]+", "-", checkpoint, flags=re.ASCII)[-LONGEST_NAME:]
    return cache_folder() / "repositories" / "-".join([name, revision[:REVISION], config, dtype])


def other_revisions(repository: Path) -> list[Path]:
    """Cached repositories of checkpoints of the same name, but of another revision, from the oldest on."""
    name, revision, *_ = repository.name.rsplit("-", 3)
    found = [
        path
        for path in repository.parent.glob("*-*-*-*")
        if path.name.rsplit("-", 3)[0] == name and path.name.rsplit("-", 3)[1] != revision
    ]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def how_to_remove(repository: Path) -> str:
    """The command that removes a repository, with its size and when it was last built into."""
    size = sum(path.stat().st_size for path in repository.rglob("*") if path.is_file())
    built = datetime.fromtimestamp(repository.stat().st_mtime).astimezone()
    return f"rm -r {shlex.quote(str(repository))}  # {size / 1e9:.2f} GB, of {built:%Y-%m-%d}"
