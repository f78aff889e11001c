# SPDX-License-Identifier: Apache-2.0
"""Print a caption as it grows: python examples/stream.py IMAGE."""

import os
import sys

from blipstream_client import BlipstreamError, Client

URL = os.environ.get("BLIPSTREAM_URL", "grpc://localhost:8001")


def main(image: str) -> None:
    """Print each new text at once, then why the caption ended."""
    with Client(URL) as client:
        for piece in client.stream(image):
            print(piece.text, end="", flush=True)
            if piece.caption:  # the last piece has the whole caption
                print(f" ({piece.caption.num_tokens} tokens, {piece.caption.finish_reason})")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/stream.py IMAGE")
    try:
        main(sys.argv[1])
    except BlipstreamError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
