# SPDX-License-Identifier: Apache-2.0
"""What is printed once the server is ready: where it listens, and how to send it a first image."""

import shlex
import sys
from pathlib import Path

from blipstream.server.installation import ROOT
from blipstream.server.triton import TritonServer

SAMPLES = Path("build/demo/samples")


def welcome(server: TritonServer, health_port: int) -> str:
    """The addresses, and commands that send a sample image to them."""
    health = f"http://{server.local_host}:{health_port}/healthz"
    sample = next(iter(sorted((ROOT / SAMPLES).glob("*.jpg"))), None)
    shown = SAMPLES / sample.name if sample else Path("photo.jpg")
    command = Path(sys.prefix, "bin", "blipstream")
    name = command.relative_to(ROOT) if command.is_relative_to(ROOT) else command
    lines = [
        f"serving on {server.http_url} and {server.grpc_url}, metrics on {server.metrics_url}, health on {health}",
        "try it:",
        f"  {shlex.quote(str(name))} caption {shown} --url {server.local_url}",
    ]
    if sample:
        lines.append(f"  {curl(server.http_url, shown, sample.stat().st_size)}")
    return "\n".join([*lines, "Ctrl-C stops it"])


def curl(url: str, image: Path, size: int) -> str:
    """A shell line that sends an image of `size` bytes as it is: JSON, the image's length in 4 bytes, the image."""
    header = (
        '{"inputs":[{"name":"image","shape":[1,1],"datatype":"BYTES",'
        f'"parameters":{{"binary_data_size":{4 + size}}}}}]}}'
    )
    length = "".join(f"\\{byte:03o}" for byte in size.to_bytes(4, "little"))
    return (
        f"(printf '{header}{length}'; cat {shlex.quote(str(image))}) | curl -s --data-binary @- "
        f"-H 'Content-Type: application/octet-stream' -H 'Inference-Header-Content-Length: {len(header)}' "
        f"{url}/v2/models/caption/infer"
    )
