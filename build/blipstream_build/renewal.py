# SPDX-License-Identifier: Apache-2.0
"""Export what is stale, compare everything with transformers, and install it. Importing this takes seconds."""

from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import click
import torch
import transformers

from blipstream.config import DType
from blipstream.decoding import load_engine
from blipstream.errors import ArtifactError
from blipstream.files import SAMPLES
from blipstream.vision import load_encoder
from blipstream.vision.tensorrt import ONNX_NAME, PLAN_NAME
from blipstream_build.artifacts import FINGERPRINT, Artifact
from blipstream_build.checkpoint import Checkpoint
from blipstream_build.configs import Config
from blipstream_build.export import ENCODERS, export_decoder
from blipstream_build.plan import PLAN, Plan
from blipstream_build.stages import stage
from blipstream_build.tensorrt_compile import compile_plan
from blipstream_build.verify import Report, verify

TIMING_CACHE = "tensorrt-timing.cache"  # beside the artifact, so that it survives a new one


@torch.no_grad()
def renew(
    stale: dict[str, Artifact],
    artifacts: dict[str, Artifact],
    checkpoint: Checkpoint,
    chosen: Config,
    dtype: DType,
    plan: Plan | None,
) -> None:
    """Export and compile what is stale, compare everything with transformers, and install it."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # the build checks what it would warn of
    with stage(f"loading {checkpoint.name}"):
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
            with stage(f"exporting {model_name}"):
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
        with stage("comparing with transformers"):
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


def _show(report: Report) -> None:
    for each in report.stages:
        click.echo(
            f"  {each.name:10} {each.dtype:4}  max error {each.maximum:.1e}  "
            f"relative error {each.relative:.1e}  allowed {each.tolerance:.0e}"
        )
    equal = sum(caption.ours == caption.theirs for caption in report.captions)
    click.echo(f"  captions   {equal} of {len(report.captions)} equal transformers'")
    for image, ours, theirs in report.captions:
        click.echo(f"    {ours!r}" if ours == theirs else f"    {ours!r} for {image}, instead of\n    {theirs!r}")
    if report.is_monotonous:
        click.echo(
            "    all samples got one caption: if the checkpoint knows what they show,\n    captions should differ"
        )
