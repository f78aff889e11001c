# SPDX-License-Identifier: Apache-2.0
"""Embeddings of images: `blipstream embed`."""

from collections.abc import Sequence
from contextlib import suppress

from blipstream_client._client import Client
from blipstream_client._exceptions import InvalidImage, ServerError
from blipstream_client._images import ImageLike
from blipstream_client._matches import EMBED_IMAGE
from blipstream_client._options import Options, option_tensors
from blipstream_client.bulk.rows import INT, TEXT, VECTOR, Row
from blipstream_client.bulk.summary import Summary
from blipstream_client.bulk.task import PLAIN, Task
from blipstream_client.bulk.transport import OtherServed, Served

COLUMNS = {
    "name": TEXT,
    "embedding": VECTOR,  # of length 1
    "checkpoint": TEXT,
    "width": INT,  # pixels, as stored
    "height": INT,
    "hash": TEXT,  # SHA-256 of the image's bytes
    "error": TEXT,
}


class EmbedTask(Task[Summary]):
    """An embedding for each image."""

    verb = "embed"
    result = "an embedding"
    summary = Summary
    models = (EMBED_IMAGE,)
    columns = COLUMNS
    is_matching = True

    def __init__(self, resize_mode: str | None) -> None:
        self.options: Options = {"resize_mode": resize_mode}
        option_tensors(self.options)  # raises InvalidRequest for a bad value
        self._resize_mode = resize_mode

    def check(self, client: Client, served: Served) -> None:  # noqa: ARG002
        """Embed a plain image. Raises InvalidRequest."""
        with suppress(InvalidImage, ServerError, OtherServed):  # the images meet them, and have their own answer
            self.ask(client, PLAIN, ())

    def ask(self, client: Client, image: ImageLike, texts: Sequence[str]) -> Sequence[Row]:  # noqa: ARG002
        """The embedding."""
        return [{"embedding": client.embed_image(image, resize_mode=self._resize_mode)}]
