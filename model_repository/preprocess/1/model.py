# SPDX-License-Identifier: Apache-2.0
"""Encoded image bytes to pixels: the Triton adapter of blipstream.loader, or of blipstream.gpu_loader on a GPU."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from blipstream.backpressure import Backpressure
from blipstream.config import CheckpointConfig
from blipstream.errors import InvalidInput
from blipstream.images import DEFAULT_RESIZE_MODE
from blipstream.journal import Journal
from blipstream.loader import ImageLoader


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"], args["model_version"], "artifact")
        self.journal = Journal(args["model_name"])
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
        self.backpressure.wait_for_room()
        jobs = [self.unpack(request) for request in requests]
        images, modes = ([value for job in jobs for value in job[part]] for part in (0, 1))
        loaded = iter(self.loader.load(images, modes))
        return [
            self.respond(request, [next(loaded) for _ in images])
            for request, (images, _) in zip(requests, jobs, strict=True)
        ]

    def unpack(self, request):
        image = pb_utils.get_input_tensor_by_name(request, "image")
        # Triton lets an optional input stand for one that is missing
        images = list(image.as_numpy().flat) if image else [b""]
        modes = pb_utils.get_input_tensor_by_name(request, "resize_mode")
        if modes is None:
            return images, [DEFAULT_RESIZE_MODE] * len(images)
        return images, [mode.decode(errors="replace") for mode in modes.as_numpy().flat]

    def respond(self, request, loaded):
        for result in loaded:
            if isinstance(result, InvalidInput):
                self.journal.refuse(request.request_id(), result)
                error = pb_utils.TritonError(str(result), pb_utils.TritonError.INVALID_ARG)
                return pb_utils.InferenceResponse(error=error)
        self.backpressure.admit(len(loaded))
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", np.stack(loaded))])
