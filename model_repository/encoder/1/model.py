# SPDX-License-Identifier: Apache-2.0
"""Pixels to image_embeds: the Triton adapter of blipstream.encoders."""

import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from blipstream.backpressure import Backpressure
from blipstream.config import of_one_checkpoint
from blipstream.encoders import load_encoder
from blipstream.errors import InvalidInput, report, without_frames
from blipstream.journal import Journal, id_of
from blipstream.metrics import Results


class TritonPythonModel:
    def initialize(self, args):
        runtime = json.loads(args["model_config"])["parameters"]["runtime"]["string_value"]
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        folder = Path(args["model_repository"], args["model_version"], runtime)
        self.encoder = load_encoder(runtime, of_one_checkpoint(folder), device)
        self.encoder.warm_up()
        self.backpressure = Backpressure()
        self.journal = Journal(args["model_name"])
        self.results = Results(pb_utils.MetricFamily, args["model_name"])

    def execute(self, requests):
        began = time.monotonic()
        inputs = [pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy() for request in requests]
        errors = [self.check(pixels) for pixels in inputs]
        batch = [pixels for pixels, error in zip(inputs, errors, strict=True) if error is None]
        try:
            with self.backpressure.at_work():
                image_embeds = self.encoder.encode(np.concatenate(batch)) if batch else None
        except Exception as exc:
            failure = report(exc)
            errors = [error or failure for error in errors]
        seconds = time.monotonic() - began
        responses, start = [], 0
        for request, pixels, error in zip(requests, inputs, errors, strict=True):
            if error:
                responses.append(self.refuse(request, error))
                continue
            responses.append(pb_utils.InferenceResponse([self.pack(image_embeds[start : start + len(pixels)])]))
            self.journal.answer(id_of(request), len(pixels), seconds)
            start += len(pixels)
        self.results.tell(self.journal)
        return responses

    def check(self, pixels):
        try:
            self.encoder.check(pixels)
        except InvalidInput as exc:
            return without_frames(exc)
        return None

    def refuse(self, request, error):
        self.journal.refuse(id_of(request), error)
        status = getattr(pb_utils.TritonError, error.status)
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), status))

    def pack(self, image_embeds):
        if isinstance(image_embeds, np.ndarray):
            return pb_utils.Tensor("image_embeds", image_embeds.astype(np.float16))
        # what lies on a GPU stays there: Triton hands it to the decoder as it is
        return pb_utils.Tensor.from_dlpack("image_embeds", image_embeds.half())
