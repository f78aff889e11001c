# SPDX-License-Identifier: Apache-2.0
"""Image bytes to a caption, piece by piece: the Triton adapter of blipstream.scheduler.

It calls preprocess and encoder, and decodes itself: an ensemble would not hand on that a client has gone.
"""

from pathlib import Path

import torch
import triton_python_backend_utils as pb_utils

from blipstream import answers
from blipstream.engine import load_engine
from blipstream.errors import BlipstreamError, InvalidInput, Overloaded, error_of
from blipstream.journal import Journal
from blipstream.metrics import Metrics
from blipstream.options import OPTION_NAMES, DecodingOptions
from blipstream.scheduler import Scheduler


class TritonPythonModel:
    def initialize(self, args):
        self.codes = {InvalidInput: pb_utils.TritonError.INVALID_ARG, Overloaded: pb_utils.TritonError.UNAVAILABLE}
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        folder = Path(args["model_repository"], "../decoder", args["model_version"], "artifact")
        engine = load_engine(folder, device, warm_up=True)
        self.metrics = Metrics(pb_utils.MetricFamily, args["model_name"])
        self.scheduler = Scheduler(engine, on_watch=self.metrics.watch, journal=Journal(args["model_name"]))

    async def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                await self.start(request, sender)
            except BlipstreamError as exc:
                self.scheduler.journal.refuse(request.request_id(), exc)
                self.fail(sender, self.codes.get(type(exc), pb_utils.TritonError.INTERNAL), exc)

    async def start(self, request, sender):
        self.scheduler.check_room()  # before anything is computed for it
        lap = self.metrics.stopwatch().lap
        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        options = DecodingOptions.from_tensors({n: tensors[n].as_numpy()[0] for n in OPTION_NAMES if n in tensors})
        images = [tensors[n] for n in ("image", "resize_mode") if n in tensors]
        pixels = await self.call(request, "preprocess", images, "pixels")
        image_embeds = await self.call(request, "encoder", [pixels], "image_embeds")
        self.scheduler.arrive(1)
        row = self.scheduler.engine.request(torch.from_dlpack(image_embeds.to_dlpack())[0], options)
        row.id, row.trace_context = request.request_id(), request.trace().get_context()
        self.scheduler.submit(row, lambda piece: self.send(sender, row, lap, piece), sender.is_cancelled, streams=True)

    async def call(self, caller, model, inputs, output):
        wanted = {"model_name": model, "inputs": inputs, "requested_output_names": [output]}
        # it would crash Triton 2.51 to hand on the trace, so the span is our own
        with self.scheduler.journal.span(model, caller.request_id(), caller.trace().get_context()):
            response = await pb_utils.InferenceRequest(caller.request_id(), **wanted).async_exec()
        if error := response.error():
            raise error_of(model, error.message())
        return pb_utils.get_output_tensor_by_name(response, output)

    def send(self, sender, row, lap, piece):
        lap(piece)
        if piece.error or piece.finish_reason == "cancelled":
            status = pb_utils.TritonError.INTERNAL if piece.error else pb_utils.TritonError.CANCELLED
            self.fail(sender, status, piece.error or "the client has gone")
            return
        outputs = answers.piece_tensors(piece, row.captions)
        response = pb_utils.InferenceResponse([pb_utils.Tensor(*output) for output in outputs.items()])
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if piece.finish_reason else 0)

    def fail(self, sender, status, error):
        response = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), status))
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self):
        self.scheduler.close()
