# SPDX-License-Identifier: Apache-2.0
"""`blipstream build`. What takes seconds to import is imported when a build begins, so that --help does not wait."""

import sys
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any, get_args

import click

from blipstream.config import DType
from blipstream.errors import ArtifactError, BlipstreamError
from blipstream.files import DEMO_CHECKPOINT
from blipstream_build import interruption
from blipstream_build.configs import CONFIGS, PlanOptions

DEFAULTS = PlanOptions()


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]}, epilog="In a checkout, `make build` calls this."
)
@click.argument("checkpoint", required=False)
@click.option("--checkpoint", "named", hidden=True, help="The same as the argument.")
@click.option(
    "--processor",
    envvar="BLIPSTREAM_PROCESSOR",
    help="Hub name or folder to take the tokenizer and the image processor from, if the checkpoint lacks one.",
)
@click.option(
    "--config",
    type=click.Choice(list(CONFIGS)),
    envvar="BLIPSTREAM_CONFIG",
    default="cpu",
    show_default=True,
    help="How it is to be served.",
)
@click.option(
    "--dtype",
    type=click.Choice(get_args(DType)),
    default="auto",
    show_default=True,
    help="Number format to compute in; auto: f16 on a GPU, else bf16 if the serving processor has it, else f32.",
)
@click.option(
    "--repository",
    help="Model repository to build into.  [default: a folder of ~/.cache/blipstream]",
)
@click.option(
    "--opt-batch",
    type=click.IntRange(1, DEFAULTS.max_batch),
    default=DEFAULTS.opt_batch,
    show_default=True,
    help="TensorRT: the batch size that it chooses kernels for.",
)
@click.option("--workspace-mib", type=click.IntRange(1), help="TensorRT: the most scratch memory; if absent, all.")
@click.option("--hardware-compatible", is_flag=True, help="TensorRT: a slower plan, for Ampere and all later GPUs.")
@click.option("--version-compatible", is_flag=True, help="TensorRT: a slower plan, for later versions of it too.")
@click.option("--refit", is_flag=True, help="TensorRT: a plan that takes other weights later.")
@click.option("--force", is_flag=True, help="Build even what is up to date.")
@click.option("--print-path", is_flag=True, help="Print only the repository's path on standard output, for scripts.")
def main(
    checkpoint: str | None,
    named: str | None,
    processor: str | None,
    config: str,
    dtype: DType,
    repository: str | None,
    force: bool,
    print_path: bool,
    **plan_options: Any,  # noqa: ANN401
) -> None:
    """Turn a BLIP checkpoint into a model repository for Triton, and compare it with transformers.

    CHECKPOINT is a hub name or a folder. If absent, the demo checkpoint is built.
    """
    if checkpoint is not None and named is not None:
        raise click.UsageError("CHECKPOINT is given twice, as argument and as option: leave one out.")
    with interruption.handled(), ExitStack() as output:
        if print_path:
            output.enter_context(redirect_stdout(sys.stderr))
        try:
            if repository == "":  # as a Path it would be the working folder
                raise ArtifactError("--repository is empty: give the name of a folder")
            import torch
            import transformers

            from blipstream_build.build import build

            transformers.utils.logging.disable_progress_bar()
            transformers.utils.logging.set_verbosity_error()  # the build checks what it would warn of
            torch.set_grad_enabled(False)
            interruption.end_cleanly()
            built = build(
                next((given for given in (checkpoint, named) if given is not None), str(DEMO_CHECKPOINT)),
                dtype,
                None if repository is None else Path(repository),
                config,
                PlanOptions(**plan_options),
                processor=processor,
                force=force,
            )
        except (Exception, KeyboardInterrupt) as exc:
            if interruption.heard.is_set():  # whatever a library made of it
                click.echo(interruption.MESSAGE, err=True)
                sys.exit(interruption.STATUS)
            if isinstance(exc, ModuleNotFoundError):
                exc = ArtifactError(f"{exc.name} is not installed here: pip install 'blipstream[{config}]'")
            if not isinstance(exc, BlipstreamError | OSError):
                raise
            click.echo(f"error: {exc}", err=True)
            sys.exit(1)
    if print_path:
        click.echo(built)
