# SPDX-License-Identifier: Apache-2.0
"""image_embeds and texts to scores and embeddings: the Triton adapter of blipstream.matching."""

import triton_python_backend_utils as pb_utils

from blipstream.serving.adapter import ModelInstance
from blipstream.serving.matching_service import MatchingService


class TritonPythonModel:
    def initialize(self, args):
        self.service = MatchingService(ModelInstance(pb_utils, args))

    def execute(self, requests):
        """Submit requests. Triton brings more before they have their responses, so they are read together."""
        self.service.submit(requests)

    def finalize(self):
        self.service.close()
