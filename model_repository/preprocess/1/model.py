# SPDX-License-Identifier: Apache-2.0
"""Encoded image bytes to pixels: the Triton adapter of blipstream.images."""

import json
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import triton_python_backend_utils as pb_utils

from blipstream.config import CheckpointConfig, of_one_checkpoint
from blipstream.errors import BlipstreamError, apart, report, triton_error
from blipstream.images import load_loader
from blipstream.images.loader import ImageRequest
from blipstream.options import refuse_parameters
from blipstream.serving.adapter import deadline_of, device_of
from blipstream.serving.backpressure import Backpressure
from blipstream.serving.metrics import Results
from blipstream.serving.telemetry import Journal, id_of


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"], args["model_version"], "artifact")
        self.journal, self.results = Journal(args["model_name"]), Results(pb_utils.MetricFamily, args["model_name"])
        self.backpressure, checkpoint = Backpressure(), CheckpointConfig.load(of_one_checkpoint(folder))
        self.positions, processes = checkpoint.text.max_positions, sum(one["count"] for one in config["instance_group"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.loader = load_loader(device_of(args), checkpoint.vision.image_size, processes, **parameters)

    def execute(self, requests):
        """As many at a time as there is room for, answered while others wait; what is wrong is told before that."""
        waiting = []
        for request in requests:
            sender, began = request.get_response_sender(), time.monotonic()
            try:
                refuse_parameters(request)
                inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
                waiting.append((request, sender, ImageRequest.of(inputs, deadline_of(request, sender), self.positions)))
            except Exception as exc:
                self.answer(request, sender, report(exc), began)
        self.results.tell(self.journal)
        while waiting:
            del waiting[: self.load(waiting)]

    def load(self, waiting):
        """How many have entered: all of their images were loaded at once, but for those that may take long."""
        entered, sizes, began = len(waiting), [loading.num_images for *_, loading in waiting], time.monotonic()
        try:
            entered, began = self.backpressure.enter(sizes), time.monotonic()
            results = apart(self.loader.load_requests, [loading for _, _, loading in waiting[:entered]])
        except Exception as exc:
            results = [report(exc)] * entered
        self.settle(waiting, results, sum(sizes[:entered]), began)
        return entered

    def settle(self, waiting, results, entered, began):
        """Answer each on its own, at once or when it is loaded; so many images of them had a place in preprocess."""
        with suppress(Exception):  # whoever waits is answered, even if nobody can count him
            loaded = sum(len(result) for result in results if not isinstance(result, BlipstreamError | Future))
            self.backpressure.hand_on(entered, loaded)
        for each, result in zip(waiting, results, strict=False):
            if isinstance(result, Future):
                result.add_done_callback(lambda done, each=each: self.settle([each], [done.result()], 0, began))
            else:
                self.answer(*each[:2], result, began)
        self.results.tell(self.journal)

    def answer(self, request, sender, result, began):
        try:
            if isinstance(result, BlipstreamError):
                raise result
            response = pb_utils.InferenceResponse([pb_utils.Tensor("pixels", result)])  # fails if shared memory is full
            self.journal.answer(id_of(request), len(result), time.monotonic() - began)
        except Exception as exc:
            self.journal.refuse(id_of(request), error := report(exc))
            response = pb_utils.InferenceResponse(error=triton_error(pb_utils.TritonError, error))
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
