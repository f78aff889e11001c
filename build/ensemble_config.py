# SPDX-License-Identifier: Apache-2.0
"""The ensembles' configs for a server that can bound what is under way between their steps; the embedded one cannot."""

import os
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from artifacts import ENSEMBLE_CONFIGS

CONTAINER = "NVIDIA_TRITON_SERVER_VERSION"  # what NVIDIA's image says of itself, as 26.05
SINCE = (26, 4)  # before, Triton counted the responses of a single request alone, if it knew the field at all
# Requests at each step. At the bound, Triton blocks who brings one more: at the first step that is its front end, so
# no first queue, with what is computed beside it, may get there; at the last the encoder, whose own queue then refuses
MAX_INFLIGHT = 640


def write_ensemble_configs(repository: Path) -> None:
    """From config.pbtxt, configs/tensorrt.pbtxt with the bound, where the server here has it."""
    version = tuple(int(part) for part in os.environ.get(CONTAINER, "0").split(".") if part.isdecimal())
    for generated in ENSEMBLE_CONFIGS:
        target = repository / generated
        if version < SINCE:
            target.unlink(missing_ok=True)
            continue
        source = target.parent.with_name("config.pbtxt")
        config = text_format.Parse(source.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
        config.ensemble_scheduling.max_inflight_requests = MAX_INFLIGHT
        target.parent.mkdir(exist_ok=True)
        target.write_text(text_format.MessageToString(config), encoding="utf-8")
