# SPDX-License-Identifier: Apache-2.0
"""What Prometheus and Grafana are told to do, against what a running Triton measures."""

import itertools
import json
import re
import shutil
import subprocess
import urllib.request
from typing import Any

import promql_parser
import pytest

from blipstream import serve
from blipstream.server import TritonServer
from tests.conftest import ROOT
from tests.deploy.files import compose, load_yaml

DEPLOY = ROOT / "deploy"
PROMETHEUS = DEPLOY / "prometheus" / "prometheus.yml"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
PROMETHEUS_OWN = {"up"}
# Triton's documentation, "GPU Metrics": no machine without a GPU has them
GPU_METRICS = {
    "nv_gpu_power_usage",
    "nv_gpu_power_limit",
    "nv_energy_consumption",
    "nv_gpu_utilization",
    "nv_gpu_memory_total_bytes",
    "nv_gpu_memory_used_bytes",
}


def panels() -> list[dict[str, Any]]:
    return [panel for path in DASHBOARDS for panel in json.loads(path.read_text())["panels"]]


def queries() -> list[str]:
    """What the panels ask Prometheus, Grafana's own variable filled in."""
    return [target["expr"].replace("$__rate_interval", "20s") for panel in panels() for target in panel["targets"]]


def metric_names(query: str) -> set[str]:
    """The metrics in a query; raises ValueError if it is no PromQL."""
    names: set[str] = set()

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            names.add(str(node.name))
        return True

    promql_parser.walk(promql_parser.parse(query), visit)
    return names


@pytest.mark.parametrize("query", queries())
def test_triton_measures_what_the_dashboard_shows(server: TritonServer, query: str) -> None:
    metrics = urllib.request.urlopen(server.metrics_url).read().decode()
    measured = set(re.findall(r"^# TYPE (\w+)", metrics, re.MULTILINE))
    wanted = metric_names(query)
    assert wanted
    assert wanted <= measured | GPU_METRICS | PROMETHEUS_OWN


def test_panels() -> None:
    """Each is there once, on a place of its own, and asks the data source that is provisioned."""
    (source,) = load_yaml((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    expected = {"type": source["type"], "uid": source["uid"]}
    assert len({panel["id"] for panel in panels()}) == len(panels())
    for panel in panels():
        assert panel["datasource"] == expected
        assert all(target["datasource"] == expected for target in panel["targets"])
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels()], 2):
        apart_across = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_down = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_across or apart_down


def test_everyone_finds_the_other() -> None:
    """Prometheus finds Triton, Grafana finds Prometheus and the dashboards."""
    services = compose()["services"]
    metrics_port = next(param.default for param in serve.main.params if param.name == "metrics_port")
    (job,) = load_yaml(PROMETHEUS.read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"triton:{metrics_port}"]}]
    (source,) = load_yaml((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (published,) = services["prometheus"]["ports"]
    assert source["url"] == f"http://prometheus:{published.split(':')[-1]}"
    (provider,) = load_yaml((DEPLOY / "grafana/provisioning/dashboards/blipstream.yml").read_text())["providers"]
    folder = provider["options"]["path"]
    assert f"./deploy/grafana/dashboards:{folder}:ro" in services["grafana"]["volumes"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in {f"{folder}/{path.name}" for path in DASHBOARDS}


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool, of Debian's package prometheus")
def test_prometheus_accepts_its_configuration() -> None:
    done = subprocess.run(["promtool", "check", "config", PROMETHEUS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
