# SPDX-License-Identifier: Apache-2.0
"""Encoded image bytes to pixels: the Triton adapter of blipstream.images."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from blipstream.config import CheckpointConfig
from blipstream.errors import InvalidInput
from blipstream.images import load_pixels


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"], args["model_version"], "artifact")
        self.image_size = CheckpointConfig.load(folder).vision.image_size

    def execute(self, requests):
        return [self.respond(request) for request in requests]

    def respond(self, request):
        images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
        modes = pb_utils.get_input_tensor_by_name(request, "resize_mode")
        # without the input, load_pixels has its own default
        modes = (
            [()] * images.size
            if modes is None
            else [(mode.decode(errors="replace"),) for mode in modes.as_numpy().flat]
        )
        try:
            pixels = [
                load_pixels(image, self.image_size, *mode) for image, mode in zip(images.flat, modes, strict=True)
            ]
        except InvalidInput as exc:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(exc), pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", np.stack(pixels))])
