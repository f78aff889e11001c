# SPDX-License-Identifier: Apache-2.0
"""The ensembles' configs for a server that can bound what is under way between their steps; the embedded one cannot."""

import os
from pathlib import Path

from artifacts import ENSEMBLE_CONFIGS
from generated_config import generated_config

CONTAINER = "NVIDIA_TRITON_SERVER_VERSION"  # what NVIDIA's image says of itself, as 26.05
SINCE = (26, 4)  # before, Triton counted the responses of a single request alone, if it knew the field at all
# Requests at each step. At the bound, Triton blocks who brings one more: at the first step that is its front end, so
# its queue, with what is computed beside it, may not get there; at the others it is the step before
MAX_INFLIGHT = 640


def write_ensemble_configs(repository: Path) -> None:
    """From config.pbtxt, configs/tensorrt.pbtxt with the bound, where the server here has it."""
    version = tuple(int(part) for part in os.environ.get(CONTAINER, "0").split(".") if part.isdecimal())
    for generated in ENSEMBLE_CONFIGS:
        if version < SINCE:
            (repository / generated).unlink(missing_ok=True)
            continue
        with generated_config(repository / generated) as config:
            config.ensemble_scheduling.max_inflight_requests = MAX_INFLIGHT
