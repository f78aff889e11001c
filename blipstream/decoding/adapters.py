# SPDX-License-Identifier: Apache-2.0
"""The adapters of a folder, each loaded when a request names it.

The folder is looked at each time, so an adapter can be added, replaced and removed while requests run. Those keep the
one that they began with.
"""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from blipstream.adapters import NAME, find_adapter
from blipstream.config import CONFIG_NAME, CheckpointConfig
from blipstream.errors import ArtifactError
from blipstream.text.adapter import Adapter

Stamp = tuple[int, int]  # of a config.json: its inode and its time of change, which tell adapters of one name apart


class Adapters:
    """The adapters of a folder. Those that were used last stay loaded. Thread-safe."""

    def __init__(
        self, folder: Path, checkpoint: CheckpointConfig, load: Callable[[Path], Adapter], max_bytes: int
    ) -> None:
        """Loaded ones have at most `max_bytes`, but the one that was used last stays, whatever it has."""
        self._folder = folder
        self._checkpoint = checkpoint
        self._load = load
        self._max_bytes = max_bytes
        self._loaded: OrderedDict[str, tuple[Stamp | None, Adapter]] = OrderedDict()  # the one used last is the last
        self._lock = Lock()

    def get(self, name: str) -> Adapter:
        """The adapter of that name.

        Raises InvalidInput if there is none for this checkpoint, and ArtifactError if it is broken.
        """
        with self._lock:
            loaded = self._loaded.pop(name, None)
            if loaded is None or loaded[0] != self._stamp(name):
                loaded = self._load_whole(name)
            self._loaded[name] = loaded
            while len(self._loaded) > 1 and sum(each.num_bytes for _, each in self._loaded.values()) > self._max_bytes:
                self._loaded.popitem(last=False)
            return loaded[1]

    def _load_whole(self, name: str) -> tuple[Stamp | None, Adapter]:
        """Load an adapter, and once more if it was replaced meanwhile."""
        while True:
            stamp = self._stamp(name)
            find_adapter(self._folder, name, self._checkpoint)
            try:
                adapter = self._load(self._folder / name)
            except ArtifactError:
                if self._stamp(name) == stamp:
                    raise
            else:
                if self._stamp(name) == stamp:
                    return stamp, adapter

    def _stamp(self, name: str) -> Stamp | None:
        """None if there is no adapter of that name."""
        if not NAME.fullmatch(name):
            return None
        try:
            status = (self._folder / name / CONFIG_NAME).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns
