# SPDX-License-Identifier: Apache-2.0
"""The supervisor's own requests, which tell whether an idle server would answer."""

import io
import secrets
import time
from collections import Counter
from collections.abc import Container, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from PIL import Image

import blipstream_client
from blipstream import errors
from blipstream.config import BUILD_HINT
from blipstream.options import PROBE, PROBE_TEXT, OptionDefaults
from blipstream.server.routes import CAPTION, MATCH, ROUTES, STREAM
from blipstream.server.served_repository import captions, matches
from blipstream.server.triton import TritonServer

IDLE_SECONDS = 2.0  # without a caption, before the canary is sent if somebody seems to wait for one
MAX_PAUSE_SECONDS = 60.0  # between canaries if nobody does, however long a caption takes
TIMEOUT_SECONDS = 10.0  # of the canary
TIME_SHARE = 0.02  # of an idle server's time that the canary may take
EMPTY = "its caption is empty"  # which counts as none: it happens if tokens have lost their words


class Canary:
    """Asks for a caption on all routes at once, in threads, since the answers may never come.

    All at once, so that if one route answers and the other does not, the queues that they share are not the reason.
    While a route refuses, it may be asked alone. Each request takes a new connection: a server that can open no more
    files still answers on old ones.
    """

    def __init__(self, url: str, defaults: OptionDefaults | None = None) -> None:
        """`defaults` are the server's: the canary sends nothing that they forbid."""
        defaults = defaults or OptionDefaults()
        self._options = defaults.allowed(PROBE)
        self._may_be_empty = _may_be_empty(defaults)
        self._connect = partial(blipstream_client.Client, url, timeout=TIMEOUT_SECONDS, retries=0)
        self._clients: dict[str, blipstream_client.Client] = {}  # by route
        self._executor = ThreadPoolExecutor(len(ROUTES), thread_name_prefix="canary")
        self._requests: dict[str, Future[None]] = {}  # by route
        # by route, the error; "": it captioned; None: no answer yet, or one that shows no fault
        self._answers: dict[str, str | None] = {}
        self._seconds: dict[str, float] = {}  # that the last answer took, by route
        self._empty: Counter[str] = Counter()  # answers without a word so far, by route

    @property
    def refusal(self) -> str:
        """The error of a route that refused for another reason than overload; empty if none did."""
        return next(filter(None, self._answers.values()), "")

    @property
    def failing_route(self) -> str:
        """The route that refuses, or has not answered yet, while another one has captioned; empty if there is none."""
        for route, answer in self._answers.items():
            others = [its for other, its in self._answers.items() if other != route]
            if "" in others and answer != "" and (answer or not self._requests[route].done()):
                return route
        return ""

    @property
    def pause(self) -> float:
        """Seconds without a caption on a route after which to try it: longer where a caption takes longer."""
        return min(max(IDLE_SECONDS, sum(self._seconds.values()) / TIME_SHARE), MAX_PAUSE_SECONDS)

    def without_empty(self, inferences: Mapping[str, int]) -> dict[str, int]:
        """The inferences of each model, less those whose captions the canary found to be empty."""
        return {model: count - self._empty[model] for model, count in inferences.items()}

    def send(self, models: Container[str], *, all_routes: bool = False) -> None:
        """Ask a server that has these models, unless an answer is still to come.

        Asks only the routes that refused before, if there are any, or `all_routes`.
        """
        if not all(request.done() for request in self._requests.values()):
            return
        routes = [route for route in ROUTES if route in models] or [CAPTION]
        refusing = [route for route in routes if self._answers.get(route)]
        for route in routes if all_routes else refusing or routes:
            self._answers[route] = self._answers.get(route) or None  # a route refuses until it does not
            self._requests[route] = self._executor.submit(self._ask, route)

    def close(self) -> None:
        """Hang up."""
        for client in list(self._clients.values()):
            client.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _ask(self, route: str) -> None:
        began = time.monotonic()
        answer: str | None = None  # overloaded, late or unreachable: the samples tell whether that is a fault
        with suppress(blipstream_client.BlipstreamError), self._connect() as client:
            self._clients[route] = client
            answer = self._answer(client, route)
        self._seconds[route] = time.monotonic() - began
        self._answers[route] = answer

    def _answer(self, client: blipstream_client.Client, route: str) -> str:
        try:
            if route == MATCH:
                client.match(random_image(), [PROBE_TEXT])
                return ""
            if route == STREAM:
                text = "".join(piece.text for piece in client.stream(random_image(), **self._options))
            else:
                text = client.caption(random_image(), **self._options).text
        except (blipstream_client.ServerError, blipstream_client.ModelNotReady) as error:
            return str(error)
        if text.strip() or self._may_be_empty:
            return ""
        self._empty[route] += 1
        return EMPTY


def check_first_answers(server: TritonServer) -> None:
    """Ask once for each kind of answer that the server has a checkpoint for. Raises ServerError."""
    if captions(server.repository, server.config):
        check_first_caption(server)
    if matches(server.repository, server.config):
        try:
            with blipstream_client.Client(server.local_url) as client:
                client.match(random_image(), [PROBE_TEXT])
        except blipstream_client.BlipstreamError as error:
            raise errors.ServerError(f"the server is ready, but its first match failed: {error}") from error


def check_first_caption(server: TritonServer) -> None:
    """Ask for one caption: models may be ready and yet fail. Raises ServerError."""
    try:
        with blipstream_client.Client(server.local_url) as client:
            text = client.caption(random_image()).text
    except blipstream_client.BlipstreamError as error:
        raise errors.ServerError(f"the server is ready, but its first caption failed: {error}") from error
    if not (text.strip() or _may_be_empty(server.effective_defaults)):
        raise errors.ServerError(f"the server is ready, but its first caption is empty: {BUILD_HINT}")


def _may_be_empty(defaults: OptionDefaults) -> bool:
    """Whether a right caption may have no words: a prompt may be all of it, and be left out."""
    fixed = {name: defaults.values.get(name) for name in defaults.fixed}
    return bool(fixed.get("prompt")) and fixed.get("include_prompt") is False


def random_image() -> bytes:
    """A PNG of one random colour, so that no cache on the way has its caption."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), tuple(secrets.token_bytes(3))).save(file, "PNG")
    return file.getvalue()
