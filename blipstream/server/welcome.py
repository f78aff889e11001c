# SPDX-License-Identifier: Apache-2.0
"""What is printed once the server is ready: where it listens, and how to send it a first image."""

import shlex
import sys
from pathlib import Path

from blipstream.files import SAMPLES
from blipstream.server.triton import TritonServer


def welcome(server: TritonServer, health_port: int) -> str:
    """The addresses, and commands that send a sample image to them."""
    health = f"http://{server.local_host}:{health_port}/healthz"
    sample = next(iter(sorted(SAMPLES.glob("*.jpg"))), Path("photo.jpg"))
    shown = _relative(sample)
    command = _relative(Path(sys.prefix, "bin", "blipstream"))
    lines = [
        f"serving on {server.http_url} and {server.grpc_url}, metrics on {server.metrics_url}, health on {health}",
        "try it:",
        f"  {shlex.quote(str(command))} caption {shlex.quote(str(shown))} --url {server.local_url}",
    ]
    if sample.exists():
        lines.append(f"  {curl(server.http_url, shown, sample.stat().st_size)}")
    return "\n".join([*lines, "Ctrl-C stops it"])


def _relative(path: Path) -> Path:
    """A path as seen from the working folder, if it lies within."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


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
