# SPDX-License-Identifier: Apache-2.0
"""Whether a server captions: exit status 0 once a caption came, 1 if none did in time.

Triton says that it is ready even when every request fails, so ask for what clients want.
"""

import secrets
import time

import click
from PIL import Image

from blipstream_client import BlipstreamError, Caption, Client, ServerOverloaded

RETRY_SECONDS = 0.5


@click.command(context_settings={"show_default": True})
@click.option("--url", default="grpc://127.0.0.1:8001", help="The server's address.")
@click.option("--timeout", default=10.0, help="Seconds for the caption to come.")
def main(url: str, timeout: float) -> None:
    """Print the caption of one image, or what is wrong."""
    try:
        with Client(url, timeout=timeout) as client:
            click.echo(first_caption(client, time.monotonic() + timeout).text)
    except BlipstreamError as error:
        raise click.ClickException(str(error)) from error


def first_caption(client: Client, deadline: float) -> Caption:
    """The caption of a colour that was hardly asked for before: the response cache would answer without a model.

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
