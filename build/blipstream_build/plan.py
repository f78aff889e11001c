# SPDX-License-Identifier: Apache-2.0
"""What a TensorRT plan is compiled by, for and from, and when one that is there must be compiled again."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from blipstream.config import CONFIG_NAME
from blipstream.errors import ArtifactError
from blipstream.vision.tensorrt import Flavour, load_tensorrt
from blipstream_build.configs import PlanOptions

NAMES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
# TensorRT-RTX ignores the first; the others fail for want of a library, or of a GPU
RTX_REFUSES = ("hardware_compatible", "version_compatible", "refit")
AMPERE, ADA = (8, 0), (8, 9)  # compute capabilities
PLAN = "plan"  # in config.json


@dataclass(frozen=True)
class Plan:
    """What a plan is compiled by, for and from. The artifact's config.json keeps it, as `dataclasses.asdict` gives it.

    Raises ArtifactError if the compiler lacks what the options ask for.
    """

    flavour: Flavour
    version: str  # of TensorRT
    gpu: str | None  # its name; None if the compiler needs none
    compute_capability: str  # such as 8.9
    revision: str  # of the checkpoint
    options: PlanOptions

    def __post_init__(self) -> None:
        refused = [name for name in RTX_REFUSES if self.flavour == "tensorrt_rtx" and getattr(self.options, name)]
        if refused:
            raise ArtifactError(f"{self.compiler} cannot compile with {refused[0]}: leave it out, or take TensorRT")

    @property
    def compiler(self) -> str:
        """The compiler's name and version."""
        return f"{NAMES[self.flavour]} {self.version}"

    @property
    def target(self) -> str:
        """The GPU that the plan is for."""
        return f"{self.gpu or 'a GPU'} (compute capability {self.compute_capability})"

    @classmethod
    def here(
        cls,
        revision: str,
        options: PlanOptions,
        flavour: Flavour = "tensorrt",
        compute_capability: str | None = None,
    ) -> "Plan":
        """A plan by the TensorRT that is installed, for the GPU at hand or, with TensorRT-RTX, a given capability.

        Raises ArtifactError if there is no such TensorRT, or no GPU.
        """
        version = load_tensorrt(flavour).__version__
        if compute_capability is not None:
            if flavour == "tensorrt":
                raise ArtifactError("TensorRT compiles for the GPU at hand: leave the compute capability out")
            return cls(flavour, version, None, compute_capability, revision, options)
        if not torch.cuda.is_available():
            raise ArtifactError(f"{NAMES[flavour]} needs an NVIDIA GPU to compile for, and there is none here")
        gpu = torch.cuda.get_device_name() if flavour == "tensorrt" else None
        capability = "{}.{}".format(*torch.cuda.get_device_capability())
        return cls(flavour, version, gpu, capability, revision, options)

    def check_fp8(self) -> None:
        """Raises ArtifactError unless all GPUs that the plan is for multiply in fp8."""
        if _numbers(self.compute_capability) < ADA:
            raise ArtifactError(
                f"fp8 needs a GPU of compute capability 8.9 or more, and this is {self.target}: "
                "leave out --encoder-dtype"
            )
        if self.options.hardware_compatible:
            raise ArtifactError(
                "a hardware-compatible plan must run on Ampere, which has no fp8: leave out --hardware-compatible or "
                "--encoder-dtype"
            )


def stored_plan(folder: Path) -> Any:  # noqa: ANN401
    """What an artifact's config.json says about its plan; None if there is none."""
    try:
        return json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8")).get(PLAN)
    except (OSError, ValueError, AttributeError):
        return None


def reason_to_rebuild(stored: Mapping[str, Any] | None, plan: Plan) -> str | None:
    """Why the plan that config.json describes as `stored` will not do for `plan`; None if it will."""
    if stored is None:
        return "there is no plan yet"
    try:
        found = Plan(**{**stored, "options": PlanOptions(**stored["options"])})
    except (ArtifactError, KeyError, TypeError):
        return "another version of Blipstream compiled the plan"
    if found.revision != plan.revision:
        return "the checkpoint has changed"
    for field in fields(PlanOptions):
        before, now = (getattr(one.options, field.name) for one in (found, plan))
        if before != now:
            return f"{field.name} was {before} and is to be {now}"
    later = found.options.version_compatible and _numbers(found.version) < _numbers(plan.version)
    if found.flavour != plan.flavour or (found.version != plan.version and not later):
        return f"{found.compiler} compiled the plan and this is {plan.compiler}"
    elsewhere = found.options.hardware_compatible and _numbers(plan.compute_capability) >= AMPERE
    if (found.gpu, found.compute_capability) != (plan.gpu, plan.compute_capability) and not elsewhere:
        return f"the plan is for {found.target} and this is {plan.target}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
