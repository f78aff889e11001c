# SPDX-License-Identifier: Apache-2.0
"""Pixels to image_embeds: the Triton adapter of blipstream.vision."""

import time

import numpy as np
import triton_python_backend_utils as pb_utils

from blipstream.config import of_one_checkpoint
from blipstream.serving.adapter import ModelInstance, attempt, attempt_together
from blipstream.serving.backpressure import Backpressure
from blipstream.vision import load_encoder


class TritonPythonModel:
    def initialize(self, args):
        self.instance = ModelInstance(pb_utils, args)
        runtime = self.instance.parameters["runtime"]
        artifact = of_one_checkpoint(self.instance.folder / runtime)
        self.encoder = load_encoder(runtime, artifact, self.instance.device)
        self.encoder.warm_up()
        self.backpressure = Backpressure()
        self.backpressure.add_encoder()

    def execute(self, requests):
        """A response for each request. A request that is refused, or at which the encoder fails, spoils no other."""
        began = time.monotonic()
        requests = [self.instance.request(each) for each in requests]
        results = [attempt(self.read, request) for request in requests]
        results = attempt_together(self.encode, results)
        seconds = time.monotonic() - began
        responses = [request.response(each, seconds) for request, each in zip(requests, results, strict=True)]
        self.instance.export_counts()
        return responses

    def read(self, request):
        """A request's pixels, uint8 [B, H, W, 3]."""
        request.refuse_parameters(("pixels",))
        pixels = request.arrays("pixels")["pixels"]
        self.encoder.check(pixels)
        return pixels

    def encode(self, batch):
        """The outputs of each request, from one call of the encoder."""
        pixels = np.concatenate(batch)
        with self.backpressure.encoding(len(pixels), leaves=len(pixels) >= self.instance.max_batch):
            image_embeds = half(self.encoder.encode(pixels))
        ends = np.cumsum([len(each) for each in batch])
        return [{"image_embeds": image_embeds[end - len(each) : end]} for each, end in zip(batch, ends, strict=True)]


def half(image_embeds):
    """The same in f16, on the device where it lies."""
    return image_embeds.astype(np.float16) if isinstance(image_embeds, np.ndarray) else image_embeds.half()
