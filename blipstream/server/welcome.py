# SPDX-License-Identifier: Apache-2.0
"""What is printed once the server is ready: where it listens, and how to send it a first image."""

import shlex
from pathlib import Path

from blipstream.command_line import command, fill, program, relative
from blipstream.files import DEMO_NAME, SAMPLES
from blipstream.server.arguments import served_checkpoint
from blipstream.server.network import LOOPBACK
from blipstream.server.served_repository import captions, matches
from blipstream.server.triton import TritonServer

PHOTOGRAPHS = "Salesforce/blip-image-captioning-base"
BY_DEFAULT = (LOOPBACK, TritonServer.grpc_port)  # where `blipstream caption` asks


def welcome(server: TritonServer, health_port: int) -> str:
    """The addresses, commands that send a sample image to them, and what the demo checkpoint does not know."""
    sample = next(iter(sorted(SAMPLES.glob("*.jpg"))), Path("photo.jpg"))
    shown = relative(sample)
    asks_elsewhere = server.tls or (server.local_host, server.grpc_port) != BY_DEFAULT
    url = f" --url {server.local_url}" if asks_elsewhere else ""
    image = shlex.quote(str(shown))
    has_captions, has_matches = (has(server.repository, server.config) for has in (captions, matches))
    lines = [
        f"serving on {server.http_url} and {server.grpc_url}",
        f"metrics on {server.metrics_url}",
        f"health on http://{server.local_host}:{health_port}/healthz",
        "try it:",
        *([f"  {curl(server.http_url, shown)}"] if sample.exists() and has_captions else []),
        *([f"  {program()} caption {image}{url}"] if has_captions else []),
        *([f"  {program()} match {image} 'two whales' 'a cat'{url}"] if has_matches else []),
    ]
    name, _, _ = (served_checkpoint(server.repository) or "").partition("@")
    if name == DEMO_NAME:
        lines.append(
            fill("This is the demo checkpoint, which knows scenes of emoji and nothing else. Photographs need:")
        )
        lines.append(f"  {command('serve', PHOTOGRAPHS)}")
    return "\n".join([*lines, "Ctrl-C stops it"])


def curl(url: str, image: Path) -> str:
    """A shell line that sends an image as JSON."""
    return (
        f'printf \'{{"image": "data:image/jpeg;base64,%s"}}\' "$(base64 < {shlex.quote(str(image))} | tr -d "\\n")" | '
        f"curl -sS -H 'Content-Type: application/json' -d @- {url}/v2/models/caption/generate"
    )
