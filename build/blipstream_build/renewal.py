# SPDX-License-Identifier: Apache-2.0
"""Export what is stale, compare everything with transformers, and install it. Importing this takes seconds."""

import shutil
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import torch
import transformers

from blipstream import signals
from blipstream.calibration import NAME as CALIBRATION
from blipstream.calibration import Calibration
from blipstream.config import CheckpointConfig, DType
from blipstream.decoding import load_engine
from blipstream.errors import ArtifactError
from blipstream.files import SAMPLES
from blipstream.images.shapes import Pixels
from blipstream.matching import Matcher
from blipstream.vision import load_encoder
from blipstream.vision.tensorrt import ONNX_NAME, PLAN_NAME
from blipstream_build.artifacts import FINGERPRINT, Artifact
from blipstream_build.calibration_images import CalibrationImages
from blipstream_build.checkpoint import Checkpoint
from blipstream_build.configs import Config
from blipstream_build.export import ENCODERS, export_decoder, export_matcher, export_tensorrt, vision_encoder
from blipstream_build.plan import PLAN, Plan
from blipstream_build.quantisation import agreement, largest_inputs
from blipstream_build.sharing import check_image_size, with_shared_encoder
from blipstream_build.stages import stage
from blipstream_build.tensorrt_compile import compile_plan
from blipstream_build.verify import Report, show, verify
from blipstream_build.verify_matching import MatchingReport, verify_matching

if TYPE_CHECKING:
    from transformers import BertTokenizer

    from blipstream.vision.vit import VisionTransformer
    from blipstream_build.checkpoint import Blip

TIMING_CACHE = "tensorrt-timing.cache"  # beside the artifact, so that it survives a new one


class Calibrated(NamedTuple):
    """What an encoder in fp8 is made from and checked by."""

    reference: "VisionTransformer"  # the encoder in f32
    largest_inputs: dict[str, float]  # of its linear layers, by name
    unseen: Pixels  # of the images that it was not calibrated on


@torch.no_grad()
def renew(
    stale: dict[str, Artifact],
    artifacts: dict[str, Artifact],
    checkpoint: Checkpoint,
    chosen: Config,
    dtype: DType,
    plan: Plan | None,
    repository: Path,
    images: CalibrationImages | None = None,
) -> list[str]:
    """Export and compile what is stale, compare everything with transformers, and install it. Returns its names.

    If there are `images`, the encoder computes in fp8.
    """
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # the build checks what it would warn of
    with stage(f"loading {checkpoint.name}"):
        model = checkpoint.load_model()
        tokenizer = checkpoint.load_tokenizer(model)
        settings = checkpoint.config(model, dtype)
    check_image_size(settings, repository)
    folders = {name: artifact.folder for name, artifact in artifacts.items()}
    if settings.matching:
        settings = with_shared_encoder(settings, repository, chosen.runtime)
        if settings.matching and settings.matching.encoder == "encoder":
            click.echo("  its vision weights are the captioner's: the encoder is shared")
            stale = {name: artifact for name, artifact in stale.items() if name != "match_encoder"}
            folders["match_encoder"] = repository / "encoder/1" / chosen.runtime
    elif generation := str(checkpoint.generation(model)):
        click.echo(f"  generation config: {generation}")
    calibrated = _calibrate(model, settings, images) if images else None
    size = sum(weight.nbytes for weight in model.state_dict().values())  # of all artifacts, roughly
    with ExitStack() as stack:
        for model_name, artifact in stale.items():
            folder = folders[model_name] = stack.enter_context(artifact.staging(size))
            with stage(f"exporting {model_name}"):
                _export(model_name, model, tokenizer, settings, chosen, folder, calibrated)
            extra: dict[str, Any] = {FINGERPRINT: artifact.fingerprint}
            if plan and model_name.endswith("encoder"):
                click.echo(f"compiling it with {plan.compiler} for {plan.target}")
                compile_plan(folder / ONNX_NAME, plan, folder / PLAN_NAME, artifact.folder.with_name(TIMING_CACHE))
                extra[PLAN] = asdict(plan)
            described = _in_fp8(settings) if calibrated and model_name == "encoder" else settings
            described.save(folder, **extra)
        with stage("comparing with transformers"):
            device, verified_dtype = chosen.device, dtype
            if device == "cuda" and not torch.cuda.is_available():  # another machine is to serve it
                device, verified_dtype = "cpu", "f32"
            report = _compare(checkpoint, model, chosen, folders, device, verified_dtype, calibrated)
            signals.use_ordinary_stack()  # the compared models are gone
        if device != chosen.device:
            click.echo("  there is no GPU here: compared on the CPU, in f32")
        show(report.stages)
        if isinstance(report, Report):
            _show_captions(report)
        if report.fault:
            raise ArtifactError(f"{report.fault}: nothing was installed")
        if "matcher" in stale:
            _drop_calibration(stale["matcher"].folder.parent, settings)
        for model_name, artifact in stale.items():
            artifact.install(folders[model_name])
    if "match_encoder" in artifacts and "match_encoder" not in stale:  # an encoder of its own is of no use any more
        shutil.rmtree(artifacts["match_encoder"].folder, ignore_errors=True)
    return list(stale)


def _calibrate(model: "Blip", settings: CheckpointConfig, images: CalibrationImages) -> Calibrated:
    with stage(f"decoding {len(images.calibrating) + len(images.checking)} images"):
        calibrating, unseen = images.load(settings.vision.image_size)
    with stage(f"calibrating on {len(calibrating)} of them"):
        reference = vision_encoder(model, settings.vision)
        return Calibrated(reference, largest_inputs(reference, calibrating), unseen)


def _in_fp8(settings: CheckpointConfig) -> CheckpointConfig:
    return replace(settings, vision=replace(settings.vision, quantised="fp8"))


def _drop_calibration(version: Path, settings: CheckpointConfig) -> None:
    """Remove the calibration of another checkpoint, which says nothing of this one."""
    with suppress(ArtifactError):
        calibration = Calibration.load(version)
        if calibration is None or calibration.revision == settings.revision:
            return
        click.echo(f"its calibration was of {calibration.origin}: it is dropped; run `blipstream calibrate` again")
    (version / CALIBRATION).unlink()


def _export(
    model_name: str,
    model: "Blip",
    tokenizer: "BertTokenizer",
    settings: CheckpointConfig,
    chosen: Config,
    folder: Path,
    calibrated: Calibrated | None,
) -> None:
    """Write the files of a model's artifact. Of preprocess, that is its config alone."""
    if model_name == "encoder" and calibrated:
        export_tensorrt(model, settings, folder, calibrated.largest_inputs)
    elif model_name.endswith("encoder"):
        ENCODERS[chosen.runtime](model, settings, folder)
    elif model_name == "decoder":
        export_decoder(model, tokenizer, settings, folder)
    elif model_name == "matcher":
        export_matcher(model, tokenizer, settings, chosen.text_runtime, folder)


def _compare(
    checkpoint: Checkpoint,
    model: "Blip",
    chosen: Config,
    folders: dict[str, Path],
    device: str,
    dtype: DType,
    calibrated: Calibrated | None,
) -> Report | MatchingReport:
    """Hold what was exported into `folders`, by model, against transformers."""
    images = sorted(SAMPLES.glob("*.jpg"))
    if checkpoint.is_retriever:
        encoder = load_encoder(chosen.runtime, folders["match_encoder"], device, dtype)
        matcher = Matcher.load(chosen.text_runtime, folders["matcher"], device, dtype)
        return verify_matching(checkpoint, model, encoder, matcher, images)
    encoder = load_encoder(chosen.runtime, folders["encoder"], device, dtype)
    engine = load_engine(folders["decoder"], device, dtype)
    report = verify(checkpoint, model, encoder, engine, images)
    if calibrated:
        return replace(report, agreement=agreement(encoder, calibrated.reference, engine, calibrated.unseen))
    return report


def _show_captions(report: Report) -> None:
    equal = sum(caption.ours == caption.theirs for caption in report.captions)
    click.echo(f"  captions   {equal} of {len(report.captions)} equal transformers'")
    for image, ours, theirs in report.captions:
        click.echo(f"    {ours!r}" if ours == theirs else f"    {ours!r} for {image}, instead of\n    {theirs!r}")
    if unseen := report.agreement:
        click.echo(
            f"  fp8        {unseen.equal} of {unseen.images} captions of your other images equal f32's, "
            f"relative error {unseen.relative:.1e}"
        )
    if report.is_monotonous:
        click.echo(
            "    all samples got one caption: if the checkpoint knows what they show,\n    captions should differ"
        )
