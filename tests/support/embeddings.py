# SPDX-License-Identifier: Apache-2.0
"""Tables of embeddings, written as `blipstream embed` writes them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blipstream_client import Client
from blipstream_client.bulk.extras import pyarrow

pa = pyarrow("This test")
CHECKPOINT = "emoji-demo@1234"


def row(name: str, embedding: Sequence[float] | None, **others: Any) -> dict[str, Any]:
    """A row of an image whose bytes are its name."""
    return {
        "name": name,
        "embedding": embedding,
        "checkpoint": CHECKPOINT,
        "width": 8,
        "height": 6,
        "hash": hashlib.sha256(name.encode()).hexdigest(),
        "error": None if embedding is not None else "it cannot be decoded",
        **others,
    }


def write_table(path: Path, rows: Sequence[dict[str, Any]], embedding: Any = None, **options: Any) -> Path:
    """Write the rows, with embeddings of a type of pyarrow's; the default is a list of any length."""
    kinds = {"embedding": embedding or pa.list_(pa.float32()), "width": pa.int32(), "height": pa.int32()}
    names = ("name", "embedding", "checkpoint", "width", "height", "hash", "error")
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    pa.parquet.write_table(pa.Table.from_pylist(list(rows), schema), path, **options)
    return path


def embed(client: Client, names: Sequence[str], contents: Sequence[bytes]) -> list[dict[str, Any]]:
    """The rows of images, by a server."""
    matching = client.info().matching
    assert matching
    return [
        row(
            name,
            client.embed_image(content).tolist(),
            checkpoint=matching.checkpoint,
            hash=hashlib.sha256(content).hexdigest(),
        )
        for name, content in zip(names, contents, strict=True)
    ]
