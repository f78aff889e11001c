# SPDX-License-Identifier: Apache-2.0
"""Image bytes to a caption, piece by piece: the Triton adapter of blipstream.decoding.

It calls preprocess and encoder, and decodes itself: an ensemble would not hand on that a client has gone.
"""

from pathlib import Path

import torch
import triton_python_backend_utils as pb_utils

from blipstream.decoding import load_engine
from blipstream.errors import parse_error, report, triton_error
from blipstream.options import OPTION_NAMES, refuse_parameters
from blipstream.serving import responses
from blipstream.serving.adapter import deadline_of, device_of
from blipstream.serving.service import DecodingService
from blipstream.serving.telemetry import id_of


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]).with_name("decoder").joinpath(args["model_version"], "artifact")
        engine = load_engine(folder, device_of(args), served=True)
        self.service = DecodingService(engine, pb_utils.MetricFamily, args["model_name"])

    async def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                await self.start(request, sender)
            except Exception as exc:
                self.fail(sender, error := report(exc))
                self.service.journal.refuse(id_of(request), error)

    async def start(self, request, sender):
        self.service.scheduler.check_room()  # before anything is computed for it
        refuse_parameters(request)
        lap, deadline = self.service.metrics.stopwatch().lap, deadline_of(request, sender)
        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        (options,) = self.service.engine.options({n: tensors[n].as_numpy() for n in OPTION_NAMES if n in tensors}, 1)
        images = [tensors[n] for n in ("image", "resize_mode") if n in tensors]
        pixels = await self.call(request, deadline, "preprocess", images, "pixels")
        try:
            image_embeds = await self.call(request, deadline, "encoder", [pixels], "image_embeds")
        finally:
            self.service.arrive(1)
        deadline.left()
        row = self.service.engine.request(torch.from_dlpack(image_embeds.to_dlpack())[0], options)
        row.id, row.trace_context = id_of(request), request.trace().get_context()
        scheduler = self.service.scheduler
        scheduler.submit(row, lambda piece: self.send(sender, row, lap, piece), sender.is_cancelled, streams=True)

    async def call(self, caller, deadline, model, inputs, output):
        wanted = {"model_name": model, "inputs": inputs, "requested_output_names": [output], "timeout": deadline.left()}
        # it would crash Triton 2.51 to hand on the trace, so the span is our own
        with self.service.journal.span(model, id_of(caller), caller.trace().get_context()):
            response = await pb_utils.InferenceRequest(id_of(caller), **wanted).async_exec()
        if error := response.error():
            raise parse_error(error.message())
        return pb_utils.get_output_tensor_by_name(response, output)

    def send(self, sender, row, lap, piece):
        lap(piece)
        if piece.error:
            self.fail(sender, piece.error)
            return
        outputs = [pb_utils.Tensor(*output) for output in responses.piece_tensors(piece, row.captions).items()]
        sender.send(pb_utils.InferenceResponse(outputs))
        if piece.finish_reason:  # apart, for what fails with it closes the sender, which could not even say so
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def fail(self, sender, error):
        error = triton_error(pb_utils.TritonError, error)
        sender.send(pb_utils.InferenceResponse(error=error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self):
        self.service.close()
