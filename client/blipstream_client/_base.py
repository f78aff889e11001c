# SPDX-License-Identifier: Apache-2.0
"""What both clients share: their arguments, and everything that sends nothing."""

import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from os import PathLike as AnyPath
from threading import Event
from types import NoneType

from PIL.Image import Image

from blipstream_client._arguments import checks_names
from blipstream_client._deadline import Deadline
from blipstream_client._endpoints import Address, RoundRobin, parse_urls
from blipstream_client._errors import cancelled, model_missing
from blipstream_client._exceptions import InvalidCertificate, InvalidImage, InvalidRequest, InvalidURL, ModelNotReady
from blipstream_client._fetch import MAX_SECONDS, fetch, is_url
from blipstream_client._images import ImageLike, encode, shrink
from blipstream_client._network import AbortableBackend
from blipstream_client._options import in_utf8, option_tensors
from blipstream_client._requests import InferRequest, StreamRequest
from blipstream_client._rerank_options import ALL_OPTIONS, RERANK_OPTIONS, RerankOptions
from blipstream_client._retries import RetryPolicy
from blipstream_client._tensors import Tensors, image_tensor
from blipstream_client._text import excerpt, quoted, shown_url
from blipstream_client._tls import TLS, PathLike
from blipstream_client._transport import Settings

LONGEST_KEY = 8_000  # characters: nginx and others take headers of 8 KiB, and hang up on longer ones
API_KEY = "BLIPSTREAM_API_KEY"  # the environment variable: a command line can be read by the machine's other users
DEFAULT_URL = "grpc://localhost:8001"
DEFAULT_MODEL = "caption"
EXPLAIN_MODEL = "explain"
EXPLAIN_MATCH_MODEL = "explain_match"
RERANK_MODEL = "rerank"
LOOK_SECONDS = 2.0  # to find out what a server has for an error: while Triton loads a model, it may not say
# that a server may have for clients
MODELS = (
    *("caption", "caption_stream", EXPLAIN_MODEL, RERANK_MODEL),
    *("match", EXPLAIN_MATCH_MODEL, "embed_image", "embed_text"),
)
DEFAULT_TIMEOUT = 60.0  # seconds for a request, with all its retries
DEFAULT_RETRIES = 3
DEFAULT_MAX_IN_FLIGHT = 32  # requests
LONGEST_SECONDS = 1e6  # of a timeout: sockets and gRPC count milliseconds in 31 bits
OWN_HEADERS = {  # they say how a request is sent, so only the client sets them
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "inference-header-content-length",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "triton_grpc_error",
    "upgrade",
}
CHECKS_PER_TIMEOUT = 3  # of a silent connection: Triton hangs up on a client that checks a fourth time in 5 minutes


class BaseClient:
    """What both clients know: the server's addresses, the model, and how to read an image."""

    @checks_names
    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        model: str = DEFAULT_MODEL,
        timeout: float = DEFAULT_TIMEOUT,
        retries: int = DEFAULT_RETRIES,
        headers: Mapping[str, str] | None = None,
        ca_file: PathLike | None = None,
        cert_file: PathLike | None = None,
        key_file: PathLike | None = None,
        keepalive: float | None = None,
        max_side: int | None = None,
        allow_private_urls: bool = False,
    ) -> None:
        """Nothing is sent yet. Raises InvalidURL, InvalidCertificate or InvalidRequest.

        url: the server's address: grpc://, http://, or for TLS grpcs:// or https://. Several endpoints, such as
            grpc://a:8001,b:8001, take turns.
        model: the server's name for the model. `stream` asks the model of that name with _stream after it.
        timeout: seconds for a request, with all its retries.
        retries: how often to try again if the server is overloaded or cannot be reached, or if the URL of an image
            does not answer for now. A server that has answered before may be restarting, so requests wait for it as
            long as `timeout` says, unless `retries` is 0. The logger "blipstream_client" then has a warning.
        headers: sent with every request to the server, such as {"authorization": "Bearer ..."}. Without that one, the
            key in the environment variable BLIPSTREAM_API_KEY is sent, but not over a network without TLS.
        ca_file: certificates to trust instead of the well-known ones, PEM.
        cert_file, key_file: the client's own certificate and its key, PEM, for servers that want one.
        keepalive: seconds of silence after which a connection that waits for a response is checked. None: a third of
            `timeout`.
        max_side: pixels. An image with a longer side is scaled down before it is sent.
        allow_private_urls: whether to fetch images from URLs of this machine and of private networks, too.
        """
        for name, value in (("url", url), ("model", model)):
            _check_kind(name, value, str, "text")
        for name, path in (("ca_file", ca_file), ("cert_file", cert_file), ("key_file", key_file)):
            _check_kind(name, path, (str, AnyPath, NoneType), "a path")
        _check_kind("headers", headers, (Mapping, NoneType), "a mapping of names to values")
        _check_kind("allow_private_urls", allow_private_urls, bool, "True or False")
        self._addresses = parse_urls(url)
        in_utf8(model, "model must be text")
        self._model = model
        self._timeout = _positive("timeout", timeout)
        self._max_side = max_side if max_side is None else _at_least(1, "max_side", max_side)
        self._allow_private_urls = allow_private_urls
        tls = TLS(ca_file, cert_file, key_file)
        if tls.is_given and not self._addresses[0].secure:
            raise InvalidCertificate(
                f"Certificates are for grpcs:// and https://, and the address is {shown_url(url)}: use one of these"
            )
        interval = timeout / CHECKS_PER_TIMEOUT if keepalive is None else _positive("keepalive", keepalive)
        self._settings = Settings(_with_key(_checked_headers(headers or {}), self._addresses), tls, interval)
        self._policy = RetryPolicy(_at_least(0, "retries", retries), RoundRobin(len(self._addresses)))
        self._resize_mode: str | None = None  # the server's default, once it is known
        self._closed = Event()
        self._web = AbortableBackend()  # for images by URL
        self._open()

    def _open(self) -> None:
        """Make the transport. Nothing is sent yet."""
        raise NotImplementedError

    def _hang_up(self) -> None:
        """End all fetching of images, and refuse new requests."""
        self._closed.set()
        self._web.abort()

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self._timeout if timeout is None else _positive("timeout", timeout))

    def _encoded(self, image: ImageLike, deadline: Deadline) -> bytes:
        """The bytes to send. This blocks: it reads, fetches and scales."""
        encoded = self._read(image, deadline)
        return shrink(encoded, self._max_side) if self._max_side else encoded

    def _read(self, image: ImageLike, deadline: Deadline) -> bytes:
        """The bytes of the image, from a file, a URL or memory."""
        if is_url(image):
            limit = Deadline(min(deadline.left(), MAX_SECONDS))
            with self._policy.blocking(limit, self._closed) as retrying:
                return retrying(self._fetch, str(image), limit)
        return encode(image, deadline)

    def _fetch(self, url: str, limit: Deadline) -> bytes:
        try:
            return fetch(url, limit, allow_private=self._allow_private_urls, backend=self._web)
        except InvalidImage as exc:
            if self._closed.is_set():
                raise cancelled() from exc
            raise

    def _instead(self, error: ModelNotReady, served: Sequence[str]) -> str:
        """The model to ask about, if the server lacks ours. Raises the error if ours was named, or may yet come."""
        if error.transient or not served:
            raise error
        if self._model != DEFAULT_MODEL:
            raise model_missing(error, self._model, served) from error
        return served[0]

    def _infer_request(self, encoded: bytes, options: Tensors) -> InferRequest:
        """The request for a caption. Options of matching are for the model that has it."""
        model = self._model if options.keys().isdisjoint(RERANK_OPTIONS) else RERANK_MODEL
        return InferRequest(model, {"image": image_tensor(encoded), **options})

    def _explain_request(self, encoded: bytes, options: Tensors) -> InferRequest:
        return InferRequest(EXPLAIN_MODEL, {"image": image_tensor(encoded), **options})

    def _stream_request(self, encoded: bytes, options: Tensors) -> StreamRequest:
        return StreamRequest(f"{self._model}_stream", {"image": image_tensor(encoded), **options})


def checked_many(
    images: object, max_in_flight: int, options: RerankOptions, protocols: Sequence[str] = ("__iter__", "__getitem__")
) -> Tensors:
    """The option tensors for many requests. Raises InvalidRequest, also if `images` is a single image.

    `protocols` are the methods of which one gives the images.
    """
    single = (str, bytes, bytearray, memoryview, AnyPath, Image)
    if isinstance(images, single) or hasattr(images, "read"):
        raise InvalidRequest(f"Expected several images, got one {type(images).__name__}: put it in a list")
    if not any(hasattr(images, method) for method in protocols) or getattr(images, "ndim", 1) < 1:
        remedy = ", or let AsyncClient have it" if hasattr(images, "__aiter__") else ""
        raise InvalidRequest(f"images must be several, such as a list, got {quoted(images)}{remedy}")
    _at_least(1, "max_in_flight", max_in_flight)
    return option_tensors(options, ALL_OPTIONS, ("max_in_flight", "timeout"))


def _check_kind(name: str, value: object, kinds: type | tuple[type, ...], words: str) -> None:
    if not isinstance(value, kinds):
        raise InvalidRequest(f"{name} must be {words}, got {quoted(value)}")


def _positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= LONGEST_SECONDS:
        raise InvalidRequest(
            f"{name} must be a number of seconds above 0 and at most {LONGEST_SECONDS:g}, got {quoted(value)}"
        )
    return value


def _at_least(least: int, name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InvalidRequest(f"{name} must be a whole number of at least {least}, got {quoted(value)}")
    return value


def _with_key(headers: Mapping[str, str], addresses: Sequence[Address]) -> Mapping[str, str]:
    """The headers, with the key of the environment unless they have one.

    A header is given for one server, and its sender knows the way there. The environment holds for whatever server is
    named, so its key takes no way on which others could read it. Raises InvalidRequest or InvalidURL.
    """
    key = os.environ.get(API_KEY, "").strip()
    if not key or "authorization" in map(str.lower, headers):
        return headers
    if not (key.isascii() and key.isprintable()):
        raise InvalidRequest(f"{API_KEY} must be printable ASCII on one line: set it again")
    if len(key) > LONGEST_KEY:
        raise InvalidRequest(
            f"{API_KEY} has {len(key):,} characters, and servers take headers of at most {LONGEST_KEY:,}: set it again"
        )
    if exposed := [each.url for each in addresses if not (each.secure or each.is_loopback)]:
        raise InvalidURL(
            f"Refused to send {API_KEY} without TLS to {exposed[0]}: use grpcs:// or https://, unset it, or give the"
            " key as a header if the network is your own"
        )
    return {**headers, "authorization": f"Bearer {key}"}


def _checked_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in headers.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise InvalidRequest(f"A header's name and value must be text, got {quoted(name)}: {type(value).__name__}")
        if name.lower() in OWN_HEADERS or name.lower().startswith("grpc-"):
            raise InvalidRequest(f"The header {excerpt(name)} is the client's own to set: leave it out")
        if not (name.isascii() and name.replace("-", "").replace("_", "").replace(".", "").isalnum()):
            raise InvalidRequest(f"A header's name must be of letters, digits and hyphens, got {quoted(name)}")
        if not (value.isascii() and value.isprintable() and value == value.strip()):
            raise InvalidRequest(
                f"The header {excerpt(name)} must be printable ASCII on one line, without spaces around"
            )
    return dict(headers)
