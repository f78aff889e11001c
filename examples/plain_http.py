# SPDX-License-Identifier: Apache-2.0
"""Ask over HTTP with the standard library alone: python examples/plain_http.py IMAGE [HOST:PORT].

The image travels as it is: a JSON header, the image's length in four bytes, the image.
"""

import json
import sys
from http.client import HTTPConnection, HTTPException
from pathlib import Path


def main(image: Path, address: str = "localhost:8000") -> None:
    """Print the caption, or the server's sentence about what is wrong."""
    content = image.read_bytes()
    element = len(content).to_bytes(4, "little") + content
    inputs = [
        {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(element)}},
        {"name": "num_beams", "shape": [1, 1], "datatype": "INT32", "data": [3]},
    ]
    header = json.dumps({"inputs": inputs}).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(header)),
    }
    connection = HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=60)
    try:
        connection.request("POST", "/v2/models/caption/infer", header + element, headers)
        answer = json.load(connection.getresponse())
    except OSError as error:
        sys.exit(f"Error: {address} does not answer: {error}")
    except HTTPException:
        sys.exit(f"Error: {address} does not answer in HTTP: is it the port for gRPC?")
    finally:
        connection.close()
    if "error" in answer:
        sys.exit(answer["error"])
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    print(outputs["caption"][0])


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python examples/plain_http.py IMAGE [HOST:PORT]")
    try:
        main(Path(sys.argv[1]), *sys.argv[2:])
    except (OSError, HTTPException, ValueError) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
