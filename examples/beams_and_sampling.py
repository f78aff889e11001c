# SPDX-License-Identifier: Apache-2.0
"""Options of one image: python examples/beams_and_sampling.py IMAGE."""

import os
import sys

from blipstream_client import BlipstreamError, Caption, Client

URL = os.environ.get("BLIPSTREAM_URL", "grpc://localhost:8001")


def show(title: str, best: Caption) -> None:
    """Print a caption and its alternatives, each with its score."""
    print(title)
    for caption in (best, *best.alternatives):
        print(f"  {caption.score:7.3f}  {caption.text}")


def main(image: str) -> None:
    """Ask for the same image in four ways."""
    with Client(URL) as client:
        show("greedy", client.caption(image))
        show("3 beams", client.caption(image, num_beams=3, num_captions=3))
        show("sampled", client.caption(image, do_sample=True, temperature=1.5, top_p=0.95, num_captions=3, seed=7))
        show("with a prompt", client.caption(image, prompt="two", max_tokens=12))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/beams_and_sampling.py IMAGE")
    try:
        main(sys.argv[1])
    except BlipstreamError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
