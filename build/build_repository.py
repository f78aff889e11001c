# SPDX-License-Identifier: Apache-2.0
"""Turn a BLIP checkpoint into the artifacts that the models of a repository load, and verify them.

python build/build_repository.py --checkpoint Salesforce/blip-image-captioning-base --config cpu
"""

if __name__ == "__main__":  # before all that takes seconds to load
    import interruption

    interruption.end_at_once()

import importlib.metadata
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import click
import torch
import transformers

import interruption
from artifacts import FINGERPRINT, ROOT, SOURCE_REPOSITORY, Artifact, fingerprint, materialise
from blipstream.config import CheckpointConfig, DType
from blipstream.decoding import load_engine
from blipstream.dtypes import resolve
from blipstream.errors import ArtifactError, BlipstreamError
from blipstream.vision import load_encoder
from blipstream.vision.tensorrt import ONNX_NAME, PLAN_NAME
from checkpoint import Checkpoint, check_is_text
from encoder_config import write_encoder_config
from ensemble_config import write_ensemble_configs
from export import export_decoder, export_openvino, export_torch
from tensorrt_compile import PLAN, Plan, PlanOptions, compile_plan, reason_to_rebuild, stored_plan
from verify import Report, verify


@dataclass(frozen=True)
class Config:
    """How one configuration runs the encoder; the decoder is the same in all of them."""

    runtime: str  # in blipstream.vision, and the artifact's folder in encoder/1
    device: str
    library: str  # whose version the artifact depends on
    export: Callable[[transformers.BlipForConditionalGeneration, CheckpointConfig, Path], None]
    sources: tuple[str, ...] = ()  # a change in any of them makes the encoder stale, beyond SOURCES


def export_tensorrt(model: transformers.BlipForConditionalGeneration, config: CheckpointConfig, folder: Path) -> None:
    """The encoder as ONNX, to be compiled."""
    from onnx_export import export_onnx  # whose library a CPU's machine need not have

    export_onnx(model, config, folder)


CONFIGS = {
    "cpu": Config("openvino", "cpu", "openvino", export_openvino),
    "cuda": Config("torch", "cuda", "safetensors", export_torch),
    "tensorrt": Config(
        "tensorrt", "cuda", "onnx", export_tensorrt, ("build/onnx_export.py", "build/tensorrt_compile.py")
    ),
}
# a change in any of them makes artifacts stale: what they compute, and what was asked of them
SOURCES = (
    "blipstream/config.py",
    "blipstream/vision/vit.py",
    "blipstream/text/decoder.py",
    "build/convert.py",
    "build/export.py",
    "build/inspection.py",
    "build/verify.py",
)
SAMPLES = ROOT / "build" / "demo" / "samples"
TIMING_CACHE = "tensorrt-timing.cache"  # beside the artifact, to outlive it


def artifacts_of(checkpoint: Checkpoint, config: Config, dtype: DType, repository: Path) -> dict[str, Artifact]:
    """What each model loads in a configuration."""
    parts = (checkpoint.name, checkpoint.revision, dtype)
    library = importlib.metadata.version(config.library)
    common = fingerprint(*parts, sources=_paths(SOURCES))
    of_encoder = fingerprint(*parts, library, sources=_paths(SOURCES + config.sources))
    return {
        "preprocess": Artifact(repository / "preprocess/1/artifact", common),
        "encoder": Artifact(repository / "encoder/1" / config.runtime, of_encoder),
        "decoder": Artifact(repository / "decoder/1/artifact", common),
    }


def _paths(sources: tuple[str, ...]) -> tuple[Path, ...]:
    return tuple(ROOT / path for path in sources)


def build(
    name: str,
    dtype: DType,
    repository: Path,
    config: str = "cpu",
    plan_options: PlanOptions | None = None,
    *,
    processor: str | None = None,
    force: bool = False,
) -> None:
    """Build what is stale, verify it, and only then install it. `plan_options` are for the configuration `tensorrt`.

    `processor` names where the tokenizer and the image processor are, if the checkpoint lacks one.

    Raises ArtifactError where the checkpoint is no captioner, or what was built of it is off.
    """
    for given in (name, str(repository), processor or ""):
        check_is_text(given)
    chosen = CONFIGS[config]
    resolve(dtype, chosen.device)
    checkpoint = Checkpoint.find(name, processor)
    plan = _plan(checkpoint, chosen, dtype, plan_options)
    artifacts = artifacts_of(checkpoint, chosen, dtype, repository)
    for artifact in artifacts.values():
        artifact.sweep()
    stale = {model: artifact for model, artifact in artifacts.items() if force or not artifact.is_current()}
    if plan and "encoder" not in stale:
        reason = reason_to_rebuild(stored_plan(artifacts["encoder"].folder), plan)
        if reason:
            click.echo(f"compiling the encoder again: {reason}")
            stale["encoder"] = artifacts["encoder"]
    if stale:
        _renew(stale, artifacts, checkpoint, chosen, dtype, plan)
        click.echo(f"installed {', '.join(stale)} in {repository}")
    else:
        click.echo(f"{repository} is up to date with {checkpoint.name}")
    materialise(repository)
    if plan:
        image_size = CheckpointConfig.load(artifacts["encoder"].folder).vision.image_size
        write_encoder_config(repository, plan.options, image_size)
        write_ensemble_configs(repository)


def _renew(
    stale: dict[str, Artifact],
    artifacts: dict[str, Artifact],
    checkpoint: Checkpoint,
    chosen: Config,
    dtype: DType,
    plan: Plan | None,
) -> None:
    """Export and compile what is stale, compare all with transformers, and install it."""
    with _stage(f"loading {checkpoint.name}"):
        model = checkpoint.load_model()
        tokenizer = checkpoint.load_tokenizer(model)
        settings = checkpoint.config(model, dtype)
    size = sum(weight.nbytes for weight in model.state_dict().values())  # of all artifacts, more or less
    with ExitStack() as stack:
        folders = {name: artifact.folder for name, artifact in artifacts.items()}
        for model_name, artifact in stale.items():
            folder = folders[model_name] = stack.enter_context(artifact.staging(size))
            with _stage(f"exporting {model_name}"):
                if model_name == "encoder":
                    chosen.export(model, settings, folder)
                elif model_name == "decoder":
                    export_decoder(model, tokenizer, settings, folder)
            extra: dict[str, Any] = {FINGERPRINT: artifact.fingerprint}
            if plan and model_name == "encoder":
                click.echo(f"compiling it with {plan.compiler} for {plan.target}")
                compile_plan(folder / ONNX_NAME, plan, folder / PLAN_NAME, artifact.folder.with_name(TIMING_CACHE))
                extra[PLAN] = asdict(plan)
            settings.save(folder, **extra)
        with _stage("comparing with transformers"):
            device, verified_dtype = chosen.device, dtype
            if device == "cuda" and not torch.cuda.is_available():  # to be served elsewhere
                device, verified_dtype = "cpu", "f32"
            encoder = load_encoder(chosen.runtime, folders["encoder"], device, verified_dtype)
            engine = load_engine(folders["decoder"], device, verified_dtype)
            report = verify(checkpoint, model, encoder, engine, sorted(SAMPLES.glob("*.jpg")))
        if device != chosen.device:
            click.echo("  there is no GPU here: compared on the CPU, in f32")
        _show(report)
        if report.fault:
            raise ArtifactError(f"{report.fault}: nothing was installed")
        for model_name, artifact in stale.items():
            artifact.install(folders[model_name])


def _plan(checkpoint: Checkpoint, config: Config, dtype: DType, options: PlanOptions | None) -> Plan | None:
    """What the encoder is to be compiled to, if at all."""
    if config.runtime != "tensorrt":
        if options not in (None, PlanOptions()):
            raise ArtifactError("the options of a plan are for --config tensorrt: leave them out")
        return None
    if resolve(dtype, config.device) != "f16":
        raise ArtifactError(f"the encoder's plan computes in f16: build it with --dtype auto or f16, not {dtype}")
    return Plan.here(checkpoint.revision, options or PlanOptions())


@contextmanager
def _stage(what: str) -> Iterator[None]:
    click.echo(f"{what} ... ", nl=False)
    began = time.monotonic()
    try:
        yield
        interruption.check()
    except BaseException:
        click.echo("failed")
        raise
    click.echo(f"{time.monotonic() - began:.1f} s")


def _show(report: Report) -> None:
    for stage in report.stages:
        click.echo(
            f"  {stage.name:10} {stage.dtype:4}  max error {stage.maximum:.1e}  "
            f"relative error {stage.relative:.1e}  allowed {stage.tolerance:.0e}"
        )
    equal = sum(caption.ours == caption.theirs for caption in report.captions)
    click.echo(f"  captions   {equal} of {len(report.captions)} equal transformers'")
    for image, ours, theirs in report.captions:
        click.echo(f"    {image}: {ours!r}" + (f" instead of {theirs!r}" if ours != theirs else ""))
    if report.is_monotonous:
        click.echo("    one caption for all: if the checkpoint knows what it sees, these should differ")


DEFAULTS = PlanOptions()


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog="Run through `make build` as well.")
@click.option("--checkpoint", required=True, help="Hub name, or folder, of a BLIP captioner.")
@click.option(
    "--processor",
    envvar="BLIPSTREAM_PROCESSOR",
    help="Hub name, or folder, to take tokenizer and image processor from, if the checkpoint lacks one.",
)
@click.option(
    "--config",
    type=click.Choice(list(CONFIGS)),
    envvar="BLIPSTREAM_CONFIG",
    default="cpu",
    show_default=True,
    help="Where it is to be served.",
)
@click.option(
    "--dtype",
    type=click.Choice(get_args(DType)),
    default="auto",
    show_default=True,
    help="What to compute in; auto: f16 on a GPU, else bf16 where the serving processor has it, else f32.",
)
@click.option(
    "--repository",
    type=click.Path(path_type=Path, file_okay=False),
    default=SOURCE_REPOSITORY,
    show_default="model_repository",
    help="Model repository to build into; another folder becomes a copy.",
)
@click.option(
    "--opt-batch",
    type=click.IntRange(1, DEFAULTS.max_batch),
    default=DEFAULTS.opt_batch,
    show_default=True,
    help="TensorRT: the batch size that it chooses kernels for.",
)
@click.option(
    "--workspace-mib", type=click.IntRange(1), help="TensorRT: scratch memory at most; else all of the GPU's."
)
@click.option("--hardware-compatible", is_flag=True, help="TensorRT: a plan for Ampere and all later GPUs, slower.")
@click.option("--version-compatible", is_flag=True, help="TensorRT: a plan for later versions of it too, slower.")
@click.option("--refit", is_flag=True, help="TensorRT: a plan that other weights can be put into.")
@click.option("--force", is_flag=True, help="Build what is up to date, too.")
def main(
    checkpoint: str,
    processor: str | None,
    config: str,
    dtype: DType,
    repository: Path,
    force: bool,
    **plan_options: Any,  # noqa: ANN401
) -> None:
    """Turn a BLIP checkpoint into the artifacts that the models of a repository load, and verify them."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what it warns of, we check
    torch.set_grad_enabled(False)
    try:
        build(checkpoint, dtype, repository, config, PlanOptions(**plan_options), processor=processor, force=force)
    except (Exception, KeyboardInterrupt) as exc:
        if interruption.heard.is_set():  # whatever a library made of it
            click.echo(interruption.SAID, err=True)
            sys.exit(interruption.STATUS)
        if not isinstance(exc, BlipstreamError | OSError):
            raise
        click.echo(f"error: {exc}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    interruption.end_cleanly()
    main()
