# SPDX-License-Identifier: Apache-2.0
"""Encoded image bytes to pixels: the Triton adapter of blipstream.loader, or of blipstream.gpu_loader on a GPU."""

import json
import time
from pathlib import Path

import triton_python_backend_utils as pb_utils

from blipstream.backpressure import Backpressure
from blipstream.config import CheckpointConfig
from blipstream.errors import BlipstreamError, InvalidInput, report
from blipstream.images import DEFAULT_RESIZE_MODE
from blipstream.journal import Journal, id_of
from blipstream.loader import ImageLoader, Request
from blipstream.metrics import Results


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
            self.loader = ImageLoader(
                image_size,
                processes=sum(group["count"] for group in config["instance_group"]),
                jpeg_scaling=config["parameters"]["jpeg_scaling"]["string_value"],
            )

    def execute(self, requests):
        """All requests' images at once, each request's answer its own."""
        try:
            self.backpressure.wait_for_room()
            began = time.monotonic()
            results = self.loader.load_requests([self.unpack(request) for request in requests])
            self.backpressure.admit(sum(len(result) for result in results if not isinstance(result, InvalidInput)))
            seconds = time.monotonic() - began
        except Exception as exc:
            results, seconds = [report(exc)] * len(requests), 0
        responses = [self.respond(*each, seconds) for each in zip(requests, results, strict=True)]
        self.results.tell(self.journal)
        return responses

    def unpack(self, request):
        names = ("image", "resize_mode", "pixels")
        tensors = [pb_utils.get_input_tensor_by_name(request, name) for name in names]
        image, mode, pixels = (tensor and tensor.as_numpy() for tensor in tensors)
        images = [] if image is None else list(image.flat)
        modes = [DEFAULT_RESIZE_MODE] * len(images) if mode is None else [m.decode(errors="replace") for m in mode.flat]
        return Request(images, modes, pixels)

    def respond(self, request, result, seconds):
        if isinstance(result, BlipstreamError):
            self.journal.refuse(id_of(request), result)
            status = getattr(pb_utils.TritonError, result.status)
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(result), status))
        self.journal.answer(id_of(request), len(result), seconds)
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", result)])
