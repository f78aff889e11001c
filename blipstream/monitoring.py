# SPDX-License-Identifier: Apache-2.0
"""`blipstream monitoring`: the files for a Prometheus and a Grafana of one's own. docs/monitoring.md explains them."""

import json
import shlex
import shutil
from pathlib import Path

import click

from blipstream import command_line
from blipstream.files import DASHBOARDS, PROMETHEUS
from blipstream.server.triton import TritonServer

LAST_PORT = 65535
LOCAL = {"metrics": f"localhost:{TritonServer.metrics_port}", "health": f"localhost:{TritonServer.metrics_port + 1}"}


@click.command(context_settings=command_line.SETTINGS | {"auto_envvar_prefix": None})
@click.argument("folder", metavar="DIR", type=command_line.OutputFolder())
@click.option(
    "--host",
    "hosts",
    type=command_line.Host(),
    multiple=True,
    default=["localhost"],
    help="Where a server runs; may be repeated.",
)
@click.option(
    "--metrics-port", type=click.IntRange(1, LAST_PORT), default=TritonServer.metrics_port, help="Its metrics."
)
@click.option(
    "--health-port", type=click.IntRange(1, LAST_PORT), help="Its health.  [default: the one above the metrics port]"
)
def main(folder: Path, hosts: tuple[str, ...], metrics_port: int, health_port: int | None) -> None:
    """Write what Prometheus and Grafana need to DIR.

    That is jobs that ask the servers, rules with alerts, the page to which alerts link, and a dashboard.
    """
    with command_line.ending_in_one_sentence("cpu"):
        if folder.exists() and any(folder.iterdir()):
            command_line.fail(f"{folder} has files already: choose another folder, or remove it")
        health_port = health_port or metrics_port + 1
        if health_port > LAST_PORT:
            command_line.fail(f"there is no health port {health_port}: give another --metrics-port, or a --health-port")
        write(folder, tuple(dict.fromkeys(hosts)), metrics_port, health_port)
    place = folder.absolute()
    click.echo(
        "In your prometheus.yml, name two of its files, and start Prometheus anew:\n"
        f"  scrape_config_files: [{json.dumps(f'{place}/scrape.yml')}]\n"
        f"  rule_files: [{json.dumps(f'{place}/rules/*.yml')}]\n"
        "Before Prometheus 2.43, copy the jobs of scrape.yml instead of naming it.\n"
        "Options of Prometheus, so that an alert leads to what it means:\n"
        f"  {shlex.quote(f'--web.user-assets={place}/user')}\n"
        "  --web.external-url=http://NAME:9090\n"
        "Grafana imports dashboard.json; its data source must have the uid prometheus."
    )


def write(folder: Path, hosts: tuple[str, ...], metrics_port: int, health_port: int) -> None:
    """Write the files, with the servers' addresses. Raises OSError."""
    shutil.copytree(PROMETHEUS / "rules", folder / "rules", copy_function=shutil.copyfile)
    shutil.copytree(PROMETHEUS / "user", folder / "user", copy_function=shutil.copyfile)
    shutil.copyfile(DASHBOARDS / "blipstream.json", folder / "dashboard.json")
    jobs = (PROMETHEUS / "scrape.yml").read_text(encoding="utf-8")
    for name, port in {"metrics": metrics_port, "health": health_port}.items():
        targets = ", ".join(f'"{command_line.address(host, port)}"' for host in hosts)
        assert f'["{LOCAL[name]}"]' in jobs
        jobs = jobs.replace(f'["{LOCAL[name]}"]', f"[{targets}]")
    (folder / "scrape.yml").write_text(jobs, encoding="utf-8")
