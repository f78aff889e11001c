# SPDX-License-Identifier: Apache-2.0
"""`blipstream build`. What takes seconds to import is imported if there is something to build."""

import sys
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any, get_args

import click

from blipstream import command_line, signals
from blipstream.config import DType
from blipstream.errors import ArtifactError
from blipstream.files import DEMO_CHECKPOINT
from blipstream_build.adapters.base import Base
from blipstream_build.adapters.command import NamedFolder
from blipstream_build.adapters.install import add, find_adapters
from blipstream_build.configs import CONFIGS, EncoderDType, PlanOptions

DEFAULTS = PlanOptions()


@click.command(context_settings=command_line.SETTINGS, epilog=command_line.BY_ENVIRONMENT.format("BLIPSTREAM_DTYPE"))
@click.argument("checkpoint", required=False, envvar="BLIPSTREAM_CHECKPOINT")
@click.option("--checkpoint", "named", hidden=True, allow_from_autoenv=False, help="The same as the argument.")
@click.option(
    "--processor",
    help="Hub name or folder to take the tokenizer and the image processor from, if the checkpoint lacks one.",
)
@click.option("--config", type=click.Choice(list(CONFIGS)), default="cpu", help="How it is to be served.")
@click.option(
    "--dtype",
    type=click.Choice(get_args(DType)),
    default="auto",
    help="Number format to compute in; auto: f16 on a GPU, else bf16 if the serving processor has it, else f32.",
)
@click.option(
    "--encoder-dtype",
    type=click.Choice(get_args(EncoderDType)),
    help="TensorRT: multiply in fp8 in the encoder, on Ada and later GPUs.  [default: as --dtype]",
)
@click.option(
    "--calibration-images",
    type=click.Path(path_type=Path),
    help="Folder of images like yours to calibrate and check fp8 on: at least 16, better 300.",
)
@click.option("--repository", help="Model repository to build into.  [default: a folder of ~/.cache/blipstream]")
@click.option(
    "--opt-batch",
    type=click.IntRange(1, DEFAULTS.max_batch),
    default=DEFAULTS.opt_batch,
    help="TensorRT: the batch size that it chooses kernels for.",
)
@click.option("--workspace-mib", type=click.IntRange(1), help="TensorRT: the most scratch memory.  [default: all]")
@click.option("--hardware-compatible", is_flag=True, help="TensorRT: a slower plan, for Ampere and all later GPUs.")
@click.option("--version-compatible", is_flag=True, help="TensorRT: a slower plan, for later versions of it too.")
@click.option("--refit", is_flag=True, help="TensorRT: a plan that takes other weights later.")
@click.option(
    "--adapter",
    "adapters",
    type=NamedFolder(),
    multiple=True,
    help="An adapter of PEFT's to add. Repeatable; as an environment variable, with ';'.",
)
@click.option("--force", is_flag=True, help="Build even what is up to date.")
@click.option("--print-path", is_flag=True, help="Print only the repository's path on standard output, for scripts.")
def main(
    checkpoint: str | None,
    named: str | None,
    processor: str | None,
    config: str,
    dtype: DType,
    encoder_dtype: EncoderDType | None,
    calibration_images: Path | None,
    repository: str | None,
    adapters: tuple[tuple[str, Path], ...],
    force: bool,
    print_path: bool,
    **plan_options: Any,  # noqa: ANN401
) -> None:
    """Turn a BLIP checkpoint into a model repository for Triton, and compare it with transformers.

    CHECKPOINT is a hub name or a folder. If absent, the demo checkpoint is built, which knows emoji scenes only.
    """
    if checkpoint is not None and named is not None:
        raise click.UsageError("CHECKPOINT is given twice, as argument and as option: leave one out.")
    given = named if checkpoint is None else checkpoint
    with command_line.ending_in_one_sentence(config), ExitStack() as output:
        if print_path:
            output.enter_context(redirect_stdout(sys.stderr))
        if given == "":
            raise ArtifactError(
                "CHECKPOINT is empty: give a hub name or a folder, or leave it out for the demo checkpoint"
            )
        folder = command_line.repository_folder(repository)
        found = find_adapters(adapters)
        from blipstream_build.build import build

        built = build(
            str(DEMO_CHECKPOINT) if given is None else given,
            dtype,
            folder,
            config,
            PlanOptions(**plan_options),
            processor=processor,
            encoder_dtype=encoder_dtype,
            calibration_images=calibration_images,
            force=force,
            prepared=signals.interrupt_on_signals,
        )
        if found:
            add(built, found, Base(given, processor))
    if print_path:
        click.echo(built)
        return
    other = {"config": None if config == "cpu" else config}
    if command_line.called_by_make():
        following = command_line.command("serve", given, repository=repository, processor=processor, **other)
    elif repository is None and dtype == "auto" and encoder_dtype is None:
        following = command_line.command("serve", given, processor=processor, **other)
    else:
        following = command_line.command("serve", repository=built, **other)
    click.echo(f"next: {following}")
