# SPDX-License-Identifier: Apache-2.0
"""Compile the encoder's ONNX graph into a TensorRT plan, and say when a plan that is there will no longer do.

One code for TensorRT 10 and 11, which compile on the GPU at hand and for it, and for TensorRT-RTX, which needs no GPU
to compile for a compute capability.
"""

import json
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TaskID

from blipstream.config import CONFIG_NAME
from blipstream.errors import ArtifactError
from blipstream.vision.tensorrt import INPUT, Flavour, load_tensorrt, tensorrt_logger

NAMES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
# it ignores the first, and fails over the others: for want of a library, or of a GPU
RTX_REFUSES = ("hardware_compatible", "version_compatible", "refit")
AMPERE = (8, 0)
PLAN = "plan"  # in config.json


@dataclass(frozen=True)
class PlanOptions:
    """How to compile. Raises ArtifactError where the batch sizes are out of order."""

    min_batch: int = 1
    opt_batch: int = 32  # what TensorRT chooses its kernels for
    max_batch: int = 64  # at least max_batch_size in the encoder's config.pbtxt
    workspace_mib: int | None = None  # of scratch memory; None: all that the GPU has
    hardware_compatible: bool = False  # runs on Ampere and every later GPU, slower
    version_compatible: bool = False  # runs on later versions of TensorRT, slower
    refit: bool = False  # lets other weights be put into the plan

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise ArtifactError(
                "batch sizes must be in order, 1 <= min <= opt <= max, "
                f"not {self.min_batch}, {self.opt_batch} and {self.max_batch}"
            )


@dataclass(frozen=True)
class Plan:
    """What a plan is compiled by, for and from: what its config.json keeps of it, as `dataclasses.asdict` has it.

    Raises ArtifactError where the compiler lacks what the options ask for.
    """

    flavour: Flavour
    version: str  # of TensorRT
    gpu: str | None  # its name; None where it was not needed
    compute_capability: str  # such as 8.9
    revision: str  # of the checkpoint
    options: PlanOptions

    def __post_init__(self) -> None:
        refused = [name for name in RTX_REFUSES if self.flavour == "tensorrt_rtx" and getattr(self.options, name)]
        if refused:
            raise ArtifactError(f"{self.compiler} cannot compile with {refused[0]}: leave it out, or take TensorRT")

    @property
    def compiler(self) -> str:
        """Its name and version."""
        return f"{NAMES[self.flavour]} {self.version}"

    @property
    def target(self) -> str:
        """The GPU that it is for."""
        return f"{self.gpu or 'a GPU'} (compute capability {self.compute_capability})"

    @classmethod
    def here(
        cls,
        revision: str,
        options: PlanOptions,
        flavour: Flavour = "tensorrt",
        compute_capability: str | None = None,
    ) -> "Plan":
        """With the TensorRT that is installed, for the GPU at hand; TensorRT-RTX may be told another one's capability.

        Raises ArtifactError where either is missing.
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


def stored_plan(folder: Path) -> Any:  # noqa: ANN401
    """What an artifact's config.json says of its plan; None where there is none."""
    try:
        return json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8")).get(PLAN)
    except (OSError, ValueError, AttributeError):
        return None


def reason_to_rebuild(stored: Mapping[str, Any] | None, plan: Plan) -> str | None:
    """Why the plan that config.json describes as `stored` cannot stand in for `plan`; None where it can."""
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


def compile_plan(onnx: Path, plan: Plan, target: Path, timing_cache: Path | None = None) -> None:
    """Compile a graph to the file `target`, reusing and extending what `timing_cache` knows of kernels' speed.

    Raises ArtifactError where the compiler refuses.
    """
    if timing_cache and plan.flavour == "tensorrt_rtx":
        raise ArtifactError(f"{plan.compiler} keeps no timing cache: leave it out, or take TensorRT")
    trt, logger = load_tensorrt(plan.flavour), tensorrt_logger(plan.flavour)
    logger.errors.clear()
    builder = trt.Builder(logger)
    # TensorRT 10 asks for the flag; 11 and RTX are strongly typed anyway
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        error = parser.get_error(0)
        reason = ": ".join(error.desc().splitlines()[:2])
        raise ArtifactError(
            f"{plan.compiler} cannot read node {error.node_name()} ({error.node_operator()}) of {onnx.name}: {reason}"
        )
    config = _config(trt, builder, plan)
    config.add_optimization_profile(_profile(builder, network, plan.options))
    if timing_cache:
        _load_timing_cache(config, timing_cache)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        monitor = config.progress_monitor = _monitor(trt, progress)
        with _cancels(monitor):
            serialized = builder.build_serialized_network(network, config)
    if monitor.cancelled:
        raise KeyboardInterrupt
    if serialized is None:
        reason = logger.errors[0] if logger.errors else "no reason given"
        raise ArtifactError(f"{plan.compiler} cannot compile the encoder for {plan.target}: {reason}")
    target.write_bytes(serialized)
    if timing_cache:
        timing_cache.write_bytes(config.get_timing_cache().serialize())


def _config(trt: Any, builder: Any, plan: Plan) -> Any:  # noqa: ANN401
    config, options = builder.create_builder_config(), plan.options
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names and types of layers, for trtexec to show
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if plan.flavour == "tensorrt_rtx":
        name = f"SM{plan.compute_capability.replace('.', '')}"
        known = [one for one in trt.ComputeCapability.__members__ if one.startswith("SM")]
        if name not in known:
            offered = ", ".join(f"{one[2:-1]}.{one[-1]}" for one in known)
            raise ArtifactError(
                f"{plan.compiler} compiles for compute capability {offered}, not {plan.compute_capability}"
            )
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.__members__[name], 0)
    return config


def _profile(builder: Any, network: Any, options: PlanOptions) -> Any:  # noqa: ANN401
    _, *image = network.get_input(0).shape
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, *((batch, *image) for batch in (options.min_batch, options.opt_batch, options.max_batch)))
    return profile


def _load_timing_cache(config: Any, file: Path) -> None:  # noqa: ANN401
    cache = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
    if not config.set_timing_cache(cache, False):  # another GPU's or version's: begin anew
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _monitor(trt: Any, progress: Progress) -> Any:  # noqa: ANN401
    """Shows the phases of a build, and ends it once `cancelled` is set."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.cancelled = False
            self.tasks: dict[str, TaskID] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            indent = "  " if parent_phase else ""
            self.tasks[phase_name] = progress.add_task(indent + phase_name, total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.update(self.tasks[phase_name], completed=step + 1)
            return not self.cancelled

        def phase_finish(self, phase_name: str) -> None:
            progress.remove_task(self.tasks.pop(phase_name))

    return Monitor()


@contextmanager
def _cancels(monitor: Any) -> Iterator[None]:  # noqa: ANN401
    """Let Ctrl-C cancel the build: a KeyboardInterrupt would be lost in TensorRT, which calls back into Python."""

    def cancel(*_: object) -> None:
        monitor.cancelled = True

    previous = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
