# SPDX-License-Identifier: Apache-2.0
"""The settings of Prometheus and Grafana, against what a running Triton measures."""

import itertools
import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from blipstream.server import command as serve
from blipstream.server.canary import random_image
from blipstream.server.health import Health
from blipstream.server.triton import TritonServer
from blipstream_client import Client, ServerError
from tests.conftest import ROOT
from tests.support.deployment import compose, load_yaml
from tests.support.documents import all_blocks, anchors
from tests.support.programs import answers, free_port, program, running
from tests.support.waiting import wait_until

DEPLOY = ROOT / "deploy"
PROMETHEUS = DEPLOY / "prometheus" / "prometheus.yml"
SCRAPE = DEPLOY / "prometheus" / "scrape.yml"
RULES = DEPLOY / "prometheus" / "rules" / "blipstream.yml"
ALERTS_PAGE = DEPLOY / "prometheus" / "user" / "alerts.html"
RULE_TESTS = ROOT / "tests" / "deploy" / "alerts.yml"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
PROMETHEUS_OWN = {"up", "ALERTS"}
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
    """The panels' queries, with Grafana's own variable filled in."""
    return [target["expr"].replace("$__rate_interval", "20s") for panel in panels() for target in panel["targets"]]


def rules() -> list[dict[str, str]]:
    """The recorded figures and the alerts."""
    return [rule for group in load_yaml(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """The alerts."""
    return [rule for group in load_yaml(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule]


RECORDED = {rule["record"] for rule in rules() if "record" in rule}
ALERTS = {rule["alert"] for rule in rules() if "alert" in rule}


def metric_names(query: str) -> set[str]:
    """The metrics in a query. Raises ValueError if it is no PromQL."""
    names: set[str] = set()

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            names.add(str(node.name))
        return True

    promql_parser.walk(promql_parser.parse(query), visit)
    return names


@pytest.fixture(scope="module")
def measured(matching_server: TritonServer) -> set[str]:
    """The metrics that a running server of captions and matches and its supervisor have."""
    metrics = urllib.request.urlopen(matching_server.metrics_url).read().decode() + Health().metrics()
    return set(re.findall(r"^# TYPE (\w+)", metrics, re.MULTILINE))


@pytest.mark.parametrize("query", [*queries(), *(rule["expr"] for rule in rules())])
def test_what_is_asked_for_is_measured(measured: set[str], query: str) -> None:
    histograms = {f"{name}_bucket" for name in measured}
    wanted = metric_names(query)
    assert wanted
    assert wanted <= measured | histograms | RECORDED | GPU_METRICS | PROMETHEUS_OWN


def test_the_models_behind_ensembles_are_named() -> None:
    """Where the rules and the dashboard tell them from those that clients ask, they name all of them."""
    lists = set(
        re.findall(r'model[!=]~"(preprocess\|[^"]*)"', " ".join([*queries(), *(rule["expr"] for rule in rules())]))
    )
    configs = {path.parent.name: path.read_text() for path in (ROOT / "model_repository").glob("*/config.pbtxt")}
    behind = {name for name, config in configs.items() if 'platform: "ensemble"' not in config} - {"caption_stream"}
    assert {frozenset(each.split("|")) - {"caption_stream"} for each in lists} == {frozenset(behind)}


def test_every_alert_and_every_figure_is_of_use() -> None:
    """Each alert is tested to be silent and to fire, each figure is shown or judged."""
    tests = [each for group in load_yaml(RULE_TESTS.read_text())["tests"] for each in group.get("alert_rule_test", [])]
    assert {each["alertname"] for each in tests if each["exp_alerts"]} == ALERTS
    assert {each["alertname"] for each in tests if not each["exp_alerts"]} >= ALERTS - {"BlipstreamMemoryFull"}
    used = set().union(*map(metric_names, [*queries(), *(rule["expr"] for rule in rules())]))
    assert used >= RECORDED


def test_panels() -> None:
    """Each panel has an id and a place of its own, and asks the data source that is provisioned."""
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
    defaults: dict[str | None, Any] = {param.name: param.default for param in serve.main.params}
    jobs = {job["job_name"]: job["static_configs"] for job in load_yaml(PROMETHEUS.read_text())["scrape_configs"]}
    assert jobs == {
        "triton": [{"targets": [f"triton:{defaults['metrics_port']}"]}],
        "supervisor": [{"targets": [f"triton:{defaults['metrics_port'] + 1}"]}],
    }
    (source,) = load_yaml((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (published,) = services["prometheus"]["ports"]
    assert source["url"] == f"http://prometheus:{published.split(':')[-1]}"
    (provider,) = load_yaml((DEPLOY / "grafana/provisioning/dashboards/blipstream.yml").read_text())["providers"]
    folder = provider["options"]["path"]
    assert f"./deploy/grafana/dashboards:{folder}:ro" in services["grafana"]["volumes"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in {f"{folder}/{path.name}" for path in DASHBOARDS}


def shown_on_the_page() -> list[str]:
    """The configurations that the page shows: scrape.yml, and what to write for a new and for an old Prometheus."""
    return [block.code for block in all_blocks("yaml") if block.page == ROOT / "docs" / "monitoring.md"]


def test_a_prometheus_of_ones_own() -> None:
    """It scrapes as compose's does, on this machine. The page shows the file."""
    ours, theirs = (load_yaml(path.read_text())["scrape_configs"] for path in (PROMETHEUS, SCRAPE))
    interval = load_yaml(PROMETHEUS.read_text())["global"]["scrape_interval"]
    for job in ours:
        job["scrape_interval"] = interval
        for group in job["static_configs"]:
            group["targets"] = [target.replace("triton:", "localhost:") for target in group["targets"]]
    assert theirs == ours
    shown = shown_on_the_page()
    assert SCRAPE.read_text().endswith(f"\n{shown[0]}")
    assert load_yaml(shown[2])["scrape_configs"] == theirs


def test_every_alert_has_its_section() -> None:
    """In the document, which lint compares with the page, and on the page to which the alert links."""
    annotated = {rule["alert"]: rule["annotations"] for rule in alerts()}
    on_page = set(re.findall(r'<h3 id="(\w+)">', ALERTS_PAGE.read_text()))
    assert on_page == {name.lower() for name in ALERTS}
    assert on_page <= anchors(ROOT / "docs" / "monitoring.md")
    for name, annotations in annotated.items():
        assert annotations["runbook_url"] == f"{{{{ $externalURL }}}}/user/{ALERTS_PAGE.name}#{name.lower()}"


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", PROMETHEUS), ("check", "config", SCRAPE), ("test", "rules", RULE_TESTS)],
    ids=["config", "scrape", "rules"],
)
def test_promtool(arguments: tuple[str | Path, ...]) -> None:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# each goes on with a model's class
NO_ANSWER = """
    def execute(self, requests):
        raise RuntimeError("no words")
"""
NO_MEMORY = """
    initialize_well = initialize

    def initialize(self, args):
        self.initialize_well(args)
        self.service.engine.step = self.fail_to_step

    def fail_to_step(self):
        raise MemoryError
"""


@pytest.fixture
def failing(artifacts: Path, tmp_path: Path) -> Iterator[TritonServer]:
    """A ready server whose decoder answers nothing and whose streams fail."""
    repository = Path(shutil.copytree(artifacts, tmp_path / "failing", symlinks=True))
    for name, more in (("decoder", NO_ANSWER), ("caption_stream", NO_MEMORY)):
        model = repository / name / "1" / "model.py"
        text = model.read_text()
        model.unlink()
        model.write_text(text + more)
    with TritonServer(repository, config="cpu", http_port=0, grpc_port=0, metrics_port=0) as server:
        yield server


def in_seconds(text: str) -> str:
    """The same rules or configuration, with seconds instead of minutes."""
    text = re.sub(r"\[\d+m\]", "[3s]", text)
    text = re.sub(r"for: \w+", "for: 0s", text)
    return re.sub(r"(_interval): \w+", r"\1: 500ms", text)


def test_prometheus_scrapes_records_and_alerts(
    matching_server: TritonServer, failing: TritonServer, tmp_path: Path
) -> None:
    """As the page says: with our files in a folder beside its configuration. An alert's link leads to its section."""
    ours = Path(shutil.copytree(DEPLOY / "prometheus", tmp_path / "blipstream"))
    (ours / "rules" / RULES.name).write_text(in_seconds(RULES.read_text()))
    targets = f"127.0.0.1:{matching_server.metrics_port}", f"127.0.0.1:{failing.metrics_port}", "127.0.0.1:1"
    config = in_seconds(shown_on_the_page()[2]).replace('"localhost:8002"', ", ".join(f'"{each}"' for each in targets))
    (tmp_path / "prometheus.yml").write_text("global: {evaluation_interval: 500ms}\n" + config)
    port = free_port()

    def ask(query: str) -> set[tuple[str, ...]]:
        """The labels that tell a query's results apart."""
        url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        found = [each["metric"] for each in json.load(urllib.request.urlopen(url))["data"]["result"]]
        return {tuple(each[name] for name in ("instance", "alertname", "model") if name in each) for each in found}

    def fires() -> set[tuple[str, ...]]:
        alerts = "BlipstreamFailing|BlipstreamDown|BlipstreamStillDown"
        return ask(f'ALERTS{{alertstate="firing", alertname=~"{alerts}", job!="supervisor"}}')

    def provoke() -> bool:
        """One more request of each kind that fails."""
        with Client(failing.grpc_url, retries=0) as client:
            with pytest.raises(ServerError):
                client.caption(random_image())
            with pytest.raises(ServerError):
                list(client.stream(random_image()))
        return fires() == failures | {(targets[2], "BlipstreamStillDown")}

    failures = {(targets[1], "BlipstreamFailing", model) for model in ("decoder", "caption_stream")}
    matches = 'blipstream:latency_seconds:mean1m{model="match"} > 0'
    arguments = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    arguments += [f"--web.user-assets={ours}/user", f"--web.external-url=http://127.0.0.1:{port}"]
    address = f"--web.listen-address=127.0.0.1:{port}"
    ready = f"http://127.0.0.1:{port}/-/ready"
    with running(program("prometheus"), *arguments, address, log=tmp_path / "log", until=lambda: answers(ready)):
        wait_until(provoke)
        assert ask("blipstream:faults:ratio1m > 0") == {(targets[1], "decoder"), (targets[1], "caption_stream")}
        assert (targets[1],) in ask("blipstream:captions:rate1m == 0")
        wait_until(lambda: (targets[0],) in ask("blipstream:captions:rate1m"))
        with Client(matching_server.grpc_url) as client:
            wait_until(
                lambda: bool(client.match(random_image(), ["a cat"])) and ask(matches) == {(targets[0], "match")}
            )
        failing.stop()
        wait_until(lambda: (targets[1], "BlipstreamDown") in fires())
        assert (targets[2], "BlipstreamDown") not in fires()
        found = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/alerts"))["data"]["alerts"]
        links = {each["annotations"]["runbook_url"] for each in found}
        assert f"http://127.0.0.1:{port}/user/alerts.html#blipstreamdown" in links
        for link in links:
            page, _, section = link.partition("#")
            assert f'id="{section}"' in urllib.request.urlopen(page).read().decode()
