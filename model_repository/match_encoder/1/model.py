# SPDX-License-Identifier: Apache-2.0
"""Pixels to image_embeds for matching: the Triton adapter of blipstream.vision."""

import triton_python_backend_utils as pb_utils

from blipstream.serving.adapter import ModelInstance
from blipstream.serving.encoding_service import EncodingService


class TritonPythonModel:
    def initialize(self, args):
        self.service = EncodingService(ModelInstance(pb_utils, args))

    def execute(self, requests):
        return self.service.execute(requests)

    def finalize(self):
        self.service.close()
