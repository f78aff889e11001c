# SPDX-License-Identifier: Apache-2.0
"""Caption many images with asyncio: python examples/many_async.py IMAGE..."""

import asyncio
import os
import sys

from blipstream_client import AsyncClient, BlipstreamError

URL = os.environ.get("BLIPSTREAM_URL", "grpc://localhost:8001")


async def main(images: list[str]) -> None:
    """Ask for all images at once, and print each caption as soon as it comes."""
    async with AsyncClient(URL) as client:

        async def caption(image: str) -> str:
            try:
                return f"{image}: {(await client.caption(image)).text}"
            except BlipstreamError as error:
                return f"{image} failed: {error}"

        for finished in asyncio.as_completed(map(caption, images)):
            print(await finished)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/many_async.py IMAGE...")
    try:
        asyncio.run(main(sys.argv[1:]))
    except BlipstreamError as error:
        sys.exit(f"Error: {error}")
