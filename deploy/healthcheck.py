# SPDX-License-Identifier: Apache-2.0
"""Tell whether a server answers: exit status 0 once a caption came, 1 if none came in time.

Triton says that it is ready even when every request fails, so this asks for what clients want. A server without a
captioner is asked for a match. `--level live` and
`--level ready` ask the supervisor instead: whether it runs, and whether the models are loaded.
"""

import json
import secrets
import time
import urllib.error
import urllib.request

import click
from PIL import Image

from blipstream.options import PROBE, PROBE_TEXT
from blipstream_client import BlipstreamError, Client, InvalidRequest, ModelNotReady, ServerOverloaded

RETRY_SECONDS = 0.5
DIRECT = urllib.request.build_opener(
    urllib.request.ProxyHandler({})
)  # the supervisor runs beside us, not behind a proxy


@click.command(context_settings={"show_default": True})
@click.option("--url", default="http://127.0.0.1:8000", help="The server's address.")
@click.option("--health-url", default="http://127.0.0.1:8003", help="The supervisor's address.")
@click.option(
    "--level", type=click.Choice(["live", "ready", "captioning"]), default="captioning", help="What to ask for."
)
@click.option("--timeout", default=10.0, help="Seconds to wait for the answer.")
def main(url: str, health_url: str, level: str, timeout: float) -> None:
    """Print the caption of one image, how well a text matches it, or what the supervisor says; or what is wrong."""
    if level != "captioning":
        click.echo(ask_supervisor(f"{health_url}/{level}z", timeout))
        return
    try:
        with Client(url, timeout=timeout) as client:
            click.echo(first_answer(client, time.monotonic() + timeout))
    except BlipstreamError as error:
        raise click.ClickException(str(error)) from error


def ask_supervisor(url: str, timeout: float) -> str:
    """The supervisor's sentence. Raises click.ClickException if something is wrong, or nobody answers."""
    try:
        with DIRECT.open(url, timeout=timeout) as answer:
            return str(json.load(answer)["why"])
    except urllib.error.HTTPError as error:
        with error:
            raise click.ClickException(str(json.load(error)["why"])) from error
    except (OSError, ValueError, LookupError) as error:
        raise click.ClickException(f"no supervisor answers at {url}: {error}") from error


def first_answer(client: Client, deadline: float) -> str:
    """What the server says of a random colour, which no cache on the way can have.

    A full queue is no fault, so this tries again until `deadline` (time.monotonic). Raises BlipstreamError, and
    click.ClickException if the caption is empty.
    """
    image = Image.new("RGB", (64, 64), tuple(secrets.token_bytes(3)))
    while True:
        try:
            return answer(client, image)
        except ServerOverloaded:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)


def answer(client: Client, image: Image.Image) -> str:
    """The caption of an image, or a match if the server has no captioner. Raises as `first_answer`."""
    try:
        try:
            text = client.caption(image, **PROBE).text
        except InvalidRequest:  # the operator has fixed one of these options
            text = client.caption(image).text
    except ModelNotReady as error:
        if error.transient or "match" not in client.info().models:
            raise
        return f"match: {client.match(image, [PROBE_TEXT]).best.match:.2f}"
    if not text.strip():
        raise click.ClickException("the caption is empty")
    return text


if __name__ == "__main__":
    main()
