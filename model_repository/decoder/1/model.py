# SPDX-License-Identifier: Apache-2.0
"""Image embeddings to captions: the Triton adapter of blipstream.engine."""

from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from blipstream.engine import Engine
from blipstream.errors import InvalidInput
from blipstream.options import OPTION_NAMES, DecodingOptions


class TritonPythonModel:
    def initialize(self, args):
        self.engine = Engine.load(Path(args["model_repository"], args["model_version"], "artifact"))

    def execute(self, requests):
        jobs = [self.prepare(request) for request in requests]
        self.engine.generate(row for job in jobs if isinstance(job, list) for row in job)
        return [self.respond(job) for job in jobs]

    def prepare(self, request):
        """The engine's requests, one an image, or the error that the sender gets."""
        image_embeds = pb_utils.get_input_tensor_by_name(request, "image_embeds").as_numpy()
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in OPTION_NAMES}
        given = {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}
        try:
            return [
                self.engine.request(
                    torch.from_numpy(embeds),
                    DecodingOptions.from_tensors({name: values[row] for name, values in given.items()}),
                )
                for row, embeds in enumerate(image_embeds)
            ]
        except InvalidInput as exc:
            return pb_utils.TritonError(str(exc), pb_utils.TritonError.INVALID_ARG)

    def respond(self, job):
        if not isinstance(job, list):
            return pb_utils.InferenceResponse(error=job)
        captions = [row.captions for row in job]

        def tensor(name, attribute, dtype):
            values = [[getattr(caption, attribute) for caption in row] for row in captions]
            return pb_utils.Tensor(name, np.array(values, dtype))

        return pb_utils.InferenceResponse(
            [
                tensor("caption", "text", np.object_),
                tensor("score", "score", np.float32),
                tensor("num_tokens", "num_tokens", np.int32),
            ]
        )
