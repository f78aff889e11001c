# SPDX-License-Identifier: Apache-2.0
"""Print a caption as it grows: python examples/stream.py IMAGE."""

import os
import sys

from blipstream_client import Client

URL = os.environ.get("BLIPSTREAM_URL", "grpc://localhost:8001")


def main(image: str) -> None:
    """Print each new text at once, then why the caption ended."""
    with Client(URL) as client:
        for piece in client.stream(image):
            print(piece.text, end="", flush=True)
            if piece.caption:  # the last piece has the whole caption
                print(f" ({piece.caption.num_tokens} tokens, {piece.caption.finish_reason})")


if __name__ == "__main__":
    main(sys.argv[1])
