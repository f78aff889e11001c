# SPDX-License-Identifier: Apache-2.0
"""Client and AsyncClient in the same way."""

import asyncio
from collections.abc import Sequence
from typing import Any

from blipstream_client import AsyncClient, Caption, Client, ImageLike


def texts(kind: str, url: str, images: Sequence[ImageLike], max_in_flight: int = 8, **arguments: Any) -> list[Any]:
    """For each image, its caption's text or the type of its error, from either kind of client."""
    many = {"max_in_flight": max_in_flight}

    async def collect() -> list[Any]:
        async with AsyncClient(url, **arguments) as client:
            return [result async for result in client.caption_many(images, **many)]  # type: ignore[arg-type]

    if kind == "async":
        results = asyncio.run(collect())
    else:
        with Client(url, **arguments) as client:
            results = list(client.caption_many(images, **many))  # type: ignore[arg-type]
    return [result.text if isinstance(result, Caption) else type(result) for result in results]
