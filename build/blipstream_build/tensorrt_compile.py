# SPDX-License-Identifier: Apache-2.0
"""Compile the encoder's ONNX graph into a TensorRT plan.

The same code serves TensorRT 10 and 11, which compile on the GPU at hand and for it, and TensorRT-RTX, which compiles
for a compute capability and needs no GPU.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from blipstream.errors import ArtifactError
from blipstream.vision.tensorrt import INPUT, load_tensorrt, tensorrt_logger
from blipstream_build.configs import PlanOptions
from blipstream_build.plan import Plan


def compile_plan(onnx: Path, plan: Plan, target: Path, timing_cache: Path | None = None) -> None:
    """Compile a graph to the file `target`. `timing_cache` is a file of kernels' speeds: it is used and extended.

    Raises ArtifactError if the compiler refuses.
    """
    if timing_cache and plan.flavour == "tensorrt_rtx":
        raise ArtifactError(f"{plan.compiler} keeps no timing cache: leave it out, or take TensorRT")
    trt, logger = load_tensorrt(plan.flavour), tensorrt_logger(plan.flavour)
    logger.errors.clear()
    builder = trt.Builder(logger)
    # TensorRT 10 wants the flag; 11 and RTX are strongly typed without it
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
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that trtexec can show names and types of layers
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
    if not config.set_timing_cache(cache, False):  # it is of another GPU or version: start an empty one
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _monitor(trt: Any, progress: Progress) -> Any:  # noqa: ANN401
    """A monitor that shows the phases of a compilation, and stops it once `cancelled` is set."""

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
    """Let Ctrl-C cancel the compilation: TensorRT calls back into Python and would lose a KeyboardInterrupt."""

    def cancel(*_: object) -> None:
        monitor.cancelled = True

    previous = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
