# SPDX-License-Identifier: Apache-2.0
"""The users of a load test: closed-loop ones, who wait for their answer, and open-loop ones, who do not.

A closed-loop user sends the next request when the last is answered, so a slow server is asked less, and what would
have waited meanwhile is never measured. An open-loop user sends at random times whatever the server does, and its
latencies count from the moment that a request was due, late or not. Several are a Poisson process at their rates' sum.
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

import mix
from blipstream_client import BlipstreamError, Client

grpc.experimental.gevent.init_gevent()  # importing locust has patched the standard library

EPOCH = time.time() - time.perf_counter()  # turns one clock into the other


@cache
def client(url: str, timeout: float) -> Client:
    """The connection that all users of a process share. It hides no failure by asking again."""
    return Client(url, timeout=timeout, retries=0)


@cache
def load_mix(path: str) -> mix.Mix:
    """What all users of a process draw from."""
    return mix.load(Path(path))


class CaptionUser(User):
    """Asks one of the servers for captions, as the mix has it."""

    abstract = True
    _numbers = 0  # of users in this process, who take the servers in turn

    def on_start(self) -> None:
        """Read the options, which a worker has from its master."""
        options = self.environment.parsed_options
        urls = str(self.environment.host).split(",")
        url = urls[CaptionUser._numbers % len(urls)]
        CaptionUser._numbers += 1
        self._protocol = url.partition(":")[0]
        self._timeout: float = options.timeout
        self._client = client(url, self._timeout)
        self._mix = load_mix(options.mix)
        self._random = random.Random()  # noqa: S311

    def ask(self, due: float) -> None:
        """Send one request that was due at a time of the performance counter, and tell Locust how it went."""
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

    def _tell(self, name: str, milliseconds: float, error: BlipstreamError | None, context: dict[str, Any]) -> None:
        """An entry in Locust's own report; those without a context are not requests."""
        self.environment.events.request.fire(
            request_type=self._protocol,
            name=name,
            response_time=milliseconds,
            response_length=0,
            exception=error,
            context=context,
        )


class ClosedUser(CaptionUser):
    """Sends the next request as soon as the last is answered."""

    def wait_time(self) -> float:
        """None."""
        return 0

    @task
    def caption(self) -> None:
        """Ask and wait."""
        self.ask(time.perf_counter())


class OpenUser(CaptionUser):
    """Sends requests at random times, whether or not earlier ones are answered."""

    def on_start(self) -> None:
        """Wait for the first time."""
        super().on_start()
        self._rate: float = self.environment.parsed_options.rate_per_user
        self._asking = Group()
        self._due = time.perf_counter()
        gevent.sleep(self.wait_time())

    def wait_time(self) -> float:
        """Until the next request is due, which may have been a while ago on a machine that cannot keep up."""
        self._due += self._random.expovariate(self._rate)
        return max(0.0, self._due - time.perf_counter())

    @task
    def caption(self) -> None:
        """Ask without waiting."""
        self._asking.spawn(self.ask, self._due)

    def on_stop(self) -> None:
        """Wait for the answers that are still to come, lest the slowest be left out."""
        self._asking.join(self._timeout)


def row(context: dict[str, Any], protocol: str, kind: str, latency_ms: float, error: BaseException | None) -> list[Any]:
    """A request as it is recorded, under `COLUMNS`."""
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
