# SPDX-License-Identifier: Apache-2.0
"""The client that blocks: images in, captions, matches and embeddings out."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from types import TracebackType
from typing import Self, Unpack

from blipstream_client._arguments import checks_names
from blipstream_client._balancing import BalancedTransport
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
from blipstream_client._errors import about, model_missing, with_request_id, without_frames
from blipstream_client._exceptions import BlipstreamError, ModelNotReady
from blipstream_client._explain_options import ExplainOptions, explain_match_tensors, explain_tensors
from blipstream_client._explanation import Explanation, MatchExplanation, parse_explanation, parse_match_explanation
from blipstream_client._images import ImageLike
from blipstream_client._info import (
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


class Client(BaseClient):
    """A client of one or several Blipstream servers. Any number of threads may share it."""

    def _open(self) -> None:
        self._transport = BalancedTransport(self._addresses, self._settings, self._policy)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @checks_names
    def close(self) -> None:
        """Hang up. Requests of other threads end with RequestCancelled."""
        self._hang_up()
        self._transport.close()

    @checks_names
    def is_ready(self) -> bool:
        """Whether a server answers and its model can serve."""
        return self._transport.is_ready(self._model, self._deadline(None))

    @checks_names
    def info(self) -> ServerInfo:
        """The server's version and checkpoint, its runtimes, options and adapters. Raises BlipstreamError."""
        deadline, send = self._deadline(None), self._transport.send
        served: list[str] = []
        try:
            config = send(ConfigRequest(self._model), deadline)
        except ModelNotReady as exc:
            served = _served(self._transport, deadline)
            config = send(ConfigRequest(self._instead(exc, served)), deadline)
        served = served or _served(self._transport, deadline)
        matching = send(ConfigRequest(MATCH), deadline) if MATCH in served else None
        reranking = send(ConfigRequest(RERANK_MODEL), deadline) if RERANK_MODEL in served else None
        names = dict.fromkeys([*steps(config), *(steps(matching) if matching else ())])
        parts = {name: send(ConfigRequest(name), deadline) for name in names}
        adapters = adapters_of(send(adapters_request(), deadline)) if takes_adapters(config) else ()
        return parse_info(send(MetadataRequest(), deadline), config, parts, served, matching, reranking, adapters)

    def caption(self, image: ImageLike, *, timeout: float | None = None, **options: Unpack[RerankOptions]) -> Caption:
        """The caption of one image: a path, a URL, encoded bytes, a binary file, a PIL image or a uint8 array.

        An array has shape [H, W, 3], [H, W, 4] or [H, W]. `timeout` is in seconds; None means the client's. The options
        are those of `RerankOptions`; with `rerank` or `min_match`, the server needs a retrieval checkpoint. If no
        caption matches the image as well as `min_match` asks, the text is empty, and `why_empty` says the reason.
        Raises BlipstreamError.
        """
        tensors, deadline = option_tensors(options, ALL_OPTIONS), self._deadline(timeout)
        with about(image):
            return self._caption(self._transport, image, tensors, deadline)

    def explain(
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
        with about(image):
            encoded = self._encoded(image, deadline)
            request = self._explain_request(encoded, tensors)
            with with_request_id(request.request_id):
                outputs = _send(self._transport, request, deadline)
                resize_mode = options.get("resize_mode") or self._default_resize_mode(EXPLAIN_MODEL, deadline)
                return parse_explanation(outputs, encoded, resize_mode, options.get("caption_index"))

    @checks_names
    def match(
        self,
        image: ImageLike,
        texts: Iterable[str],
        *,
        truncate: bool | None = None,
        resize_mode: str | None = None,
        timeout: float | None = None,
    ) -> Matches:
        """How well each of the texts, at most 1,000, matches an image, in their order.

        The image is as for `caption`. The texts may come from any iterable. A text that is too long for the model is
        refused, or cut with `truncate`. `resize_mode` is as in `Options`, and `timeout` is in seconds. Raises
        BlipstreamError, ModelNotReady if the server has no retrieval checkpoint.
        """
        given = listed(texts)
        inputs = text_tensors(given, truncate) | option_tensors({"resize_mode": resize_mode})
        deadline = self._deadline(timeout)
        with about(image):
            inputs["image"] = image_tensor(self._encoded(image, deadline))
            return parse_matches(given, self._ask(MATCH, inputs, deadline))

    @checks_names
    def explain_match(
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
        with about(image):
            encoded = self._encoded(image, deadline)
            outputs = self._ask(EXPLAIN_MATCH_MODEL, {"image": image_tensor(encoded), **inputs}, deadline)
            mode = resize_mode or self._default_resize_mode(EXPLAIN_MATCH_MODEL, deadline)
            return parse_match_explanation(outputs, encoded, mode)

    @checks_names
    def embed_image(
        self, image: ImageLike, *, resize_mode: str | None = None, timeout: float | None = None
    ) -> Embedding:
        """The embedding of an image: f32 [256], of length 1. Its product with that of a text is their similarity.

        The image is as for `caption`. Raises BlipstreamError.
        """
        inputs = option_tensors({"resize_mode": resize_mode})
        deadline = self._deadline(timeout)
        with about(image):
            inputs["image"] = image_tensor(self._encoded(image, deadline))
            return parse_embedding(self._ask(EMBED_IMAGE, inputs, deadline))

    @checks_names
    def embed_text(self, text: str, *, truncate: bool | None = None, timeout: float | None = None) -> Embedding:
        """The embedding of a text: f32 [256], of length 1. Raises BlipstreamError."""
        return parse_embedding(self._ask(EMBED_TEXT, text_tensors([text], truncate), self._deadline(timeout)))

    def stream(
        self, image: ImageLike, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> Generator[Piece, None, None]:
        """The caption of one image, piece by piece. The last piece has the whole caption as its `caption`.

        Nothing is sent before the first piece is asked for. Leaving the loop cancels the request, and the server ends
        its work. If you keep the generator, wrap it in `contextlib.closing` to be sure of that. `timeout` is in
        seconds: to the first piece, with all retries, and then to each further piece. None means the client's. A stream
        that breaks off is not retried. Raises BlipstreamError.
        """
        check_no_rerank(options)
        tensors = option_tensors(options)
        self._deadline(timeout)  # raises InvalidRequest for a bad value
        return self._stream(image, tensors, timeout)

    def caption_many(
        self,
        images: Iterable[ImageLike],
        *,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        timeout: float | None = None,
        **options: Unpack[RerankOptions],
    ) -> Generator[Caption | BlipstreamError, None, None]:
        """For each image, in order, its caption or its error. One image's error does not affect the others.

        At most `max_in_flight` images are taken ahead of the one whose result is awaited. Other threads read and encode
        them: leave files open and arrays unchanged until their result is here. `timeout` is in seconds for each image.
        Raises InvalidRequest for wrong options or a single image, before it takes any.
        """
        tensors = checked_many(images, max_in_flight, options)
        self._deadline(timeout)  # raises InvalidRequest for a bad value
        return self._caption_many(images, max_in_flight, tensors, timeout)

    def _default_resize_mode(self, model: str, deadline: Deadline) -> str:
        if self._resize_mode is None:
            self._resize_mode = resize_mode_of(self._transport.send(ConfigRequest(model), deadline))
        return self._resize_mode

    def _caption_many(
        self, images: Iterable[ImageLike], max_in_flight: int, options: Tensors, timeout: float | None
    ) -> Generator[Caption | BlipstreamError, None, None]:
        executor = ThreadPoolExecutor(max_in_flight, thread_name_prefix="blipstream")
        pending: deque[Future[Caption | BlipstreamError]] = deque()
        try:
            with self._transport.branch() as transport:  # so that leaving early can cancel these requests and no others
                for number, image in enumerate(images, 1):
                    pending.append(executor.submit(self._attempt, transport, image, number, options, timeout))
                    while pending and (pending[0].done() or len(pending) == max_in_flight):
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def _stream(self, image: ImageLike, options: Tensors, timeout: float | None) -> Generator[Piece, None, None]:
        deadline, parser = self._deadline(timeout), StreamParser()
        with about(image):
            request = self._stream_request(self._encoded(image, deadline), options)
            with (
                with_request_id(request.request_id),
                parser.completed(),
                closing(self._transport.stream(request, deadline)) as responses,
            ):
                for response in responses:
                    yield parser.piece(response)

    def _attempt(
        self, transport: BalancedTransport, image: ImageLike, number: int, options: Tensors, timeout: float | None
    ) -> Caption | BlipstreamError:
        try:
            with about(image, number):
                return self._caption(transport, image, options, self._deadline(timeout))
        except BlipstreamError as exc:
            return without_frames(exc)

    def _caption(self, transport: BalancedTransport, image: ImageLike, options: Tensors, deadline: Deadline) -> Caption:
        request = self._infer_request(self._encoded(image, deadline), options)
        with with_request_id(request.request_id):
            return parse_caption(_send(transport, request, deadline), options)

    def _ask(self, model: str, inputs: Tensors, deadline: Deadline) -> Tensors:
        request = InferRequest(model, inputs)
        with with_request_id(request.request_id):
            return _send(self._transport, request, deadline)


def _send(transport: BalancedTransport, request: InferRequest, deadline: Deadline) -> Tensors:
    try:
        return transport.send(request, deadline)
    except ModelNotReady as exc:
        if exc.transient:
            raise
        soon = deadline.at_most(LOOK_SECONDS)
        served = _served(transport, soon)
        raise model_missing(exc, request.model, [] if soon.is_over() else served) from exc


def _served(transport: BalancedTransport, deadline: Deadline) -> list[str]:
    """The models for clients that the server has."""
    return [name for name in MODELS if transport.is_ready(name, deadline)]
