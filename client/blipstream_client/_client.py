# SPDX-License-Identifier: Apache-2.0
"""The client: images in, captions out."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, Unpack

from blipstream_client._contract import (
    Caption,
    Options,
    Tensors,
    image_tensor,
    option_tensors,
    parse_caption,
)
from blipstream_client._exceptions import (
    BlipstreamError,
    InvalidRequest,
    ModelNotReady,
    RequestTimeout,
    ServerUnreachable,
)
from blipstream_client._images import ImageLike, encode
from blipstream_client._transport import Transport, connect, parse_url

DEFAULT_URL = "grpc://localhost:8001"
DEFAULT_MODEL = "caption"
DEFAULT_TIMEOUT = 60.0  # seconds that a request may take
DEFAULT_MAX_IN_FLIGHT = 32  # requests at once


class Client:
    """A connection to a Blipstream server, which any number of threads may share.

    The URL's scheme is grpc, http, or for TLS grpcs or https. `timeout` is in seconds, for each request.
    Raises InvalidURL; the server itself is first called by the first request.
    """

    def __init__(self, url: str = DEFAULT_URL, *, model: str = DEFAULT_MODEL, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._address = parse_url(url)
        self._model = model
        self._timeout = timeout
        self._transport = connect(self._address, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. Requests that other threads wait for end with RequestCancelled."""
        self._transport.close()

    def is_ready(self) -> bool:
        """Whether a server answers and its model can serve."""
        try:
            return self._transport.is_model_ready(self._model)
        except (ServerUnreachable, RequestTimeout, ModelNotReady):
            return False

    def caption(self, image: ImageLike, **options: Unpack[Options]) -> Caption:
        """The caption of one image: a path, encoded bytes, a binary file, a PIL image or a uint8 array.

        An array has shape [H, W, 3] or [H, W]. For the options see `Options`. Raises BlipstreamError.
        """
        return self._caption(self._transport, image, option_tensors(options))

    def caption_many(
        self,
        images: Iterable[ImageLike],
        *,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        **options: Unpack[Options],
    ) -> Generator[Caption | BlipstreamError, None, None]:
        """For each image, in order, its caption or the error it met; one image's error ends no other's.

        At most `max_in_flight` images are taken ahead of the one whose result is awaited. They are read and
        encoded by other threads: leave files open and arrays unchanged until their result is here.
        Raises InvalidRequest for wrong options, before any image is taken.
        """
        if max_in_flight < 1:
            raise InvalidRequest(f"max_in_flight must be at least 1, got {max_in_flight}")
        return self._caption_many(images, max_in_flight, option_tensors(options))

    def _caption_many(
        self, images: Iterable[ImageLike], max_in_flight: int, options: Tensors
    ) -> Generator[Caption | BlipstreamError, None, None]:
        # A transport of its own, so that leaving early can cancel these requests and no others.
        transport = connect(self._address, self._timeout)
        executor = ThreadPoolExecutor(max_in_flight, thread_name_prefix="blipstream")
        pending: deque[Future[Caption | BlipstreamError]] = deque()
        try:
            for image in images:
                pending.append(executor.submit(self._attempt, transport, image, options))
                while pending and (pending[0].done() or len(pending) == max_in_flight):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            transport.close()
            executor.shutdown(wait=False, cancel_futures=True)

    def _attempt(self, transport: Transport, image: ImageLike, options: Tensors) -> Caption | BlipstreamError:
        try:
            return self._caption(transport, image, options)
        except BlipstreamError as exc:
            return _without_frames(exc)

    def _caption(self, transport: Transport, image: ImageLike, options: Tensors) -> Caption:
        return parse_caption(transport.infer(self._model, {"image": image_tensor(encode(image)), **options}))


def _without_frames(error: BlipstreamError) -> BlipstreamError:
    """The error without its tracebacks, whose frames would keep the image in memory as long as the error."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error
