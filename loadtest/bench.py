# SPDX-License-Identifier: Apache-2.0
"""The side-by-side benchmark: transformers, the engine alone, and Blipstream through Triton, in one run on one machine.

python loadtest/bench.py --device cpu

This file has the command; `benchmark.py` measures. What is slow to import, such as PyTorch, is imported by the command
once its options have been read.
"""

from pathlib import Path

import click

import cli
from bench_plans import PLANS, STRATEGIES
from random_checkpoint import ARCHITECTURES

CACHE = cli.ROOT / "loadtest" / ".bench_cache"


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
    "--strategy",
    "strategies",
    type=click.Choice(list(STRATEGIES)),
    multiple=True,
    help="Decoding strategy to measure. May be repeated. Default: all.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    help="Length of one measurement; a run has about 100. Default: 3; on a GPU, 5.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=CACHE,
    show_default="loadtest/.bench_cache",
    help="Folder for random checkpoints and the model repositories built from them.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=cli.RESULTS,
    show_default="loadtest/results",
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
    strategies: tuple[str, ...],
    seconds: float | None,
    cache: Path,
    output: Path,
    shown: Path | None,
) -> None:
    """Compare transformers, the engine alone and Blipstream through Triton on this machine.

    For each decoding strategy and number format, the table shows images a second, the latency of one image at a time
    and the most memory. Each system has a process of its own. The systems take turns, and the median of the rounds
    counts, so that the ratios hold on a machine that does other work, too.

    A full run takes about half an hour on two cores. Let nothing else run meanwhile.
    """
    import bench_report

    if shown:
        click.echo(bench_report.markdown(bench_report.read(shown)))
        return

    import benchmark

    cli.stop_on_signals()
    plan = benchmark.make_plan(device, quick, strategies, seconds)
    for name in architectures or benchmark.default_architectures(device, checkpoint):
        benchmark.compare(name, checkpoint, plan, device, cache, output)


if __name__ == "__main__":
    main()
