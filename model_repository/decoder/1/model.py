# SPDX-License-Identifier: Apache-2.0
"""Image embeddings to captions: the Triton adapter of blipstream.decoding."""

from contextlib import suppress
from pathlib import Path

import torch
import triton_python_backend_utils as pb_utils

from blipstream.decoding import load_engine
from blipstream.errors import InvalidInput, report, triton_error
from blipstream.options import OPTION_NAMES, DecodingOptions, refuse_parameters
from blipstream.serving import responses
from blipstream.serving.adapter import device_of
from blipstream.serving.service import DecodingService
from blipstream.serving.telemetry import id_of


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"], args["model_version"], "artifact")
        engine = load_engine(folder, device_of(args), served=True)
        # what cannot start soon waits in Triton's queue, with its limits
        self.service = DecodingService(engine, pb_utils.MetricFamily, args["model_name"], engine.max_rows)

    def execute(self, requests):
        """Answers come when captions are finished, not when this returns: until then Triton brings more requests."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self.start(request, sender)
            except Exception as exc:
                error = report(exc)
                self.fail(sender, error)
                self.service.journal.refuse(id_of(request), error)

    def start(self, request, sender):
        """Submit a request's images; the last one that is finished sends the answer."""
        refuse_parameters(request, ("image_embeds", *OPTION_NAMES))
        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        if "image_embeds" not in tensors:  # Triton lets an optional input stand for it
            raise InvalidInput("image_embeds must be given: send the encoder's output")
        image_embeds = torch.from_dlpack(tensors["image_embeds"].to_dlpack())
        self.service.arrive(len(image_embeds))
        given = {name: tensors[name].as_numpy() for name in OPTION_NAMES if name in tensors}
        options = DecodingOptions.from_rows(given, len(image_embeds))
        rows = self.service.engine.requests(image_embeds, options)
        pieces = []

        def listen(piece):
            pieces.append(piece)
            if len(pieces) >= len(rows):  # more, where the answer failed
                self.answer(sender, rows, pieces)

        for row in rows:
            row.id, row.trace_context = id_of(request), request.trace().get_context()
            self.service.wait_for_room()
            self.service.scheduler.submit(row, listen, sender.is_cancelled)

    def answer(self, sender, rows, pieces):
        error = next((piece.error for piece in pieces if piece.error), None)
        if error:
            self.fail(sender, error)
        else:
            outputs = responses.tensors([row.captions for row in rows])
            response = pb_utils.InferenceResponse([pb_utils.Tensor(*output) for output in outputs.items()])
            sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def fail(self, sender, error):
        error = triton_error(pb_utils.TritonError, error)
        with suppress(Exception):  # who cannot be told this either, has gone
            sender.send(pb_utils.InferenceResponse(error=error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self):
        self.service.close()
