# SPDX-License-Identifier: Apache-2.0
"""Names in a table -> images."""

import os
import re
from collections.abc import Iterable, Iterator

from blipstream_client._exceptions import InvalidImage, InvalidRequest
from blipstream_client._fetch import is_url
from blipstream_client._text import excerpt
from blipstream_client.bulk.items import Item, LeftOut
from blipstream_client.bulk.parquet import parquet_items
from blipstream_client.bulk.tar import tar_items

TAR = re.compile(r"\.(tar|tar\.gz|tgz|tar\.bz2|tar\.xz)(?=/)", re.IGNORECASE)
PARQUET_ROW = re.compile(r"(.+\.parquet)#\d+", re.IGNORECASE | re.DOTALL)

Image = bytes | str | InvalidImage  # bytes, a path or URL, or why there is no image


def images(names: Iterable[str]) -> Iterator[tuple[str, Image]]:
    """Each name with its image. Those of a shard come together, so that it is read once."""
    shards: dict[str, set[str]] = {}
    for name in names:
        if shard := _shard(name):
            shards.setdefault(shard, set()).add(name)
        else:
            yield name, name
    for shard, wanted in shards.items():
        yield from _in_shard(shard, wanted)


def _shard(name: str) -> str | None:
    """The tar or Parquet file that has the image. None if it is a file or URL of its own."""
    if is_url(name) or os.path.exists(name):  # noqa: PTH110  # Path raises for odd names
        return None
    row = PARQUET_ROW.fullmatch(name)
    shards = [row[1]] if row else [name[: found.end()] for found in TAR.finditer(name)]
    return next(filter(os.path.isfile, shards), None)


def _in_shard(shard: str, wanted: set[str]) -> Iterator[tuple[str, Image]]:
    try:
        for item in _items(shard):
            if item.name in wanted:
                wanted.remove(item.name)
                yield item.name, _loaded(item)
                if not wanted:
                    return
        problem = "it is there no more"
    except InvalidRequest as exc:
        problem = str(exc)
    for name in wanted:
        yield name, InvalidImage(f"Cannot read it from {excerpt(shard)}: {problem}")


def _items(shard: str) -> Iterator[Item]:
    if shard.lower().endswith(".parquet"):
        return parquet_items(shard, None, allow_local_paths=True)  # nothing is sent but what has the row's hash
    return tar_items(shard, LeftOut())


def _loaded(item: Item) -> bytes | str | InvalidImage:
    try:
        return item.load()
    except InvalidImage as exc:
        return exc
