# SPDX-License-Identifier: Apache-2.0
"""Encoded image bytes to pixels: the Triton adapter of blipstream.loader, or of blipstream.gpu_loader on a GPU."""

import json
import time
from pathlib import Path

import triton_python_backend_utils as pb_utils

from blipstream.backpressure import Backpressure
from blipstream.config import CheckpointConfig, of_one_checkpoint
from blipstream.errors import BlipstreamError, apart, report
from blipstream.journal import Journal, id_of
from blipstream.loader import ImageLoader, Request
from blipstream.metrics import Results
from blipstream.options import refuse_parameters
from blipstream.patience import Patience


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"], args["model_version"], "artifact")
        self.journal = Journal(args["model_name"])
        self.results = Results(pb_utils.MetricFamily, args["model_name"])
        self.backpressure = Backpressure()
        side = CheckpointConfig.load(of_one_checkpoint(folder)).vision.image_size
        if args["model_instance_kind"] == "GPU":
            from blipstream.gpu_loader import GPUImageLoader

            self.loader = GPUImageLoader(side, f"cuda:{args['model_instance_device_id']}")
        else:
            processes = sum(group["count"] for group in config["instance_group"])
            scaling = config["parameters"]["jpeg_scaling"]["string_value"]
            self.loader = ImageLoader(side, processes=processes, jpeg_scaling=scaling)

    def execute(self, requests):
        """As many at a time as there is room for, answered while others wait; what is wrong is told before that."""
        waiting = []
        for request in requests:
            sender = request.get_response_sender()
            try:
                refuse_parameters(request)
                tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
                patience = Patience(request.timeout(), sender.is_cancelled)
                waiting.append((request, sender, Request.of(tensors, patience)))
            except Exception as exc:
                self.answer(request, sender, report(exc))
        while waiting:
            del waiting[: self.load(waiting)]
        self.results.tell(self.journal)

    def load(self, waiting):
        """How many were answered, each on its own, after all of their images were loaded at once."""
        entered, began = len(waiting), time.monotonic()
        try:
            entered, began = self.backpressure.enter(len(waiting)), time.monotonic()
            results = apart(self.loader.load_requests, [loading for _, _, loading in waiting[:entered]])
            loaded = sum(len(result) for result in results if not isinstance(result, BlipstreamError))
            self.backpressure.hand_on(entered, loaded)
        except Exception as exc:
            results = [report(exc)] * entered
        for (request, sender, _), result in zip(waiting, results, strict=False):
            self.answer(request, sender, result, time.monotonic() - began)
        self.results.tell(self.journal)
        return entered

    def answer(self, request, sender, result, seconds=0.0):
        try:
            if not isinstance(result, BlipstreamError):
                response = pb_utils.InferenceResponse([pb_utils.Tensor("pixels", result)])
                self.journal.answer(id_of(request), len(result), seconds)
        except Exception as exc:  # as where shared memory is full
            result = report(exc)
        if isinstance(result, BlipstreamError):
            self.journal.refuse(id_of(request), result)
            error = pb_utils.TritonError(str(result), getattr(pb_utils.TritonError, result.status))
            response = pb_utils.InferenceResponse(error=error)
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
