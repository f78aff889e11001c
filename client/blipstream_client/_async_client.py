# SPDX-License-Identifier: Apache-2.0
"""The client that does not block: the same for asyncio."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Self, Unpack

from blipstream_client._base import DEFAULT_MAX_IN_FLIGHT, BaseClient, checked_many, without_frames
from blipstream_client._contract import Caption, Options, Piece, Tensors, option_tensors, parse_caption
from blipstream_client._exceptions import BlipstreamError, client_closed, named
from blipstream_client._images import ImageLike
from blipstream_client._info import ServerInfo, parse_info, steps
from blipstream_client._lines import AsyncLine
from blipstream_client._pieces import Pieces
from blipstream_client._questions import GetConfig, GetServer
from blipstream_client._transport import Deadline


class AsyncClient(BaseClient):
    """A connection to a Blipstream server, or to several, which any number of tasks of one event loop may share."""

    def _open(self) -> None:
        self._line: AsyncLine | None = None  # made where the event loop runs

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Hang up. Requests that other tasks wait for end with RequestCancelled."""
        self._hang_up()
        if self._line is not None:
            await self._line.aclose()

    async def is_ready(self) -> bool:
        """Whether a server answers and its model can serve."""
        return await self._opened().is_ready(self._model, self._deadline(None))

    async def info(self) -> ServerInfo:
        """Which checkpoint the server has, what it runs on, and what may be asked of it. Raises BlipstreamError."""
        deadline, line = self._deadline(None), self._opened()
        config = await line.ask(GetConfig(self._model), deadline)
        parts = {name: await line.ask(GetConfig(name), deadline) for name in steps(config)}
        return parse_info(await line.ask(GetServer(), deadline), config, parts)

    async def caption(self, image: ImageLike, *, timeout: float | None = None, **options: Unpack[Options]) -> Caption:
        """The caption of one image: a path, a URL, encoded bytes, a binary file, a PIL image or a uint8 array.

        An array has shape [H, W, 3], [H, W, 4] or [H, W]. `timeout` is the client's if None; for the options see
        `Options`. Raises BlipstreamError.
        """
        return await self._caption(image, option_tensors(options), self._deadline(timeout))

    def stream(
        self, image: ImageLike, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> AsyncGenerator[Piece, None]:
        """The caption of one image piece by piece, as `Client.stream` has it, for `async for`.

        `contextlib.aclosing` makes sure of the hanging up where the generator is kept. Raises BlipstreamError.
        """
        tensors = option_tensors(options)
        self._deadline(timeout)  # refuses what is no time
        return self._stream(image, tensors, timeout)

    def caption_many(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Caption | BlipstreamError, None]:
        """For each image, in order, its caption or the error it met; one image's error ends no other's.

        At most `max_in_flight` images are taken ahead of the one whose result is awaited. `timeout` is for each
        image. Raises InvalidRequest for wrong options, before any image is taken.
        """
        tensors = checked_many(max_in_flight, options)
        self._deadline(timeout)  # refuses what is no time
        return self._caption_many(images, max_in_flight, tensors, timeout)

    async def _caption_many(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        max_in_flight: int,
        options: Tensors,
        timeout: float | None,
    ) -> AsyncGenerator[Caption | BlipstreamError, None]:
        pending: deque[asyncio.Task[Caption | BlipstreamError]] = deque()
        try:
            async for image in _each(images):
                pending.append(asyncio.create_task(self._attempt(image, options, timeout)))
                while pending and (pending[0].done() or len(pending) == max_in_flight):
                    yield await pending.popleft()
            while pending:
                yield await pending.popleft()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _stream(self, image: ImageLike, options: Tensors, timeout: float | None) -> AsyncGenerator[Piece, None]:
        line, deadline, pieces = self._opened(), self._deadline(timeout), Pieces()
        question = self._streamed(await asyncio.to_thread(self._encoded, image, deadline), options)
        with named(question.request_id), pieces.complete():
            async with aclosing(line.stream(question, deadline)) as answers:
                async for answer in answers:
                    yield pieces.read(answer)

    async def _attempt(self, image: ImageLike, options: Tensors, timeout: float | None) -> Caption | BlipstreamError:
        try:
            return await self._caption(image, options, self._deadline(timeout))
        except BlipstreamError as exc:
            return without_frames(exc)

    async def _caption(self, image: ImageLike, options: Tensors, deadline: Deadline) -> Caption:
        line = self._opened()
        question = self._question(await asyncio.to_thread(self._encoded, image, deadline), options)
        with named(question.request_id):
            return parse_caption(await line.ask(question, deadline))

    def _opened(self) -> AsyncLine:
        if self._closed.is_set():
            raise client_closed()
        if self._line is None:
            self._line = AsyncLine(self._route)
        return self._line


async def _each(images: Iterable[ImageLike] | AsyncIterable[ImageLike]) -> AsyncIterator[ImageLike]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image
