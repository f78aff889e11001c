# SPDX-License-Identifier: Apache-2.0
"""Caption many images with asyncio: python examples/many_async.py IMAGE..."""

import asyncio
import os
import sys

from blipstream_client import AsyncClient, BlipstreamError, Caption, ServerUnreachable

URL = os.environ.get("BLIPSTREAM_URL", "grpc://localhost:8001")


async def main(images: list[str]) -> None:
    """Ask for all images at once, and print each caption as soon as it comes."""
    async with AsyncClient(URL) as client:

        async def caption(image: str) -> tuple[str, Caption | BlipstreamError]:
            try:
                return image, await client.caption(image)
            except BlipstreamError as error:
                return image, error

        for finished in asyncio.as_completed(map(caption, images)):
            image, result = await finished
            if isinstance(result, ServerUnreachable):
                raise result  # no other image would get an answer
            if isinstance(result, BlipstreamError):
                print(f"{image} failed: {result}")
            else:
                print(f"{image}: {result.text}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/many_async.py IMAGE...")
    try:
        asyncio.run(main(sys.argv[1:]))
    except BlipstreamError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
