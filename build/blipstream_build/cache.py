# SPDX-License-Identifier: Apache-2.0
"""The user's cache folder, where a build puts a model repository if it is not told where."""

import os
import pwd
import re
from pathlib import Path

from blipstream.errors import ArtifactError

LONGEST_NAME = 80  # characters of a checkpoint's name; a file system takes 255 bytes


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
    return cache_folder() / "repositories" / "-".join([name, revision[:12], config, dtype])
