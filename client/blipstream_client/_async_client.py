# SPDX-License-Identifier: Apache-2.0
"""The client for asyncio: images in, captions, matches and embeddings out."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, Unpack

from blipstream_client._arguments import checks_names
from blipstream_client._balancing import AsyncBalancedTransport
from blipstream_client._base import (
    DEFAULT_MAX_IN_FLIGHT,
    EXPLAIN_MATCH_MODEL,
    EXPLAIN_MODEL,
    LOOK_SECONDS,
    MODELS,
    RERANK_MODEL,
    BaseClient,
    checked_many,
)
from blipstream_client._captions import Caption, Piece, StreamParser, parse_caption
from blipstream_client._deadline import Deadline
from blipstream_client._errors import about, client_closed, model_missing, with_request_id, without_frames
from blipstream_client._exceptions import BlipstreamError, ModelNotReady
from blipstream_client._explain_options import ExplainOptions, explain_match_tensors, explain_tensors
from blipstream_client._explanation import Explanation, MatchExplanation, parse_explanation, parse_match_explanation
from blipstream_client._images import ImageLike
from blipstream_client._info import (
    Adapter,
    ServerInfo,
    adapters_of,
    adapters_request,
    parse_info,
    resize_mode_of,
    steps,
    takes_adapters,
)
from blipstream_client._matches import (
    EMBED_IMAGE,
    EMBED_TEXT,
    MATCH,
    Embedding,
    Matches,
    listed,
    parse_embedding,
    parse_matches,
    text_tensors,
)
from blipstream_client._options import Options, option_tensors
from blipstream_client._requests import ConfigRequest, InferRequest, MetadataRequest
from blipstream_client._rerank_options import ALL_OPTIONS, RerankOptions, check_no_rerank
from blipstream_client._tensors import Tensors, image_tensor


class AsyncClient(BaseClient):
    """A client of one or several Blipstream servers. Any number of tasks of one event loop may share it."""

    def _open(self) -> None:
        self._transport: AsyncBalancedTransport | None = None  # made when the event loop runs

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @checks_names
    async def aclose(self) -> None:
        """Hang up. Requests of other tasks end with RequestCancelled."""
        self._hang_up()
        if self._transport is not None:
            await self._transport.aclose()

    @checks_names
    async def is_ready(self) -> bool:
        """Whether a server answers and its model can serve."""
        return await self._opened().is_ready(self._model, self._deadline(None))

    @checks_names
    async def info(self) -> ServerInfo:
        """The server's version and checkpoint, its runtimes, options and adapters. Raises BlipstreamError."""
        deadline, transport = self._deadline(None), self._opened()
        served: list[str] = []
        try:
            config = await transport.send(ConfigRequest(self._model), deadline)
        except ModelNotReady as exc:
            served = await _served(transport, deadline)
            config = await transport.send(ConfigRequest(self._instead(exc, served)), deadline)
        served = served or await _served(transport, deadline)
        matching: Mapping[str, Any] | None = None
        if MATCH in served:
            matching = await transport.send(ConfigRequest(MATCH), deadline)
        reranking: Mapping[str, Any] | None = None
        if RERANK_MODEL in served:
            reranking = await transport.send(ConfigRequest(RERANK_MODEL), deadline)
        names = dict.fromkeys([*steps(config), *(steps(matching) if matching else ())])
        parts = {name: await transport.send(ConfigRequest(name), deadline) for name in names}
        server = await transport.send(MetadataRequest(), deadline)
        adapters: tuple[Adapter, ...] = ()
        if takes_adapters(config):
            adapters = adapters_of(await transport.send(adapters_request(), deadline))
        return parse_info(server, config, parts, served, matching, reranking, adapters)

    async def caption(
        self, image: ImageLike, *, timeout: float | None = None, **options: Unpack[RerankOptions]
    ) -> Caption:
        """The caption of one image: a path, a URL, encoded bytes, a binary file, a PIL image or a uint8 array.

        An array has shape [H, W, 3], [H, W, 4] or [H, W]. `timeout` is in seconds; None means the client's. The options
        are those of `RerankOptions`; with `rerank` or `min_match`, the server needs a retrieval checkpoint. If no
        caption matches the image as well as `min_match` asks, the text is empty, and `why_empty` says the reason.
        Raises BlipstreamError.
        """
        tensors, deadline = option_tensors(options, ALL_OPTIONS), self._deadline(timeout)
        with about(image):
            return await self._caption(image, tensors, deadline)

    async def explain(
        self,
        image: ImageLike,
        caption: str | Caption | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[ExplainOptions],
    ) -> Explanation:
        """Where the model looks for each word: of the caption that it finds for the image, or of a given `caption`.

        The options are those of `ExplainOptions`; beside a given caption, none says how to find one. Raises
        BlipstreamError.
        """
        tensors, deadline = explain_tensors(options, caption), self._deadline(timeout)
        transport = self._opened()
        with about(image):
            encoded = await asyncio.to_thread(self._encoded, image, deadline)
            request = self._explain_request(encoded, tensors)
            with with_request_id(request.request_id):
                outputs = await self._send(transport, request, deadline)
                resize_mode = options.get("resize_mode")
                mode = resize_mode or await self._default_resize_mode(transport, EXPLAIN_MODEL, deadline)
                return parse_explanation(outputs, encoded, mode, options.get("caption_index"))

    @checks_names
    async def match(
        self,
        image: ImageLike,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        truncate: bool | None = None,
        resize_mode: str | None = None,
        timeout: float | None = None,
    ) -> Matches:
        """How well each of the texts, at most 1,000, matches an image, in their order.

        The image is as for `caption`. The texts may come from any iterable, an asynchronous one, too. A text that is
        too long for the model is refused, or cut with `truncate`. `resize_mode` is as in `Options`, and `timeout` is in
        seconds. Raises BlipstreamError, ModelNotReady if the server has no retrieval checkpoint.
        """
        given = [text async for text in texts] if isinstance(texts, AsyncIterable) else listed(texts)
        inputs = text_tensors(given, truncate) | option_tensors({"resize_mode": resize_mode})
        deadline = self._deadline(timeout)
        with about(image):
            inputs["image"] = image_tensor(await asyncio.to_thread(self._encoded, image, deadline))
            return parse_matches(given, await self._ask(MATCH, inputs, deadline))

    @checks_names
    async def explain_match(
        self,
        image: ImageLike,
        text: str,
        *,
        layer: int | None = None,
        head: int | None = None,
        resize_mode: str | None = None,
        timeout: float | None = None,
    ) -> MatchExplanation:
        """Where in the image each word of a text finds what it says, and how well the text matches.

        The image is as for `caption`. `layer` and `head` are those of the text encoder; None is the mean of all.
        `resize_mode` is as in `Options`, and `timeout` is in seconds. Raises BlipstreamError, ModelNotReady if the
        server has no retrieval checkpoint.
        """
        inputs, deadline = explain_match_tensors(text, layer, head, resize_mode), self._deadline(timeout)
        transport = self._opened()
        with about(image):
            encoded = await asyncio.to_thread(self._encoded, image, deadline)
            outputs = await self._ask(EXPLAIN_MATCH_MODEL, {"image": image_tensor(encoded), **inputs}, deadline)
            mode = resize_mode or await self._default_resize_mode(transport, EXPLAIN_MATCH_MODEL, deadline)
            return parse_match_explanation(outputs, encoded, mode)

    @checks_names
    async def embed_image(
        self, image: ImageLike, *, resize_mode: str | None = None, timeout: float | None = None
    ) -> Embedding:
        """The embedding of an image: f32 [256], of length 1. Its product with that of a text is their similarity.

        The image is as for `caption`. Raises BlipstreamError.
        """
        inputs = option_tensors({"resize_mode": resize_mode})
        deadline = self._deadline(timeout)
        with about(image):
            inputs["image"] = image_tensor(await asyncio.to_thread(self._encoded, image, deadline))
            return parse_embedding(await self._ask(EMBED_IMAGE, inputs, deadline))

    @checks_names
    async def embed_text(self, text: str, *, truncate: bool | None = None, timeout: float | None = None) -> Embedding:
        """The embedding of a text: f32 [256], of length 1. Raises BlipstreamError."""
        return parse_embedding(await self._ask(EMBED_TEXT, text_tensors([text], truncate), self._deadline(timeout)))

    def stream(
        self, image: ImageLike, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> AsyncGenerator[Piece, None]:
        """The caption of one image, piece by piece, for `async for`. It works as `Client.stream` does.

        If you keep the generator, wrap it in `contextlib.aclosing`. Raises BlipstreamError.
        """
        check_no_rerank(options)
        tensors = option_tensors(options)
        self._deadline(timeout)  # raises InvalidRequest for a bad value
        return self._stream(image, tensors, timeout)

    def caption_many(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        timeout: float | None = None,
        **options: Unpack[RerankOptions],
    ) -> AsyncGenerator[Caption | BlipstreamError, None]:
        """For each image, in order, its caption or its error. One image's error does not affect the others.

        At most `max_in_flight` images are taken ahead of the one whose result is awaited. `timeout` is in seconds for
        each image. Raises InvalidRequest for wrong options or a single image, before it takes any.
        """
        tensors = checked_many(images, max_in_flight, options, ("__iter__", "__aiter__"))
        self._deadline(timeout)  # raises InvalidRequest for a bad value
        return self._caption_many(images, max_in_flight, tensors, timeout)

    async def _default_resize_mode(self, transport: AsyncBalancedTransport, model: str, deadline: Deadline) -> str:
        if self._resize_mode is None:
            self._resize_mode = resize_mode_of(await transport.send(ConfigRequest(model), deadline))
        return self._resize_mode

    async def _caption_many(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        max_in_flight: int,
        options: Tensors,
        timeout: float | None,
    ) -> AsyncGenerator[Caption | BlipstreamError, None]:
        pending: deque[asyncio.Task[Caption | BlipstreamError]] = deque()
        try:
            number = 0
            async for image in _each(images):
                number += 1
                pending.append(asyncio.create_task(self._attempt(image, number, options, timeout)))
                while pending and (pending[0].done() or len(pending) == max_in_flight):
                    yield await pending.popleft()
            while pending:
                yield await pending.popleft()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _stream(self, image: ImageLike, options: Tensors, timeout: float | None) -> AsyncGenerator[Piece, None]:
        transport, deadline, parser = self._opened(), self._deadline(timeout), StreamParser()
        with about(image):
            request = self._stream_request(await asyncio.to_thread(self._encoded, image, deadline), options)
            with with_request_id(request.request_id), parser.completed():
                async with aclosing(transport.stream(request, deadline)) as responses:
                    async for response in responses:
                        yield parser.piece(response)

    async def _attempt(
        self, image: ImageLike, number: int, options: Tensors, timeout: float | None
    ) -> Caption | BlipstreamError:
        try:
            with about(image, number):
                return await self._caption(image, options, self._deadline(timeout))
        except BlipstreamError as exc:
            return without_frames(exc)

    async def _caption(self, image: ImageLike, options: Tensors, deadline: Deadline) -> Caption:
        transport = self._opened()
        request = self._infer_request(await asyncio.to_thread(self._encoded, image, deadline), options)
        with with_request_id(request.request_id):
            return parse_caption(await self._send(transport, request, deadline), options)

    async def _ask(self, model: str, inputs: Tensors, deadline: Deadline) -> Tensors:
        transport = self._opened()
        request = InferRequest(model, inputs)
        with with_request_id(request.request_id):
            return await self._send(transport, request, deadline)

    async def _send(self, transport: AsyncBalancedTransport, request: InferRequest, deadline: Deadline) -> Tensors:
        try:
            return await transport.send(request, deadline)
        except ModelNotReady as exc:
            if exc.transient:
                raise
            soon = deadline.at_most(LOOK_SECONDS)
            served = await _served(transport, soon)
            raise model_missing(exc, request.model, [] if soon.is_over() else served) from exc

    def _opened(self) -> AsyncBalancedTransport:
        if self._closed.is_set():
            raise client_closed()
        if self._transport is None:
            self._transport = AsyncBalancedTransport(self._addresses, self._settings, self._policy)
        return self._transport


async def _served(transport: AsyncBalancedTransport, deadline: Deadline) -> list[str]:
    """The models for clients that the server has."""
    return [name for name in MODELS if await transport.is_ready(name, deadline)]


async def _each(images: Iterable[ImageLike] | AsyncIterable[ImageLike]) -> AsyncIterator[ImageLike]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image
