# SPDX-License-Identifier: Apache-2.0
"""The client that waits: images in, captions out."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from types import TracebackType
from typing import Self, Unpack

from blipstream_client._base import DEFAULT_MAX_IN_FLIGHT, BaseClient, checked_many, without_frames
from blipstream_client._contract import Caption, Options, Piece, Tensors, option_tensors, parse_caption
from blipstream_client._exceptions import BlipstreamError, named
from blipstream_client._images import ImageLike
from blipstream_client._info import ServerInfo, parse_info, steps
from blipstream_client._lines import Line
from blipstream_client._pieces import Pieces
from blipstream_client._questions import GetConfig, GetServer
from blipstream_client._transport import Deadline


class Client(BaseClient):
    """A connection to a Blipstream server, or to several, which any number of threads may share."""

    def _open(self) -> None:
        self._line = Line(self._route)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. Requests that other threads wait for end with RequestCancelled."""
        self._hang_up()
        self._line.close()

    def is_ready(self) -> bool:
        """Whether a server answers and its model can serve."""
        return self._line.is_ready(self._model, self._deadline(None))

    def info(self) -> ServerInfo:
        """Which checkpoint the server has, what it runs on, and what may be asked of it. Raises BlipstreamError."""
        deadline = self._deadline(None)
        config = self._line.ask(GetConfig(self._model), deadline)
        parts = {name: self._line.ask(GetConfig(name), deadline) for name in steps(config)}
        return parse_info(self._line.ask(GetServer(), deadline), config, parts)

    def caption(self, image: ImageLike, *, timeout: float | None = None, **options: Unpack[Options]) -> Caption:
        """The caption of one image: a path, a URL, encoded bytes, a binary file, a PIL image or a uint8 array.

        An array has shape [H, W, 3], [H, W, 4] or [H, W]. `timeout` is the client's if None; for the options see
        `Options`. Raises BlipstreamError.
        """
        return self._caption(self._line, image, option_tensors(options), self._deadline(timeout))

    def stream(
        self, image: ImageLike, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> Generator[Piece, None, None]:
        """The caption of one image piece by piece, as it grows; the last piece has all of it as its `caption`.

        Nothing is sent before the first piece is asked for. Leaving the loop hangs up, and the server ends its work;
        `contextlib.closing` makes sure of it where the generator is kept. `timeout` is the client's if None: seconds
        to the first piece, with all retries, and from then on to wait for each further one. A stream that broke is not
        asked for again. Raises BlipstreamError.
        """
        tensors = option_tensors(options)
        self._deadline(timeout)  # refuses what is no time
        return self._stream(image, tensors, timeout)

    def caption_many(
        self,
        images: Iterable[ImageLike],
        *,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> Generator[Caption | BlipstreamError, None, None]:
        """For each image, in order, its caption or the error it met; one image's error ends no other's.

        At most `max_in_flight` images are taken ahead of the one whose result is awaited. They are read and
        encoded by other threads: leave files open and arrays unchanged until their result is here. `timeout` is for
        each image. Raises InvalidRequest for wrong options, before any image is taken.
        """
        tensors = checked_many(max_in_flight, options)
        self._deadline(timeout)  # refuses what is no time
        return self._caption_many(images, max_in_flight, tensors, timeout)

    def _caption_many(
        self, images: Iterable[ImageLike], max_in_flight: int, options: Tensors, timeout: float | None
    ) -> Generator[Caption | BlipstreamError, None, None]:
        executor = ThreadPoolExecutor(max_in_flight, thread_name_prefix="blipstream")
        pending: deque[Future[Caption | BlipstreamError]] = deque()
        try:
            with self._line.branch() as line:  # so that leaving early can cancel these requests and no others
                for image in images:
                    pending.append(executor.submit(self._attempt, line, image, options, timeout))
                    while pending and (pending[0].done() or len(pending) == max_in_flight):
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def _stream(self, image: ImageLike, options: Tensors, timeout: float | None) -> Generator[Piece, None, None]:
        deadline, pieces = self._deadline(timeout), Pieces()
        question = self._streamed(self._encoded(image, deadline), options)
        with named(question.request_id), pieces.complete(), closing(self._line.stream(question, deadline)) as answers:
            for answer in answers:
                yield pieces.read(answer)

    def _attempt(
        self, line: Line, image: ImageLike, options: Tensors, timeout: float | None
    ) -> Caption | BlipstreamError:
        try:
            return self._caption(line, image, options, self._deadline(timeout))
        except BlipstreamError as exc:
            return without_frames(exc)

    def _caption(self, line: Line, image: ImageLike, options: Tensors, deadline: Deadline) -> Caption:
        question = self._question(self._encoded(image, deadline), options)
        with named(question.request_id):
            return parse_caption(line.ask(question, deadline))
