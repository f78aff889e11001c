# SPDX-License-Identifier: Apache-2.0
"""Image embeddings to captions: the Triton adapter of blipstream.scheduler, which lets requests join between steps."""

from contextlib import suppress
from pathlib import Path

import torch
import triton_python_backend_utils as pb_utils

from blipstream import answers
from blipstream.engine import load_engine
from blipstream.errors import InvalidInput, report, triton_error
from blipstream.journal import Journal, id_of
from blipstream.metrics import Metrics
from blipstream.options import OPTION_NAMES, DecodingOptions, refuse_parameters
from blipstream.scheduler import Scheduler


class TritonPythonModel:
    def initialize(self, args):
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        folder = Path(args["model_repository"], args["model_version"], "artifact")
        engine = load_engine(folder, device, served=True)
        # what cannot start soon waits in Triton's queue, with its limits
        metrics = Metrics(pb_utils.MetricFamily, args["model_name"])
        self.scheduler = Scheduler(engine, engine.max_rows, metrics.watch, Journal(args["model_name"]))

    def execute(self, requests):
        """Answers come when captions are finished, not when this returns: until then Triton brings more requests."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self.start(request, sender)
            except Exception as exc:
                error = report(exc)
                self.fail(sender, error)
                self.scheduler.journal.refuse(id_of(request), error)

    def start(self, request, sender):
        """Submit a request's images; the last one that is finished sends the answer."""
        refuse_parameters(request, ("image_embeds", *OPTION_NAMES))
        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        if "image_embeds" not in tensors:  # Triton lets an optional input stand for it
            raise InvalidInput("image_embeds must be given: send the encoder's output")
        image_embeds = torch.from_dlpack(tensors["image_embeds"].to_dlpack())
        self.scheduler.arrive(len(image_embeds))
        given = {name: tensors[name].as_numpy() for name in OPTION_NAMES if name in tensors}
        options = DecodingOptions.from_rows(given, len(image_embeds))
        rows = self.scheduler.engine.requests(image_embeds, options)
        pieces = []

        def listen(piece):
            pieces.append(piece)
            if len(pieces) >= len(rows):  # more, where the answer failed
                self.answer(sender, rows, pieces)

        for row in rows:
            row.id, row.trace_context = id_of(request), request.trace().get_context()
            self.scheduler.wait_for_room()
            self.scheduler.submit(row, listen, sender.is_cancelled)

    def answer(self, sender, rows, pieces):
        error = next((piece.error for piece in pieces if piece.error), None)
        if error:
            self.fail(sender, error)
        else:
            outputs = answers.tensors([row.captions for row in rows])
            response = pb_utils.InferenceResponse([pb_utils.Tensor(*output) for output in outputs.items()])
            sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def fail(self, sender, error):
        error = triton_error(pb_utils.TritonError, error)
        with suppress(Exception):  # who cannot be told this either, has gone
            sender.send(pb_utils.InferenceResponse(error=error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self):
        self.scheduler.close()
