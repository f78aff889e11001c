# SPDX-License-Identifier: Apache-2.0
"""Pixels to image_embeds on a CPU: the Triton adapter of blipstream.encoders."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from blipstream.encoders.openvino import OpenVINOEncoder
from blipstream.errors import InvalidInput


class TritonPythonModel:
    def initialize(self, args):
        self.encoder = OpenVINOEncoder(Path(args["model_repository"], args["model_version"], "openvino"))

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy() for request in requests]
        errors = [self.check(pixels) for pixels in inputs]
        batch = [pixels for pixels, error in zip(inputs, errors, strict=True) if error is None]
        image_embeds = self.encoder.encode(np.concatenate(batch)).astype(np.float16) if batch else np.empty(0)
        responses, start = [], 0
        for pixels, error in zip(inputs, errors, strict=True):
            if error is not None:
                responses.append(pb_utils.InferenceResponse(error=error))
                continue
            tensor = pb_utils.Tensor("image_embeds", image_embeds[start : start + len(pixels)])
            responses.append(pb_utils.InferenceResponse([tensor]))
            start += len(pixels)
        return responses

    def check(self, pixels):
        try:
            self.encoder.check(pixels)
        except InvalidInput as exc:
            return pb_utils.TritonError(str(exc), pb_utils.TritonError.INVALID_ARG)
        return None
