# SPDX-License-Identifier: Apache-2.0
"""The users of a load test: closed-loop users wait for their answers, open-loop users do not.

A closed-loop user sends the next request when the last one is answered. So a slow server gets fewer requests, and
those that would have waited are never measured. An open-loop user sends at random times, whatever the server does. Its
latencies count from the time that a request was due, even if it was sent late. Together, open-loop users are a Poisson
process whose rate is the sum of theirs.
"""

import random
import time
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import gevent
import grpc.experimental.gevent
from gevent.pool import Group
from locust import User, task

from blipstream_client import BlipstreamError, Client, ServerUnreachable
from blipstream_loadtest import mix

grpc.experimental.gevent.init_gevent()  # because importing locust has patched the standard library

RECONNECT_SECONDS = 1.0  # that a closed-loop user waits who has reached no server

EPOCH = time.time() - time.perf_counter()  # added to the performance counter, it gives the time of day


@cache
def client(url: str, timeout: float, ca_file: str | None) -> Client:
    """The client that all users of a process share. It does not retry, since that would hide failures."""
    return Client(url, timeout=timeout, retries=0, ca_file=ca_file)


@cache
def load_mix(path: str) -> mix.Mix:
    """The mix that all users of a process share."""
    return mix.load(Path(path))


class CaptionUser(User):
    """Asks one of the servers for captions, drawn from the mix."""

    abstract = True
    _count = 0  # of users in this process, who take the servers in turn

    def on_start(self) -> None:
        """Read the options, which a worker gets from its master."""
        options = self.environment.parsed_options
        urls = str(self.environment.host).split(",")
        url = urls[CaptionUser._count % len(urls)]
        CaptionUser._count += 1
        self._protocol = url.partition(":")[0]
        self._timeout: float = options.timeout
        self._client = client(url, self._timeout, options.ca_file)
        self._mix = load_mix(options.mix)
        self._random = random.Random()  # noqa: S311

    def ask(self, due: float) -> BlipstreamError | None:
        """Send one request, which was due at that time of the performance counter, and tell Locust the outcome.

        Returns the error if it failed.
        """
        request = self._mix.draw(self._random)
        began = time.perf_counter()
        error: BlipstreamError | None = None
        texts: list[float] = []
        try:
            texts = request.ask(self._client)
        except BlipstreamError as exc:
            error = exc
        latency_ms = (time.perf_counter() - due) * 1000
        texts_ms = [(text - due) * 1000 for text in texts]
        context = {
            "due": EPOCH + due,
            "late_ms": (began - due) * 1000,
            "size": request.size,
            "texts_ms": texts_ms,
        }
        self._tell(request.kind, latency_ms, error, context)
        for number, (before, after) in enumerate(pairwise([0.0, *texts_ms])):
            self._tell(f"{request.kind}: {'next' if number else 'first'} text", after - before, None, {})
        return error

    def _tell(self, name: str, milliseconds: float, error: BlipstreamError | None, context: dict[str, Any]) -> None:
        """Add an entry to Locust's own report. An entry without a context is not a request."""
        self.environment.events.request.fire(
            request_type=self._protocol,
            name=name,
            response_time=milliseconds,
            response_length=0,
            exception=error,
            context=context,
        )


class ClosedUser(CaptionUser):
    """Sends the next request as soon as the last one is answered."""

    _unreachable = False  # whether the last request reached no server

    def wait_time(self) -> float:
        """No time passes between an answer and the next request. A server that is away is not flooded."""
        return RECONNECT_SECONDS if self._unreachable else 0.0

    @task
    def caption(self) -> None:
        """Send a request and wait for the answer."""
        self._unreachable = isinstance(self.ask(time.perf_counter()), ServerUnreachable)


class OpenUser(CaptionUser):
    """Sends requests at random times, whether earlier ones are answered or not."""

    rate = 0.0  # requests a second of each user; the master tells it before it starts them

    def on_start(self) -> None:
        """Wait until the first request is due."""
        super().on_start()
        self._rate = OpenUser.rate
        self._asking = Group()
        self._due = time.perf_counter()
        gevent.sleep(self.wait_time())

    def wait_time(self) -> float:
        """The time until the next request is due; 0 if it is overdue, as on a machine that cannot keep up."""
        self._due += self._random.expovariate(self._rate)
        return max(0.0, self._due - time.perf_counter())

    @task
    def caption(self) -> None:
        """Send a request and do not wait for the answer."""
        self._asking.spawn(self.ask, self._due)

    def on_stop(self) -> None:
        """Wait for the answers that are still to come; else the slowest would be left out."""
        self._asking.join(self._timeout)


def row(context: dict[str, Any], protocol: str, kind: str, latency_ms: float, error: BaseException | None) -> list[Any]:
    """A request as it is recorded, in the order of `COLUMNS`."""
    return [
        round(context["due"], 6),
        round(context["late_ms"], 3),
        round(latency_ms, 3),
        protocol,
        kind,
        context["size"],
        type(error).__name__ if error else "",
        str(error or ""),
        " ".join(f"{text_ms:.3f}" for text_ms in context["texts_ms"]),
    ]


COLUMNS = ("due", "late_ms", "latency_ms", "protocol", "kind", "size", "error", "message", "texts_ms")
