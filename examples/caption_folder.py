# SPDX-License-Identifier: Apache-2.0
"""Caption every file in a folder: python examples/caption_folder.py FOLDER."""

import os
import sys
from pathlib import Path

from blipstream_client import BlipstreamError, Client, ServerUnreachable

URL = os.environ.get("BLIPSTREAM_URL", "grpc://localhost:8001")


def main(folder: Path) -> None:
    """Print a line for each file, in order. What is no image gets a line, too."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if not files:
        sys.exit(f"Error: {folder} has no files")
    with Client(URL) as client:
        for file, result in zip(files, client.caption_many(files), strict=True):
            if isinstance(result, ServerUnreachable):
                raise result  # no other image would get an answer
            if isinstance(result, BlipstreamError):
                print(f"{file.name} failed: {result}")
            else:
                print(f"{file.name}: {result.text}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/caption_folder.py FOLDER")
    try:
        main(Path(sys.argv[1]))
    except (BlipstreamError, OSError) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
