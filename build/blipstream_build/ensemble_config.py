# SPDX-License-Identifier: Apache-2.0
"""The ensembles' configs for a server that can bound the requests between their steps. The embedded one cannot."""

import os
from pathlib import Path

from blipstream_build.generated_config import generated_config
from blipstream_build.repository import ENSEMBLE_CONFIGS

CONTAINER = "NVIDIA_TRITON_SERVER_VERSION"  # NVIDIA's image sets it to its version, such as 26.05
SINCE = (26, 4)  # earlier ones that know the field count only the responses of a single request
# Requests at each step. At the bound, Triton blocks whoever brings one more. At the first step that is its front end,
# so that step's queue and what is computed beside it must stay below; at the others it is the step before
MAX_INFLIGHT = 640


def write_ensemble_configs(repository: Path) -> None:
    """Write configs/tensorrt.pbtxt, which is config.pbtxt with the bound, if the server here knows it."""
    version = tuple(int(part) for part in os.environ.get(CONTAINER, "0").split(".") if part.isdecimal())
    for generated in ENSEMBLE_CONFIGS:
        if version < SINCE:
            (repository / generated).unlink(missing_ok=True)
            continue
        with generated_config(repository / generated) as config:
            config.ensemble_scheduling.max_inflight_requests = MAX_INFLIGHT
