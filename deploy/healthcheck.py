# SPDX-License-Identifier: Apache-2.0
"""Whether a server captions: exit status 0 once a caption came, 1 if none did in time.

Triton says that it is ready even when every request fails, so ask for what clients want. `--level live` and `ready` ask
its supervisor instead: whether that runs, and whether the models are loaded.
"""

import json
import secrets
import time
import urllib.error
import urllib.request

import click
from PIL import Image

from blipstream_client import BlipstreamError, Caption, Client, ServerOverloaded

RETRY_SECONDS = 0.5


@click.command(context_settings={"show_default": True})
@click.option("--url", default="http://127.0.0.1:8000", help="The server's address.")
@click.option("--health-url", default="http://127.0.0.1:8003", help="The supervisor's address.")
@click.option("--level", type=click.Choice(["live", "ready", "captioning"]), default="captioning", help="What to ask.")
@click.option("--timeout", default=10.0, help="Seconds for the answer to come.")
def main(url: str, health_url: str, level: str, timeout: float) -> None:
    """Print the caption of one image, or what the supervisor says; or what is wrong."""
    if level != "captioning":
        click.echo(ask_supervisor(f"{health_url}/{level}z", timeout))
        return
    try:
        with Client(url, timeout=timeout) as client:
            click.echo(first_caption(client, time.monotonic() + timeout).text)
    except BlipstreamError as error:
        raise click.ClickException(str(error)) from error


def ask_supervisor(url: str, timeout: float) -> str:
    """Why all is well, in the supervisor's words."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:  # noqa: S310
            return str(json.load(answer)["why"])
    except urllib.error.HTTPError as error:
        with error:
            raise click.ClickException(str(json.load(error)["why"])) from error
    except (OSError, ValueError, LookupError) as error:
        raise click.ClickException(f"no supervisor answers at {url}: {error}") from error


def first_caption(client: Client, deadline: float) -> Caption:
    """The caption of a colour that was hardly asked for before: no cache on the way has its answer.

    A full queue is work in progress, so try again until the deadline.
    """
    image = Image.new("RGB", (64, 64), tuple(secrets.token_bytes(3)))
    while True:
        try:
            return client.caption(image, max_tokens=1)
        except ServerOverloaded:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)


if __name__ == "__main__":
    main()
