# SPDX-License-Identifier: Apache-2.0
"""Encoded image bytes to pixels: the Triton adapter of blipstream.images. It knows the decoder's adapters, too."""

from functools import partial

import triton_python_backend_utils as pb_utils

from blipstream.adapters import FOLDER_NAME, adapter_names, find_adapter
from blipstream.config import CheckpointConfig, of_one_checkpoint
from blipstream.images import load_loader
from blipstream.options import EXPLAIN_NAMES, EXPLAINED_TEXT, INPUT_NAMES, RERANK_OPTIONS, check_num_texts
from blipstream.serving.adapter import ModelInstance
from blipstream.serving.adapter_list import LISTED, adapter_outputs
from blipstream.serving.load_request import MATCH_IMAGE, asked_inputs, load_request
from blipstream.serving.loading_service import LoadingService


class TritonPythonModel:
    def initialize(self, args):
        self.instance = ModelInstance(pb_utils, args)
        checkpoint = CheckpointConfig.load(of_one_checkpoint(self.instance.folder / "artifact"))
        self.text, side = checkpoint.text, checkpoint.vision.image_size
        self.instance.defaults.check_fits(self.text.max_positions)
        decoder = self.instance.folder_of("decoder")
        adapters = decoder / FOLDER_NAME
        self.adapter_names = partial(adapter_names, adapters)
        self.find_adapter = partial(find_adapter, adapters, checkpoint=checkpoint)
        # Triton puts each model that it fetches from an object store into a folder of its own
        self.check_adapter = self.find_adapter if decoder.exists() else None
        loader = load_loader(self.instance.device, side, self.instance.count, **self.instance.parameters)
        self.service = LoadingService(self.instance, loader)

    def execute(self, requests):
        """Submit requests, and refuse what is wrong or too much. Triton brings more before these are loaded."""
        for request in map(self.instance.request, requests):
            with request.refused_on_error():
                self.submit(request)
        self.service.export()

    def submit(self, request):
        tensors = request.tensors(MATCH_IMAGE, EXPLAINED_TEXT, "text", LISTED)
        if LISTED in tensors:
            request.refuse_parameters(("adapter",))
            listed = tensors[LISTED].as_numpy()
            request.send_outputs_soon(adapter_outputs(listed, self.adapter_names, self.find_adapter))
            return
        self.service.check_room()  # before anything is copied for it
        request.refuse_parameters(asked_inputs(tensors))
        if "text" in tensors:
            check_num_texts(*tensors["text"].shape())
        arrays = request.arrays("pixels", MATCH_IMAGE, *INPUT_NAMES, *EXPLAIN_NAMES, *RERANK_OPTIONS)
        image_request = load_request(arrays, request.deadline, self.text, self.instance.defaults, self.check_adapter)
        request.release_inputs()
        self.service.submit(request, image_request)

    def finalize(self):
        self.service.close()
