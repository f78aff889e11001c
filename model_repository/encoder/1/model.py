# SPDX-License-Identifier: Apache-2.0
"""Pixels to image_embeds: the Triton adapter of blipstream.vision."""

import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from blipstream.config import of_one_checkpoint
from blipstream.errors import BlipstreamError, apart, report, triton_error
from blipstream.options import refuse_parameters
from blipstream.serving.adapter import device_of
from blipstream.serving.backpressure import Backpressure
from blipstream.serving.metrics import Results
from blipstream.serving.telemetry import Journal, id_of
from blipstream.vision import load_encoder


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        runtime, self.max_batch = config["parameters"]["runtime"]["string_value"], config["max_batch_size"]
        folder = Path(args["model_repository"], args["model_version"], runtime)
        self.encoder = load_encoder(runtime, of_one_checkpoint(folder), device_of(args))
        self.encoder.warm_up()
        self.backpressure = Backpressure()
        self.backpressure.add_encoder()
        self.journal = Journal(args["model_name"])
        self.results = Results(pb_utils.MetricFamily, args["model_name"])

    def execute(self, requests):
        """A response for each, and what is wrong with one is nobody else's."""
        began = time.monotonic()
        results = [self.check(request) for request in requests]
        sound = [result for result in results if not isinstance(result, BlipstreamError)]
        images = sum(map(len, sound))
        try:
            with self.backpressure.encoding(images, leaves=images >= self.max_batch):
                encoded = iter(apart(self.encode, sound))
        except Exception as exc:
            encoded = iter([report(exc)] * len(sound))
        results = [result if isinstance(result, BlipstreamError) else next(encoded) for result in results]
        seconds = time.monotonic() - began
        responses = [self.answer(*each, seconds) for each in zip(requests, results, strict=True)]
        self.results.tell(self.journal)
        return responses

    def check(self, request):
        """A request's pixels, or why it is refused."""
        try:
            refuse_parameters(request, ("pixels",))
            pixels = pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy()
            self.encoder.check(pixels)
        except Exception as exc:
            return report(exc)
        return pixels

    def encode(self, batch):
        """Each request's tensor, of all encoded at once."""
        image_embeds = self.encoder.encode(np.concatenate(batch))
        ends = np.cumsum([len(pixels) for pixels in batch])
        return [self.pack(image_embeds[end - len(pixels) : end]) for pixels, end in zip(batch, ends, strict=True)]

    def answer(self, request, result, seconds):
        if isinstance(result, BlipstreamError):
            self.journal.refuse(id_of(request), result)
            return pb_utils.InferenceResponse(error=triton_error(pb_utils.TritonError, result))
        response = pb_utils.InferenceResponse([result])
        self.journal.answer(id_of(request), result.shape()[0], seconds)
        return response

    def pack(self, image_embeds):
        if isinstance(image_embeds, np.ndarray):
            return pb_utils.Tensor("image_embeds", image_embeds.astype(np.float16))
        # what lies on a GPU stays there: Triton hands it to the decoder as it is
        return pb_utils.Tensor.from_dlpack("image_embeds", image_embeds.half())
