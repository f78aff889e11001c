# SPDX-License-Identifier: Apache-2.0
"""Encoded image bytes to pixels: the Triton adapter of blipstream.loader, or of blipstream.gpu_loader on a GPU."""

import json
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import triton_python_backend_utils as pb_utils

from blipstream.backpressure import Backpressure
from blipstream.config import CheckpointConfig
from blipstream.errors import BlipstreamError, report
from blipstream.journal import Journal, id_of
from blipstream.loader import ImageLoader, Request
from blipstream.metrics import Results
from blipstream.patience import Patience


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"], args["model_version"], "artifact")
        self.journal = Journal(args["model_name"])
        self.results = Results(pb_utils.MetricFamily, args["model_name"])
        self.backpressure = Backpressure()
        image_size = CheckpointConfig.load(folder).vision.image_size
        if args["model_instance_kind"] == "GPU":
            from blipstream.gpu_loader import GPUImageLoader

            self.loader = GPUImageLoader(image_size, f"cuda:{args['model_instance_device_id']}")
        else:
            processes = sum(group["count"] for group in config["instance_group"])
            self.loader = ImageLoader(image_size, config["parameters"]["jpeg_scaling"]["string_value"], processes)

    def execute(self, requests):
        """As many at a time as there is room for, answered while others wait."""
        waiting = [(r, s := r.get_response_sender(), Patience(r.timeout(), s.is_cancelled)) for r in requests]
        while waiting:
            del waiting[: self.load(waiting)]

    def load(self, waiting):
        """How many have entered: all of their images were loaded at once, but for those that may take long."""
        entered, began = len(waiting), time.monotonic()
        try:
            entered = self.backpressure.enter(len(waiting))
            began = time.monotonic()
            asked = [Request.of({t.name(): t.as_numpy() for t in r.inputs()}, p) for r, _, p in waiting[:entered]]
            with self.backpressure.at_work():
                results = self.loader.load_requests(asked)
        except Exception as exc:
            results = [report(exc)] * entered
        self.settle(waiting, results, entered, began)
        return entered

    def settle(self, waiting, results, entered, began):
        """Answer each on its own, at once or when it is loaded; so many of them have a place in what is under way."""
        loaded = sum(len(result) for result in results if not isinstance(result, BlipstreamError | Future))
        with suppress(Exception):  # whoever waits is answered, even if nobody can count him
            self.backpressure.correct(loaded - entered)
        for each, result in zip(waiting, results, strict=False):
            if isinstance(result, Future):
                result.add_done_callback(lambda done, each=each: self.settle([each], [done.result()], 0, began))
            else:
                self.answer(*each, result, time.monotonic() - began)
        self.results.tell(self.journal)

    def answer(self, request, sender, _, result, seconds):
        try:  # in vain where shared memory is full
            if not isinstance(result, BlipstreamError):
                response = pb_utils.InferenceResponse([pb_utils.Tensor("pixels", result)])
                self.journal.answer(id_of(request), len(result), seconds)
        except Exception as exc:
            result = report(exc)
        if isinstance(result, BlipstreamError):
            self.journal.refuse(id_of(request), result)
            error = pb_utils.TritonError(str(result), getattr(pb_utils.TritonError, result.status))
            response = pb_utils.InferenceResponse(error=error)
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
