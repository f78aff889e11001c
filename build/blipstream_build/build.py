# SPDX-License-Identifier: Apache-2.0
"""Turn a BLIP checkpoint into the artifacts that the models of a repository load, and verify them.

build("Salesforce/blip-image-captioning-base", "auto", Path("models"))
"""

import importlib.metadata
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from blipstream.config import CheckpointConfig, DType
from blipstream.decoding import load_engine
from blipstream.dtypes import resolve
from blipstream.errors import ArtifactError
from blipstream.files import PACKAGE, SAMPLES
from blipstream.vision import load_encoder
from blipstream.vision.tensorrt import ONNX_NAME, PLAN_NAME
from blipstream_build import interruption
from blipstream_build.artifacts import FINGERPRINT, Artifact, fingerprint
from blipstream_build.cache import cached_repository
from blipstream_build.checkpoint import Checkpoint, check_is_text
from blipstream_build.configs import CONFIGS, Config, PlanOptions
from blipstream_build.encoder_config import write_encoder_config
from blipstream_build.ensemble_config import write_ensemble_configs
from blipstream_build.export import ENCODERS, export_decoder
from blipstream_build.plan import PLAN, Plan, reason_to_rebuild, stored_plan
from blipstream_build.repository import check_is_ours, exclusive, materialise
from blipstream_build.tensorrt_compile import compile_plan
from blipstream_build.verify import Report, verify

HERE = Path(__file__).resolve().parent
# A change in any of them makes artifacts stale: they say what is computed, and what a checkpoint must be like
SOURCES = (
    PACKAGE / "config.py",
    PACKAGE / "vision/vit.py",
    PACKAGE / "text/decoder.py",
    HERE / "convert.py",
    HERE / "export.py",
    HERE / "generation.py",
    *sorted((HERE / "inspection").glob("*.py")),
    HERE / "verify.py",
)
TIMING_CACHE = "tensorrt-timing.cache"  # beside the artifact, so that it survives a new one


def build(
    name: str,
    dtype: DType,
    repository: Path | None = None,
    config: str = "cpu",
    plan_options: PlanOptions | None = None,
    *,
    processor: str | None = None,
    force: bool = False,
) -> Path:
    """Build what is stale in a repository, verify it, and only then install it. Returns the repository.

    Without `repository`, it is a folder of the user's cache. `plan_options` are for the configuration `tensorrt`.
    `processor` names where the tokenizer and the image processor are, if the checkpoint lacks one.

    Raises ArtifactError if the checkpoint is no BLIP captioner, what was built differs too much from transformers, or
    `repository` holds something else.
    """
    for given in (name, str(repository or ""), processor or ""):
        check_is_text(given)
    if repository:
        check_is_ours(repository)
    chosen = CONFIGS[config]
    resolve(dtype, chosen.device)
    checkpoint = Checkpoint.find(name, processor)
    plan = _plan(checkpoint, chosen, dtype, plan_options)
    repository = repository or cached_repository(checkpoint.name, checkpoint.revision, config, dtype)
    artifacts = artifacts_of(checkpoint, chosen, dtype, repository)
    with exclusive(repository):
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
    return repository


def artifacts_of(checkpoint: Checkpoint, config: Config, dtype: DType, repository: Path) -> dict[str, Artifact]:
    """The artifact that each model loads in a configuration, by model."""
    parts = (checkpoint.name, checkpoint.revision, dtype)
    library = importlib.metadata.version(config.library)
    encoder_sources = tuple(HERE / source for source in config.sources)
    common = fingerprint(*parts, sources=SOURCES)
    of_encoder = fingerprint(*parts, library, sources=SOURCES + encoder_sources)
    return {
        "preprocess": Artifact(repository / "preprocess/1/artifact", common),
        "encoder": Artifact(repository / "encoder/1" / config.runtime, of_encoder),
        "decoder": Artifact(repository / "decoder/1/artifact", common),
    }


def _plan(checkpoint: Checkpoint, config: Config, dtype: DType, options: PlanOptions | None) -> Plan | None:
    """The plan to compile the encoder to, if the configuration has one."""
    if config.runtime != "tensorrt":
        if options not in (None, PlanOptions()):
            raise ArtifactError("the options of a plan are for --config tensorrt: leave them out")
        return None
    if resolve(dtype, config.device) != "f16":
        raise ArtifactError(f"the encoder's plan computes in f16: build it with --dtype auto or f16, not {dtype}")
    return Plan.here(checkpoint.revision, options or PlanOptions())


def _renew(
    stale: dict[str, Artifact],
    artifacts: dict[str, Artifact],
    checkpoint: Checkpoint,
    chosen: Config,
    dtype: DType,
    plan: Plan | None,
) -> None:
    """Export and compile what is stale, compare everything with transformers, and install it."""
    with _stage(f"loading {checkpoint.name}"):
        model = checkpoint.load_model()
        tokenizer = checkpoint.load_tokenizer(model)
        settings = checkpoint.config(model, dtype)
    if generation := str(checkpoint.generation(model)):
        click.echo(f"  generation config: {generation}")
    size = sum(weight.nbytes for weight in model.state_dict().values())  # of all artifacts, roughly
    with ExitStack() as stack:
        folders = {name: artifact.folder for name, artifact in artifacts.items()}
        for model_name, artifact in stale.items():
            folder = folders[model_name] = stack.enter_context(artifact.staging(size))
            with _stage(f"exporting {model_name}"):
                if model_name == "encoder":
                    ENCODERS[chosen.runtime](model, settings, folder)
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
            if device == "cuda" and not torch.cuda.is_available():  # another machine is to serve it
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


@contextmanager
def _stage(what: str) -> Iterator[None]:
    """Print what is being done, and how long it took."""
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
        click.echo("    all samples got one caption: if the checkpoint knows what they show, captions should differ")
