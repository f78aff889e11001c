# SPDX-License-Identifier: Apache-2.0
"""Image embeddings to captions: the Triton adapter of blipstream.engine."""

from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from blipstream.engine import load_engine
from blipstream.errors import InvalidInput
from blipstream.options import OPTION_NAMES, DecodingOptions


class TritonPythonModel:
    def initialize(self, args):
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        self.engine = load_engine(Path(args["model_repository"], args["model_version"], "artifact"), device)

    def execute(self, requests):
        jobs = [self.prepare(request) for request in requests]
        self.engine.generate(row for job in jobs if isinstance(job, list) for row in job)
        return [self.respond(job) for job in jobs]

    def prepare(self, request):
        """The engine's requests, one an image, or the error that the sender gets."""
        # without a copy, wherever it lies
        image_embeds = torch.from_dlpack(pb_utils.get_input_tensor_by_name(request, "image_embeds").to_dlpack())
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in OPTION_NAMES}
        given = {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}
        try:
            options = [
                DecodingOptions.from_tensors({name: values[row] for name, values in given.items()})
                for row in range(len(image_embeds))
            ]
            DecodingOptions.check_together(options)
            return [
                self.engine.request(embeds, each)
                for embeds, each in zip(image_embeds, options, strict=True)
            ]
        except InvalidInput as exc:
            return pb_utils.TritonError(str(exc), pb_utils.TritonError.INVALID_ARG)

    def respond(self, job):
        if not isinstance(job, list):
            return pb_utils.InferenceResponse(error=job)
        captions = [row.captions for row in job]
        longest = max(caption.num_tokens for row in captions for caption in row)
        columns = {
            "caption": (np.object_, lambda caption: caption.text),
            "score": (np.float32, lambda caption: caption.score),
            "num_tokens": (np.int32, lambda caption: caption.num_tokens),
            "token_scores": (
                np.float32,
                lambda caption: caption.token_scores + [0.0] * (longest - caption.num_tokens),
            ),
        }
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(name, np.array([[read(caption) for caption in row] for row in captions], dtype))
                for name, (dtype, read) in columns.items()
            ]
        )
