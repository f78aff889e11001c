# SPDX-License-Identifier: Apache-2.0
"""Pixels to image_embeds: the Triton adapter of blipstream.encoders."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from blipstream.backpressure import Backpressure
from blipstream.encoders import load_encoder
from blipstream.errors import InvalidInput


class TritonPythonModel:
    def initialize(self, args):
        runtime = json.loads(args["model_config"])["parameters"]["runtime"]["string_value"]
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        folder = Path(args["model_repository"], args["model_version"], runtime)
        self.encoder = load_encoder(runtime, folder, device)
        self.encoder.warm_up()
        self.backpressure = Backpressure()

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy() for request in requests]
        errors = [self.check(pixels) for pixels in inputs]
        batch = [pixels for pixels, error in zip(inputs, errors, strict=True) if error is None]
        with self.backpressure.at_work():
            image_embeds = self.encoder.encode(np.concatenate(batch)) if batch else None
        responses, start = [], 0
        for pixels, error in zip(inputs, errors, strict=True):
            if error is not None:
                responses.append(pb_utils.InferenceResponse(error=error))
                continue
            responses.append(pb_utils.InferenceResponse([self.pack(image_embeds[start : start + len(pixels)])]))
            start += len(pixels)
        return responses

    def check(self, pixels):
        try:
            self.encoder.check(pixels)
        except InvalidInput as exc:
            return pb_utils.TritonError(str(exc), pb_utils.TritonError.INVALID_ARG)
        return None

    def pack(self, image_embeds):
        if isinstance(image_embeds, np.ndarray):
            return pb_utils.Tensor("image_embeds", image_embeds.astype(np.float16))
        # what lies on a GPU stays there: Triton hands it to the decoder as it is
        return pb_utils.Tensor.from_dlpack("image_embeds", image_embeds.half())
