# SPDX-License-Identifier: Apache-2.0
"""An image loader as the model `preprocess` runs it: with a bounded queue, backpressure, metrics and telemetry.

The queue is ours, not Triton's: a request that Triton 2.51 refuses because its queue is full is answered within the
call that hands it over, and if a client hangs up at that moment, Triton dies.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from itertools import islice
from threading import Condition, Thread
from typing import Any

from blipstream.errors import BlipstreamError, Overloaded, Stopping, apart, report
from blipstream.images.limits import DEFAULT_LIMITS
from blipstream.images.loader import ImageLoader, ImageRequest, Loaded
from blipstream.serving.adapter import ModelInstance, TritonRequest
from blipstream.serving.backpressure import POLL_SECONDS, Backpressure
from blipstream.serving.metrics import WaitingGauge

# Of requests that wait for room; more are refused:
MAX_WAITING = 256  # how many there may be, in all instances together,
MAX_WAITING_BYTES = 8 * DEFAULT_LIMITS.max_bytes  # and how many bytes of images those of one instance may have
WATCH_SECONDS = 0.1  # how long a waiting request may be late, or its client gone, before its place is free


class LoadingService:
    """Takes requests from Triton's thread, keeps those that wait, and loads the images of many together.

    One thread of its own waits for room and loads. Another one responds meanwhile to the batch before. Slow images are
    responded to by the loader's threads.
    """

    def __init__(self, instance: ModelInstance, loader: ImageLoader) -> None:
        self._instance, self._loader = instance, loader
        self._backpressure = Backpressure()
        self._gauge = WaitingGauge(instance.pb_utils.MetricFamily, instance.name)
        self._max_waiting = max(1, MAX_WAITING // instance.count)
        self._waiting: dict[TritonRequest, ImageRequest] = {}  # in the order of their arrival
        self._waiting_bytes = 0
        self._closed = False
        self._changed = Condition()  # guards the three above
        self._watched = 0.0  # when the waiting requests were last looked through, in seconds of time.monotonic
        self._responder = ThreadPoolExecutor(1)
        self._responding: Future[None] = Future()  # of the last batch
        self._responding.set_result(None)
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def check_room(self) -> None:
        """Raise Overloaded if too much waits already."""
        with self._changed:
            if len(self._waiting) >= self._max_waiting or self._waiting_bytes >= MAX_WAITING_BYTES:
                raise Overloaded(f"{len(self._waiting)} requests wait already: try again later")

    def submit(self, request: TritonRequest, image_request: ImageRequest) -> None:
        """Load a request's images when there is room, and respond. Call check_room first."""
        with self._changed:
            self._waiting[request] = image_request
            self._waiting_bytes += image_request.num_bytes
            self._changed.notify_all()

    def export(self) -> None:
        """Update the metrics."""
        self._gauge.update(len(self._waiting))
        self._instance.export_counts()

    def close(self) -> None:
        """Refuse what still waits, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._responder.shutdown()
        for request in self._take(tuple(self._waiting.items())):
            request.refuse(Stopping("the server is shutting down: ask another one"))
        self._instance.close()

    def _run(self) -> None:
        while self._await_work():
            try:
                self._drop_late()
                has_loaded = self._load_next()
                self.export()
            except Exception as exc:  # nobody knows whose fault it is, and the others wait on
                report(exc)
                has_loaded = False
            if not has_loaded:
                time.sleep(POLL_SECONDS)

    def _await_work(self) -> bool:
        """Return True once something waits, or False once this is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return not self._closed

    def _drop_late(self) -> None:
        """Refuse the requests whose time is up, or whose clients have gone."""
        if time.monotonic() < self._watched + WATCH_SECONDS:
            return
        for request, image_request in tuple(self._waiting.items()):
            try:
                request.deadline.left()
            except Exception as exc:
                self._take([(request, image_request)])
                request.refuse(report(exc))
        self._watched = time.monotonic()

    def _load_next(self) -> bool:
        """Load as many of the first requests as there is room for. Returns whether there was any."""
        batch = self._next_batch()
        sizes = [image_request.num_images for _, image_request in batch]
        results: Sequence[Loaded | Future[Loaded]]
        try:
            entered = self._backpressure.enter(sizes)
        except Exception as exc:
            requests, images, began, results = self._take(batch), 0, time.monotonic(), [report(exc)] * len(batch)
        else:
            batch, images, began = batch[:entered], sum(sizes[:entered]), time.monotonic()
            requests = self._take(batch)
            results = apart(self._loader.load_requests, [image_request for _, image_request in batch])
        if requests:
            wait([self._responding])  # at most one batch is loaded ahead
            self._responding = self._responder.submit(self._respond_to_batch, requests, results, images, began)
        return bool(requests)

    def _next_batch(self) -> list[tuple[TritonRequest, ImageRequest]]:
        """The first requests, with as many images as Triton would put into a batch; at least one request."""
        batch: list[tuple[TritonRequest, ImageRequest]] = []
        left = self._instance.max_batch
        with self._changed:
            for request, image_request in islice(self._waiting.items(), left):
                left -= image_request.num_images
                if batch and left < 0:
                    break
                batch.append((request, image_request))
        return batch

    def _take(self, batch: Sequence[tuple[TritonRequest, ImageRequest]]) -> list[TritonRequest]:
        """The requests of a batch, which wait no more."""
        with self._changed:
            for request, image_request in batch:
                del self._waiting[request]
                self._waiting_bytes -= image_request.num_bytes
        return [request for request, _ in batch]

    def _respond_to_batch(self, *batch: Any) -> None:  # noqa: ANN401
        try:
            self._respond(*batch)
            self._instance.export_counts()
        except Exception as exc:  # nobody knows whose fault it is, and the others wait on
            report(exc)

    def _respond(
        self, requests: Sequence[TritonRequest], results: Sequence[Loaded | Future[Loaded]], entered: int, began: float
    ) -> None:
        """Respond to each request: now, or once its slow images are loaded. So many images leave with them."""
        with suppress(Exception):  # a count that fails keeps nobody waiting
            loaded = sum(len(result) for result in results if not isinstance(result, BlipstreamError | Future))
            self._backpressure.hand_over(entered, loaded)
        for request, result in zip(requests, results, strict=True):
            if isinstance(result, Future):
                result.add_done_callback(partial(self._respond_later, request, began))
            elif isinstance(result, BlipstreamError):
                request.refuse(result)
            else:
                with suppress(Exception):  # its client has gone, and the others wait
                    request.send(request.response({"pixels": result}, time.monotonic() - began))

    def _respond_later(self, request: TritonRequest, began: float, loading: Future[Loaded]) -> None:
        self._respond([request], [loading.result()], 0, began)
        self._instance.export_counts()
