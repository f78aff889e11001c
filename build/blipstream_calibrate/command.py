# SPDX-License-Identifier: Apache-2.0
"""`blipstream calibrate`. What is slow to import is imported once the options and the pairs have been read."""

from pathlib import Path

import click

from blipstream import command_line, signals
from blipstream.calibration import NAME, Calibration
from blipstream.config import CONFIG_NAME, CheckpointConfig
from blipstream.errors import ArtifactError, BlipstreamError
from blipstream.extras import missing
from blipstream_build.configs import CONFIGS, Config

LABELS = {"log_loss": "log loss", "calibration_error": "calibration error", "auc": "AUC"}
FAIR_AUC = 0.6  # 0.5 is chance
ALL_RIGHT = (
    "All pairs are on the right side of 0.5, so they cannot tell how often the match is wrong: harder pairs, or more, "
    "can."
)
REVERSED = "tells these labels apart the wrong way round: are they reversed?"
HARDLY_APART = "hardly tells these labels apart: are they right?"


@click.command(
    context_settings=command_line.SETTINGS, epilog=command_line.BY_ENVIRONMENT.format("BLIPSTREAM_REPOSITORY")
)
@click.argument("pairs", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--repository", required=True, help="The model repository that has the retrieval checkpoint.")
@click.option("--config", type=click.Choice(list(CONFIGS)), default="cpu", help="How it was built.")
@click.option("--curve", type=command_line.OutputFile(), help="A PNG file to draw: reliability, precision and recall.")
@click.option("--truncate", is_flag=True, help="Cut texts that are too long for the model, instead of refusing them.")
@click.option("--remove", is_flag=True, help="Remove the calibration that the repository has.")
def main(pairs: Path | None, repository: str, config: str, curve: Path | None, truncate: bool, remove: bool) -> None:
    """Make the match of a retrieval checkpoint a probability, by PAIRS that you have labelled.

    PAIRS is a CSV file with the columns image, text and label, or a .jsonl file with such objects. The label is 1 if
    image and text belong together, and 0 if not. Paths of images are relative to the file.

    Fits a temperature and a threshold, and stores them in the repository. A server has them from its next start on.
    """
    if pairs and remove:
        raise click.UsageError("give PAIRS to calibrate, or --remove to undo it, and not both")
    if not (pairs or remove):
        raise click.UsageError("give PAIRS to calibrate, or --remove to undo it")
    if curve and curve.suffix.lower() != ".png":
        raise click.BadParameter(f"{curve} must end in .png, since the picture is a PNG", param_hint="--curve")
    with command_line.ending_in_one_sentence(config):
        folder = command_line.repository_folder(repository)
        assert folder is not None  # noqa: S101  # the option is required
        artifact = folder / "matcher/1" / CONFIGS[config].text_runtime
        if not (artifact / CONFIG_NAME).exists():
            raise ArtifactError(
                f"{folder} has no matcher for --config {config}: build one, such as by `blipstream build "
                f"Salesforce/blip-itm-base-coco --repository {folder} --config {config}`"
            )
        if pairs is None:
            _remove(artifact.parent)
        else:
            _calibrate(pairs, folder, artifact, CONFIGS[config], curve, truncate)


def _remove(version: Path) -> None:
    try:
        (version / NAME).unlink()
    except FileNotFoundError:
        raise BlipstreamError(f"{version} has no calibration to remove") from None
    click.echo(f"removed {version / NAME}; a running server has it until its next start")


def _calibrate(
    file: Path, repository: Path, artifact: Path, config: Config, curve: Path | None, truncate: bool
) -> None:
    from blipstream_build.stages import stage
    from blipstream_calibrate.pairs import read_pairs

    pairs = read_pairs(file)
    if curve:
        try:
            from blipstream_calibrate.chart import draw
        except ModuleNotFoundError as exc:
            raise BlipstreamError(missing(exc.name, "calibrate")) from exc
    with stage("loading the matcher"):
        import numpy as np

        from blipstream_build.repository import exclusive
        from blipstream_calibrate.figures import figures
        from blipstream_calibrate.fit import cross_validated, fit
        from blipstream_calibrate.logits import Scorer

        signals.interrupt_on_signals()
        checkpoint = CheckpointConfig.load(artifact)
        scorer = Scorer(artifact, repository, config)
    images = len({pair.image for pair in pairs})
    with click.progressbar(length=images, label=f"matching {len(pairs):,} pairs", show_pos=True) as progress:
        logits = scorer.logits(pairs, truncate=truncate, advance=progress.update)
    labels = np.array([pair.label for pair in pairs])
    numbers: dict[tuple[Path, str], int] = {}
    same = [numbers.setdefault((pair.image, pair.text), len(numbers)) for pair in pairs]
    found, held_out = fit(logits, labels), cross_validated(logits, labels, same)
    before, after = figures(logits, logits >= 0, labels), figures(*held_out, labels)
    after = after._replace(auc=before.auc)  # one temperature for all leaves the order as it is
    if before.auc < FAIR_AUC:
        raise BlipstreamError(
            f"the match {REVERSED if before.auc < 1 - FAIR_AUC else HARDLY_APART} The label 1 stands where image and "
            f"text belong together. The AUC is {before.auc:.3f}, and must be at least {FAIR_AUC}. Nothing is stored"
        )
    with exclusive(repository):
        if CheckpointConfig.load(artifact).revision != checkpoint.revision:
            raise ArtifactError(f"{repository} got another checkpoint meanwhile: calibrate again")
        Calibration(checkpoint.origin, checkpoint.revision, *found).save(artifact.parent)
    click.echo(f"{'':20}{'before':>8}{'after':>8}")
    for name, *values in zip(before._fields, before, after, strict=True):
        click.echo(f"{LABELS.get(name, name):20}" + "".join(f"{value:8.3f}" for value in values))
    click.echo(f"temperature {found.temperature:.3f}, threshold {found.threshold:.3f}, which has the most F1")
    click.echo(command_line.fill("after: each fifth of the pairs, by what fits the other four; before: at 0.5"))
    if np.all((logits > 0) == labels):
        click.echo(command_line.fill(ALL_RIGHT))
    if curve:
        draw(logits, held_out.logits, labels, found, curve)
        click.echo(f"drawn: {curve}")
    click.echo(f"stored: {artifact.parent / NAME}")
    click.echo("a running server takes it at its next start")
