# SPDX-License-Identifier: Apache-2.0
"""Image bytes to a caption, piece by piece: the Triton adapter of blipstream.scheduler.

It calls preprocess and encoder, and decodes itself: an ensemble would not hand on that a client has gone.
"""

from pathlib import Path

import torch
import triton_python_backend_utils as pb_utils

from blipstream import answers
from blipstream.engine import load_engine
from blipstream.errors import error_of, report, triton_error
from blipstream.journal import Journal, id_of
from blipstream.metrics import Metrics
from blipstream.options import OPTION_NAMES, refuse_parameters
from blipstream.patience import Patience
from blipstream.scheduler import Scheduler


class TritonPythonModel:
    def initialize(self, args):
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        folder = Path(args["model_repository"]).with_name("decoder").joinpath(args["model_version"], "artifact")
        engine = load_engine(folder, device, served=True)
        self.metrics = Metrics(pb_utils.MetricFamily, args["model_name"])
        self.scheduler = Scheduler(engine, on_watch=self.metrics.watch, journal=Journal(args["model_name"]))

    async def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                await self.start(request, sender)
            except Exception as exc:
                self.fail(sender, error := report(exc))
                self.scheduler.journal.refuse(id_of(request), error)

    async def start(self, request, sender):
        self.scheduler.check_room()  # before anything is computed for it
        refuse_parameters(request)
        lap, patience = self.metrics.stopwatch().lap, Patience.of(request, sender)
        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        (options,) = self.scheduler.engine.options({n: tensors[n].as_numpy() for n in OPTION_NAMES if n in tensors}, 1)
        images = [tensors[n] for n in ("image", "resize_mode") if n in tensors]
        pixels = await self.call(request, patience, "preprocess", images, "pixels")
        try:
            image_embeds = await self.call(request, patience, "encoder", [pixels], "image_embeds")
        finally:
            self.scheduler.arrive(1)
        patience.left()
        row = self.scheduler.engine.request(torch.from_dlpack(image_embeds.to_dlpack())[0], options)
        row.id, row.trace_context = id_of(request), request.trace().get_context()
        self.scheduler.submit(row, lambda piece: self.send(sender, row, lap, piece), sender.is_cancelled, streams=True)

    async def call(self, caller, patience, model, inputs, output):
        wanted = {"model_name": model, "inputs": inputs, "requested_output_names": [output], "timeout": patience.left()}
        # it would crash Triton 2.51 to hand on the trace, so the span is our own
        with self.scheduler.journal.span(model, id_of(caller), caller.trace().get_context()):
            response = await pb_utils.InferenceRequest(id_of(caller), **wanted).async_exec()
        if error := response.error():
            raise error_of(model, error.message())
        return pb_utils.get_output_tensor_by_name(response, output)

    def send(self, sender, row, lap, piece):
        lap(piece)
        if piece.error:
            self.fail(sender, piece.error)
            return
        outputs = [pb_utils.Tensor(*output) for output in answers.piece_tensors(piece, row.captions).items()]
        sender.send(pb_utils.InferenceResponse(outputs))
        if piece.finish_reason:  # apart, for what fails with it closes the sender, which could not even say so
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def fail(self, sender, error):
        error = triton_error(pb_utils.TritonError, error)
        sender.send(pb_utils.InferenceResponse(error=error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self):
        self.scheduler.close()
