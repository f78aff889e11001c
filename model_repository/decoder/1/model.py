# SPDX-License-Identifier: Apache-2.0
"""Image embeddings to captions and their explanations: the Triton adapter of blipstream.decoding.

It explains, too, because another model would be another process, with the weights once more.
"""

from functools import partial
from itertools import repeat

import triton_python_backend_utils as pb_utils

from blipstream.decoding import load_engine
from blipstream.errors import InvalidInput
from blipstream.options import EXPLAIN_NAMES, OPTION_NAMES
from blipstream.serving.adapter import ModelInstance
from blipstream.serving.decoding_service import DecodingService, as_torch
from blipstream.serving.responses import caption_outputs, explanation_outputs

PASSED_ON = "match_pixels"  # of a second encoder, which so begins when the captions are there: build/model_configs.py
INPUTS = ("image_embeds", *OPTION_NAMES, *EXPLAIN_NAMES, "rerank", PASSED_ON)


class TritonPythonModel:
    def initialize(self, args):
        self.instance = ModelInstance(pb_utils, args)
        self.engine = load_engine(self.instance.folder / "artifact", self.instance.device, served=True)
        # what cannot start soon waits in Triton's queue, which has a limit and drops what is too late
        self.service = DecodingService(self.instance, self.engine, max_waiting=self.engine.max_rows)

    def execute(self, requests):
        """Submit requests. Triton brings more before they have their responses, so they decode together."""
        for request in map(self.instance.request, requests):
            with request.refused_on_error():
                self.submit(request)

    def submit(self, request):
        request.refuse_parameters(INPUTS)
        image_embeds = self.image_embeds(request)
        self.service.count_arrived(len(image_embeds))
        options = self.engine.request_options(request.arrays(*INPUTS[1:]), len(image_embeds), self.instance.defaults)
        images = self.engine.requests(
            image_embeds,
            options.decoding,
            request.id,
            request.trace_context,
            given=options.given,
            explain=options.explain if request.wants("words", "attention") else repeat(None),
        )
        deltas = []
        for image in images:
            self.service.wait_for_room()
            self.service.submit(request, image, partial(self.receive, request, images, deltas))

    def image_embeds(self, request):
        tensors = request.tensors("image_embeds")
        if not tensors:  # Triton only counts the inputs, so an option may stand in its place
            raise InvalidInput("image_embeds must be given: send the encoder's output")
        return as_torch(tensors["image_embeds"])

    def receive(self, request, images, deltas, delta):
        """Respond when all images are finished. If that fails, the scheduler calls again, with the error."""
        deltas.append(delta)
        if len(deltas) < len(images):
            return
        error = next((each.error for each in deltas if each.error), None)
        if error:
            error = request.deadline.why_over() or error  # a moment later, since its time may have been up at once
            self.instance.refusals.put(partial(request.send_error, error))
        else:
            outputs = caption_outputs([image.captions for image in images])
            explanations = [image.explanation for image in images if image.explanation]
            if explanations:
                outputs |= explanation_outputs(explanations)
            for name, pixels in request.tensors(PASSED_ON).items():
                outputs[name] = as_torch(pixels)
                self.service.hand_over(len(images))
            request.send_outputs(outputs)

    def finalize(self):
        self.service.close()
