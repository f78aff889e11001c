# SPDX-License-Identifier: Apache-2.0
"""`blipstream bench`: transformers, the engine alone and Blipstream through Triton, side by side in one run.

`benchmark.py` measures. What is slow to import, such as PyTorch, is imported once the options have been read.
"""

from pathlib import Path

import click

from blipstream import signals
from blipstream.command_line import OutputFolder
from blipstream.finite import FiniteRange
from blipstream_bench.plans import PLANS, STRATEGIES, TASKS
from blipstream_bench.random_checkpoint import ARCHITECTURES
from blipstream_bench.signals import stop_on_signals
from blipstream_build.cache import cache_folder


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--device", type=click.Choice(list(PLANS)), default="cpu", show_default=True, help="What runs the models."
)
@click.option(
    "--architecture",
    "architectures",
    type=click.Choice(list(ARCHITECTURES)),
    multiple=True,
    help="Size of a checkpoint with random weights. May be repeated. Default: base; on a GPU, base and large.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of a checkpoint to measure instead of random weights.",
)
@click.option("--quick", is_flag=True, help="Check that everything works: a few images, f32 only, two layers.")
@click.option(
    "--what",
    "subject",
    type=click.Choice(list(TASKS)),
    default="captions",
    show_default=True,
    help="What to measure. heatmaps: explaining against captioning; adapters: eight in a batch against none; "
    "matching: with a retrieval checkpoint.",
)
@click.option(
    "--strategy",
    "strategies",
    type=click.Choice(list(STRATEGIES)),
    multiple=True,
    help="Decoding strategy to measure. May be repeated. Default: all.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    help="How often the systems take turns. Default: 3; on a GPU, 5.",
)
@click.option(
    "--seconds",
    type=FiniteRange(min=0),
    help="Length of one measurement; a run has about 200. Default: 3; on a GPU, 2.",
)
@click.option(
    "--cache",
    type=OutputFolder(),
    help="Folder for random checkpoints and the repositories built from them.  [default: ~/.cache/blipstream/bench]",
)
@click.option(
    "--output",
    type=OutputFolder(),
    default=Path(),
    show_default="the working folder",
    help="Folder for bench.json and bench.png.",
)
@click.option(
    "--markdown",
    "shown",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Measure nothing; print this bench.json as a Markdown table.",
)
def main(
    device: str,
    architectures: tuple[str, ...],
    checkpoint: Path | None,
    quick: bool,
    subject: str,
    strategies: tuple[str, ...],
    rounds: int | None,
    seconds: float | None,
    cache: Path | None,
    output: Path,
    shown: Path | None,
) -> None:
    """Compare transformers, the engine alone and Blipstream through Triton on this machine.

    For each decoding strategy and number format, the table shows images a second, the latency of one image at a time
    and the most memory, with the batch sizes that were tried. Each system has a process of its own and is warmed up.
    The systems take turns, with each of their batch sizes, and the median of the rounds counts, so that the ratios hold
    on a machine that does other work, too. The batch size with the most images a second is shown.

    With --what matching, one image is matched with 1, 10 and 100 texts, and images and texts are embedded. transformers
    encodes each image once, reads its texts in batches, and has the similarities to compute, too.

    A full run takes about half an hour on two cores. For less, take --rounds 1 --strategy greedy. Let nothing else
    run meanwhile.
    """
    if not shown:
        click.echo("loading PyTorch and transformers ...", err=True)
    try:
        with signals.handled():
            from blipstream_bench import benchmark, report
    except ModuleNotFoundError as exc:
        raise click.ClickException(
            f"{exc.name} is not installed here: pip install 'blipstream[{device},bench]'"
        ) from exc

    if shown:
        click.echo(report.markdown(report.read(shown)))
        return
    stop_on_signals()
    plan = benchmark.make_plan(device, quick, subject, strategies, rounds, seconds)
    for name in architectures or benchmark.default_architectures(device, checkpoint):
        benchmark.compare(name, checkpoint, plan, device, cache or cache_folder() / "bench", output)
