# SPDX-License-Identifier: Apache-2.0
"""Turn a BLIP checkpoint into the artifacts that the models of a repository load, and verify them.

build("Salesforce/blip-image-captioning-base", "auto", Path("models"))
build("Salesforce/blip-itm-base-coco", "auto", Path("models"))  # matching, beside the captioner
"""

import importlib.metadata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from blipstream.config import ENCODERS, CheckpointConfig, DType
from blipstream.dtypes import resolve
from blipstream.errors import ArtifactError
from blipstream.files import PACKAGE
from blipstream_build.adapters.install import misfits
from blipstream_build.artifacts import Artifact, fingerprint
from blipstream_build.cache import cached_repository, how_to_remove, other_revisions
from blipstream_build.calibration_images import CalibrationImages
from blipstream_build.checkpoint import Checkpoint, check_is_text
from blipstream_build.configs import CONFIGS, Config, EncoderDType, PlanOptions
from blipstream_build.repository import check_is_ours, exclusive, materialise
from blipstream_build.sharing import has_captioner, shares_encoder, why_not_matching
from blipstream_build.stages import stage

# What needs torch or transformers is imported where it is used: if all is up to date, none of it is
if TYPE_CHECKING:
    from blipstream_build.plan import Plan

HERE = Path(__file__).resolve().parent
# A change in any of them makes artifacts stale: they say what is computed, and what a checkpoint must be like
SOURCES = (
    PACKAGE / "config.py",
    PACKAGE / "vision/vit.py",
    PACKAGE / "text/decoder.py",
    PACKAGE / "text/encoder.py",
    HERE / "convert.py",
    HERE / "export.py",
    HERE / "generation.py",
    HERE / "sharing.py",
    *sorted((HERE / "inspection").glob("*.py")),
    HERE / "verify.py",
    HERE / "verify_matching.py",
)


def build(
    name: str,
    dtype: DType,
    repository: Path | None = None,
    config: str = "cpu",
    plan_options: PlanOptions | None = None,
    *,
    processor: str | None = None,
    encoder_dtype: EncoderDType | None = None,
    calibration_images: Path | None = None,
    force: bool = False,
    prepared: Callable[[], None] = lambda: None,
) -> Path:
    """Build what is stale in a repository, verify it, and only then install it. Returns the repository.

    Without `repository`, it is a folder of the user's cache. `plan_options` are for the configuration `tensorrt`.
    `processor` names where the tokenizer and the image processor are, if the checkpoint lacks one.
    `encoder_dtype` is for the configuration `tensorrt`, if the encoder is to have another one than the decoder. It is
    calibrated and checked on the images in the folder `calibration_images`.
    `prepared` is called before anything is written, once all libraries are imported.

    A captioner and a retrieval checkpoint can lie in one repository: each build leaves the other's artifacts alone.

    Raises ArtifactError if the checkpoint is neither of the two, or takes images of another size than the one beside
    it, or what was built differs too much from transformers, or `repository` holds something else.
    """
    for given in (name, str(repository or ""), processor or ""):
        check_is_text(given)
    if repository:
        check_is_ours(repository)
    chosen = CONFIGS[config]
    resolve(dtype, chosen.device)
    _check_encoder_dtype(encoder_dtype, config, calibration_images)
    checkpoint = Checkpoint.find(name, processor)
    if encoder_dtype and checkpoint.is_retriever:
        raise ArtifactError(
            f"{encoder_dtype} is checked by captions, and {checkpoint.name} is a retrieval checkpoint, which makes "
            "none: leave out --encoder-dtype"
        )
    plan = _plan(checkpoint, chosen, dtype, plan_options)
    if plan and encoder_dtype:
        plan.check_fp8()
    images = CalibrationImages.find(calibration_images) if calibration_images else None
    is_cached = repository is None
    repository = repository or cached_repository(checkpoint.name, checkpoint.revision, config, encoder_dtype or dtype)
    encoder_parts = (encoder_dtype, images.digest) if images else ()
    artifacts = artifacts_of(checkpoint, chosen, dtype, repository, encoder_parts)
    encoder = next(model for model in artifacts if model in ENCODERS)
    if _stale(artifacts, plan, force):
        with stage("loading PyTorch"):
            import torch  # noqa: F401
        with stage("loading transformers"):
            import blipstream_build.renewal
    prepared()
    with exclusive(repository):
        if stale := _stale(artifacts, plan, force):  # another build may have been at work
            import blipstream_build.renewal

            if reason := _outdated(artifacts[encoder], plan):
                click.echo(f"compiling the encoder again: {reason}")
            installed = blipstream_build.renewal.renew(
                stale, artifacts, checkpoint, chosen, dtype, plan, repository, images
            )
            click.echo(f"installed {', '.join(installed)} in {repository}")
            if others := other_revisions(repository) if is_cached else []:
                click.echo(f"other revisions of {checkpoint.name} are there, too; if you no longer serve one:")
                click.echo("\n".join(f"  {how_to_remove(other)}" for other in others))
        else:
            click.echo(f"{repository} is up to date with {checkpoint.name}")
        if why := why_not_matching(repository):
            click.echo(f"a server has no matching from now on: {why}")
        if unfit := misfits(repository):
            click.echo(
                f"a server refuses the adapters {', '.join(unfit)} from now on, which were made for another checkpoint "
                "or by another version: add them again by `blipstream adapter add`, once they are trained on this one"
            )
        materialise(repository)
        if plan and artifacts[encoder].folder.exists():
            from blipstream_build.encoder_config import write_encoder_config
            from blipstream_build.ensemble_config import write_ensemble_configs

            image_size = CheckpointConfig.load(artifacts[encoder].folder).vision.image_size
            write_encoder_config(repository, plan.options, image_size, encoder)
            write_ensemble_configs(repository)
    return repository


def artifacts_of(
    checkpoint: Checkpoint, config: Config, dtype: DType, repository: Path, encoder_parts: Iterable[object] = ()
) -> dict[str, Artifact]:
    """The artifact that each model loads in a configuration, by model. Only encoders depend on `encoder_parts`."""
    parts = (checkpoint.name, checkpoint.revision, dtype)
    library = importlib.metadata.version(config.library)
    encoder_sources = tuple(HERE / source for source in config.sources)
    common = fingerprint(*parts, sources=SOURCES)
    of_encoder = fingerprint(*parts, library, *encoder_parts, sources=SOURCES + encoder_sources)
    preprocess = {"preprocess": Artifact(repository / "preprocess/1/artifact", common)}
    if checkpoint.is_retriever:
        return ({} if has_captioner(repository) else preprocess) | {
            "match_encoder": Artifact(repository / "match_encoder/1" / config.runtime, of_encoder),
            "matcher": Artifact(repository / "matcher/1" / config.text_runtime, of_encoder),
        }
    return preprocess | {
        "encoder": Artifact(repository / "encoder/1" / config.runtime, of_encoder),
        "decoder": Artifact(repository / "decoder/1/artifact", common),
    }


def _stale(artifacts: dict[str, Artifact], plan: "Plan | None", force: bool) -> dict[str, Artifact]:
    """What must be built, by model."""
    stale = {model: artifact for model, artifact in artifacts.items() if force or not artifact.is_current()}
    encoder = next(model for model in artifacts if model in ENCODERS)
    if encoder not in stale and _outdated(artifacts[encoder], plan):
        stale[encoder] = artifacts[encoder]
    if "matcher" in artifacts:
        matcher = artifacts["matcher"]
        if "matcher" not in stale and shares_encoder(matcher.folder.parents[2], matcher.folder):
            stale.pop(encoder, None)
        elif {encoder, "matcher"} & stale.keys():  # the matcher's config says whether it shares the encoder
            stale |= {encoder: artifacts[encoder], "matcher": matcher}
    return stale


def _outdated(encoder: Artifact, plan: "Plan | None") -> str | None:
    """Why an encoder that is current otherwise has a plan that will not do; None if there is no reason."""
    if plan is None or not encoder.is_current():
        return None
    from blipstream_build.plan import reason_to_rebuild, stored_plan

    return reason_to_rebuild(stored_plan(encoder.folder), plan)


def _check_encoder_dtype(encoder_dtype: EncoderDType | None, config: str, images: Path | None) -> None:
    """Raises ArtifactError if the options for an encoder's own dtype do not fit each other, or the configuration."""
    if encoder_dtype and CONFIGS[config].runtime != "tensorrt":
        raise ArtifactError(f"--encoder-dtype {encoder_dtype} is for --config tensorrt, not {config}: leave it out")
    if encoder_dtype and not images:
        raise ArtifactError(
            f"{encoder_dtype} is calibrated on images like those that you caption: give --calibration-images FOLDER"
        )
    if images and not encoder_dtype:
        raise ArtifactError("--calibration-images is for --encoder-dtype fp8: leave it out, or give both")


def _plan(checkpoint: Checkpoint, config: Config, dtype: DType, options: PlanOptions | None) -> "Plan | None":
    """The plan to compile the encoder to, if the configuration has one."""
    if config.runtime != "tensorrt":
        if options not in (None, PlanOptions()):
            raise ArtifactError("the options of a plan are for --config tensorrt: leave them out")
        return None
    if resolve(dtype, config.device) != "f16":
        raise ArtifactError(f"the encoder's plan computes in f16: build it with --dtype auto or f16, not {dtype}")
    with stage("looking for the GPU"):
        from blipstream_build.plan import Plan

        return Plan.here(checkpoint.revision, options or PlanOptions())
