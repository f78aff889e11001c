# SPDX-License-Identifier: Apache-2.0
"""Image bytes to a caption, piece by piece: the Triton adapter of blipstream.decoding.

It calls preprocess and encoder, and decodes itself: an ensemble would not pass on that a client has gone.
"""

from functools import partial

import triton_python_backend_utils as pb_utils

from blipstream.decoding import load_engine
from blipstream.options import OPTION_NAMES
from blipstream.serving.adapter import ModelInstance
from blipstream.serving.decoding_service import DecodingService, as_torch
from blipstream.serving.responses import delta_outputs


class TritonPythonModel:
    def initialize(self, args):
        self.instance = ModelInstance(pb_utils, args)
        artifact = self.instance.folder_of("decoder") / "artifact"
        self.engine = load_engine(artifact, self.instance.device, served=True)
        self.service = DecodingService(self.instance, self.engine)

    async def execute(self, requests):
        for request in map(self.instance.request, requests):
            with request.refused_on_error():
                await self.submit(request)

    async def submit(self, request):
        self.service.check_room()  # before anything is computed for it
        request.refuse_parameters()
        timer = self.service.text_timer()
        arrays = request.arrays(*OPTION_NAMES)
        (options,) = self.engine.options(arrays, 1, self.instance.defaults)
        inputs = request.tensors("image", "resize_mode", "adapter").values()  # preprocess refuses an unknown adapter
        pixels = await request.call("preprocess", inputs, "pixels")
        try:
            image_embeds = await request.call("encoder", [pixels], "image_embeds")
        finally:
            self.service.count_arrived(1)
        request.deadline.left()
        image_embeds = as_torch(image_embeds)[0]
        image = self.engine.request(image_embeds, options, request.id, request.trace_context)
        self.service.submit(request, image, partial(self.send, request, image, timer), streams=True)

    def send(self, request, image, timer, delta):
        timer.observe(delta.text)
        if delta.error:
            request.send_error(delta.error)
            return
        request.stream_outputs(delta_outputs(delta, image.captions))
        if delta.finish_reason:  # apart: if a response fails that also ends the stream, its error cannot be sent
            request.end_stream()

    def finalize(self):
        self.service.close()
