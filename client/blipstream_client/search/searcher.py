# SPDX-License-Identifier: Apache-2.0
"""A client that searches: the server embeds the query, and tells how well a text matches the nearest images."""

import hashlib
import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from blipstream_client._client import Client
from blipstream_client._exceptions import AccessDenied, InvalidImage, InvalidRequest, ServerError
from blipstream_client._info import checkpoint_of, retrieval_checkpoint_of
from blipstream_client._matches import EMBED_TEXT, Embedding
from blipstream_client._requests import ConfigRequest, MetadataRequest
from blipstream_client._text import LONGEST_SENTENCE, excerpt, quoted
from blipstream_client.search.images import Image, images
from blipstream_client.search.nearest import Hit, nearest
from blipstream_client.search.table import Table

MAX_IN_FLIGHT = 16  # images that are read and matched at once
LARGEST_DIFFERENCE = 0.1  # between a similarity by the table and by the server: int8 explains less


class Searcher(Client):
    """Searches in tables of embeddings."""

    def nearest(self, table: Table, query: Embedding, k: int) -> list[Hit]:
        """The k images whose embeddings are nearest to the query's [D]. Raises BlipstreamError."""
        checkpoint = None
        with suppress(AccessDenied):
            config = self._transport.send(ConfigRequest(EMBED_TEXT), self._deadline(None))
            server = self._transport.send(MetadataRequest(), self._deadline(None))
            checkpoint = retrieval_checkpoint_of(config) or checkpoint_of(server)
        return nearest(table.blocks(checkpoint, len(query)), query, k)

    def reranked(
        self, hits: Sequence[Hit], text: str, *, truncate: bool | None = None, resize_mode: str | None = None
    ) -> list[Hit]:
        """The hits by the logit of their match with the text plus their similarity, as BLIP's authors rank them.

        Those whose images cannot be read or matched come last. Raises BlipstreamError, also if that holds for all.
        """
        matched = self._matched(hits, text, truncate, resize_mode)
        failed = [hit for hit in matched if hit.error is not None]
        if hits and len(failed) == len(matched):
            raise InvalidRequest(
                f"None of the nearest images can be matched with the text; the first is {failed[0].name}:"
                f" {excerpt(failed[0].error, LONGEST_SENTENCE)} (relative names hold in the folder where"
                " `blipstream embed` ran; --no-rerank needs no images)"
            )
        return sorted(matched, key=_score, reverse=True)

    def read(self, hit: Hit, image: Image) -> bytes:
        """The bytes of a hit's image, given as `images` finds it. Raises InvalidImage, also if it has changed."""
        if isinstance(image, InvalidImage):
            raise image
        content = self._read(image, self._deadline(None))
        # a table may come from a stranger, and name any file of this machine: only who has it knows its hash
        if hashlib.sha256(content).hexdigest() != hit.hash:
            raise InvalidImage("It has changed since it was embedded")
        return content

    def _matched(self, hits: Sequence[Hit], text: str, truncate: bool | None, resize_mode: str | None) -> list[Hit]:
        """The hits in the same order, each with its match or its error."""
        by_name = {hit.name: hit for hit in hits}
        executor = ThreadPoolExecutor(MAX_IN_FLIGHT, thread_name_prefix="blipstream")
        pending: deque[Future[Hit]] = deque()
        done: dict[str, Hit] = {}
        try:
            for name, image in images(by_name):
                if len(pending) == MAX_IN_FLIGHT:  # only so many images are in memory
                    hit = pending.popleft().result()
                    done[hit.name] = hit
                pending.append(executor.submit(self._match, by_name[name], image, text, truncate, resize_mode))
            done |= {hit.name: hit for hit in (each.result() for each in pending)}
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
        return [done[name] for name in by_name]

    def _match(self, hit: Hit, image: Image, text: str, truncate: bool | None, resize_mode: str | None) -> Hit:
        try:
            content = self.read(hit, image)
            (found,) = self.match(content, [text], truncate=truncate, resize_mode=resize_mode)
        except (InvalidRequest, ServerError) as exc:
            return replace(hit, error=str(exc))
        if abs(found.similarity - hit.similarity) > LARGEST_DIFFERENCE:
            raise InvalidRequest(
                f"The similarity of {quoted(hit.name)} is {hit.similarity:.2f} by its embedding in the table, and"
                f" {found.similarity:.2f} by this server: if it has the same retrieval checkpoint, give the"
                " --resize-mode that the images were embedded with, else embed them again"
            )
        return replace(hit, match=found.match, logit=found.logit)


def _score(hit: Hit) -> float:
    return -math.inf if hit.logit is None else hit.logit + hit.similarity
