# SPDX-License-Identifier: Apache-2.0
"""What every model.py needs of Triton's Python backend, which is handed in."""

from collections.abc import Mapping
from typing import Any

from blipstream.deadline import Deadline


def device_of(args: Mapping[str, str]) -> str:
    """The torch device of a model instance, from what Triton gives `initialize`."""
    return f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"


def deadline_of(request: Any, sender: Any) -> Deadline:  # noqa: ANN401
    """When the time of a request is up."""
    return Deadline(request.timeout(), sender.is_cancelled)
