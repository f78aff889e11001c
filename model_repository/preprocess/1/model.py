# SPDX-License-Identifier: Apache-2.0
"""Encoded image bytes to pixels: the Triton adapter of blipstream.images."""

import time
from concurrent.futures import Future
from contextlib import suppress
from functools import partial

import triton_python_backend_utils as pb_utils

from blipstream.config import CheckpointConfig, of_one_checkpoint
from blipstream.errors import BlipstreamError, apart, report
from blipstream.images import load_loader
from blipstream.options import INPUT_NAMES
from blipstream.serving.adapter import ModelInstance
from blipstream.serving.backpressure import Backpressure
from blipstream.serving.load_request import load_request


class TritonPythonModel:
    def initialize(self, args):
        self.instance = ModelInstance(pb_utils, args)
        checkpoint = CheckpointConfig.load(of_one_checkpoint(self.instance.folder / "artifact"))
        image_size, self.positions = checkpoint.vision.image_size, checkpoint.text.max_positions
        self.loader = load_loader(self.instance.device, image_size, self.instance.count, **self.instance.parameters)
        self.backpressure = Backpressure()

    def execute(self, requests):
        """Refuse at once what is wrong, and load as many of the others at a time as there is room for."""
        waiting = []
        for request in map(self.instance.request, requests):
            with request.refused_on_error():
                waiting.append((request, self.read(request)))
        self.instance.export_counts()
        while waiting:
            del waiting[: self.load(waiting)]

    def read(self, request):
        request.refuse_parameters()
        return load_request(request.arrays("pixels", *INPUT_NAMES), request.deadline, self.positions)

    def load(self, waiting):
        """Wait for room, load the requests that fit in, and return how many these are."""
        entered, images = len(waiting), 0
        began = time.monotonic()
        try:
            sizes = [image_request.num_images for _, image_request in waiting]
            entered = self.backpressure.enter(sizes)
            began, images = time.monotonic(), sum(sizes[:entered])
            results = apart(self.loader.load_requests, [image_request for _, image_request in waiting[:entered]])
        except Exception as exc:
            results = [report(exc)] * entered
        self.respond([request for request, _ in waiting[:entered]], results, images, began)
        return entered

    def respond(self, requests, results, entered, began):
        """Respond to each request: now, or once its slow images are loaded. `entered` counts their images."""
        with suppress(Exception):  # a count that fails keeps nobody waiting
            loaded = sum(len(result) for result in results if not isinstance(result, BlipstreamError | Future))
            self.backpressure.hand_over(entered, loaded)
        for request, result in zip(requests, results, strict=True):
            if isinstance(result, Future):
                result.add_done_callback(partial(self.respond_later, request, began))
            else:
                outputs = result if isinstance(result, BlipstreamError) else {"pixels": result}
                request.send(request.response(outputs, time.monotonic() - began))
        self.instance.export_counts()

    def respond_later(self, request, began, loading):
        self.respond([request], [loading.result()], 0, began)
