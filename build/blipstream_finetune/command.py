# SPDX-License-Identifier: Apache-2.0
"""`blipstream finetune`. What takes seconds to import is imported once the options have been read."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click

from blipstream import command_line
from blipstream_finetune.settings import FULL, LORA, METRICS, TrainingDType


def _default(name: str) -> str:
    """What an option is without --lora, and with it."""
    full, lora = getattr(FULL, name), getattr(LORA, name)
    return f"  [default: {full:g}; with --lora {lora:g}]" if full != lora else f"  [default: {full:g}]"


@click.command(context_settings=command_line.SETTINGS, epilog=command_line.BY_ENVIRONMENT.format("BLIPSTREAM_DATA"))
@click.option("--checkpoint", required=True, help="Hub name or folder of the captioner to begin with.")
@click.option("--processor", help="Hub name or folder of tokenizer and image processor, if the checkpoint lacks one.")
@click.option("--data", required=True, help="Images and captions: a folder, CSV, JSONL, COCO's JSON, Parquet, tar.")
@click.option("--images", type=click.Path(path_type=Path, file_okay=False, exists=True), help="COCO: images' folder.")
@click.option("--column", help="The column of images in a table.")
@click.option("--text-column", help="The column of captions in a table.")
@click.option("--output", required=True, type=command_line.OutputFolder(), help="New folder for what comes out.")
@click.option(
    "--validation", type=click.FloatRange(0, 0.9, min_open=True), default=0.05, help="Share of images held out."
)
@click.option("--validation-data", help="Images and captions to hold out instead, in any layout of --data.")
@click.option("--strict", is_flag=True, help="Stop if anything in the data is wrong, instead of leaving it out.")
@click.option("--lora", is_flag=True, help="Train an adapter: LoRA on all linear layers of the text decoder.")
@click.option("--rank", type=click.IntRange(1), default=FULL.rank, help="LoRA: the rank.")
@click.option("--alpha", type=click.IntRange(1), default=FULL.alpha, help="LoRA: multiplied by alpha / rank.")
@click.option(
    "--encoder/--freeze-encoder",
    default=None,
    help="Train the image encoder, too; a whole checkpoint comes out.  [default: yes, but not with --lora]",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    help=f"The highest; it falls by a cosine to 0, with --lora in one cycle.{_default('learning_rate')}",
)
@click.option("--weight-decay", type=click.FloatRange(0), help=f"Of AdamW.{_default('weight_decay')}")
@click.option(
    "--label-smoothing", type=click.FloatRange(0, 1, max_open=True), help=f"Of the loss.{_default('label_smoothing')}"
)
@click.option("--batch", type=click.IntRange(1), help=f"Captions a step.{_default('batch')}")
@click.option(
    "--accumulate", type=click.IntRange(1), default=FULL.accumulate, help="Parts to compute a step in, for less memory."
)
@click.option(
    "--epochs", type=click.FloatRange(0, min_open=True), default=FULL.epochs, help="How often each caption is seen."
)
@click.option("--steps", type=click.IntRange(1), help="The number of steps, instead of --epochs.")
@click.option(
    "--prompt",
    default=FULL.prompt,
    help="Words before each caption, which are not learnt; the authors' are 'a picture of '.",
)
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    default=FULL.metric,
    help="Which weights are kept: least loss, most exact captions, or most CIDEr.",
)
@click.option("--validate-steps", type=click.IntRange(1), help="Validate after so many steps.  [default: an epoch]")
@click.option("--patience", type=click.IntRange(1), help="Stop after so many validations without a better one.")
@click.option(
    "--new-tokens", type=click.IntRange(1), help="Learn at most so many new words and characters from the captions."
)
@click.option("--lowercase", is_flag=True, help="New tokens: in lower case.")
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A tokenizer with new words behind the checkpoint's own.",
)
@click.option("--language", default="", help="Of the captions, as a tag such as fr or pt-BR.")
@click.option(
    "--dtype",
    type=click.Choice(get_args(TrainingDType)),
    default=FULL.dtype,
    help="auto: bf16 where the processor has it.",
)
@click.option("--seed", type=click.IntRange(0), default=FULL.seed, help="Of the order and of new weights.")
@click.option(
    "--cache", type=command_line.OutputFolder(), help="Keep a frozen encoder's embeddings there, for other runs."
)
@click.option("--workers", type=click.IntRange(1), default=1, help="Threads that decode images.")
@click.option("--save-minutes", type=click.FloatRange(0), default=5.0, help="Between two states to go on from.")
def main(
    checkpoint: str,
    processor: str | None,
    data: str,
    images: Path | None,
    column: str | None,
    text_column: str | None,
    output: Path,
    validation: float,
    validation_data: str | None,
    strict: bool,
    new_tokens: int | None,
    lowercase: bool,
    tokenizer: Path | None,
    language: str,
    cache: Path | None,
    workers: int,
    save_minutes: float,
    lora: bool,
    **given: Any,  # noqa: ANN401
) -> None:
    """Teach a captioner from your images and captions.

    A checkpoint comes out, or with --lora an adapter. A run that was stopped goes on by the same command.
    """
    if new_tokens and tokenizer:
        raise click.UsageError("give --new-tokens or --tokenizer, and not both")
    if lowercase and not new_tokens:
        raise click.UsageError("--lowercase is for --new-tokens: leave it out, or give both")
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = replace(LORA if lora else FULL, **chosen)
    with command_line.ending_in_one_sentence("finetune"):
        from safetensors import SafetensorError

        from blipstream_finetune.sources import open_source

        source = open_source(data, images, column, text_column)
        held_out = open_source(validation_data, images, column, text_column) if validation_data else None
        from blipstream_build.stages import stage

        with stage("loading PyTorch and transformers"):
            from blipstream_finetune.run import Words, Work, finetune
            from blipstream_finetune.training import Stopped
        try:
            finetune(
                checkpoint,
                source,
                output,
                settings,
                processor=processor,
                validation=held_out or validation,
                words=Words(tokenizer, new_tokens or 0, lowercase),
                language=language,
                work=Work(cache, strict, workers, save_minutes),
            )
        except Stopped as exc:
            click.echo(exc, err=True)
            sys.exit(exc.status)
        except SafetensorError as exc:  # the disk is full
            command_line.fail(exc)
    click.echo(f"written: {output}")
    following = command_line.command("serve", str(output))
    if settings.is_adapter:
        given_as = "adapters" if command_line.called_by_make() else "adapter"
        following = command_line.command("serve", checkpoint, processor=processor, **{given_as: f"NAME={output}"})
    click.echo(f"next: {following}")
