# SPDX-License-Identifier: Apache-2.0
"""`blipstream monitoring`: the files of the checkout, with the addresses of servers, as Prometheus reads them."""

import shlex
import subprocess
from pathlib import Path

from click.testing import CliRunner

from blipstream.monitoring import main
from tests.conftest import ROOT
from tests.support.deployment import load_yaml
from tests.support.programs import program

DEPLOY = ROOT / "deploy"


def test_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    done = CliRunner().invoke(main, [str(folder)])
    assert (done.exit_code, done.stderr) == (0, "")
    assert all(len(line) <= 80 or str(folder) in line for line in done.stdout.splitlines())
    files = {
        "scrape.yml": "prometheus/scrape.yml",
        "rules/blipstream.yml": "prometheus/rules/blipstream.yml",
        "user/alerts.html": "prometheus/user/alerts.html",
        "dashboard.json": "grafana/dashboards/blipstream.json",
    }
    found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == {name: (DEPLOY / source).read_text() for name, source in files.items()}


def test_the_servers(tmp_path: Path) -> None:
    arguments = ["--host", "a.example", "--host", "fd00:0::1", "--host", "a.example", "--metrics-port", "9002"]
    assert CliRunner().invoke(main, [str(tmp_path / "own"), *arguments]).exit_code == 0
    jobs = load_yaml((tmp_path / "own/scrape.yml").read_text())["scrape_configs"]
    assert {job["job_name"]: job["static_configs"] for job in jobs} == {
        "triton": [{"targets": ["a.example:9002", "[fd00::1]:9002"]}],
        "supervisor": [{"targets": ["a.example:9003", "[fd00::1]:9003"]}],
    }
    assert CliRunner().invoke(main, [str(tmp_path / "other"), "--health-port", "1"]).exit_code == 0
    assert "localhost:1" in (tmp_path / "other/scrape.yml").read_text()


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments, fault in (
        ([tmp_path], "has files already: choose another folder"),
        ([tmp_path / "file"], "is a file"),
        ([tmp_path / "new", "--metrics-port", "65535"], "there is no health port 65536: give another --metrics-port"),
        ([tmp_path / "new", "--host", "a:1"], "a host is a name such as triton.example"),
    ):
        done = CliRunner().invoke(main, list(map(str, arguments)))
        assert done.exit_code in (1, 2)
        assert fault in " ".join(done.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_printed_lines_work(tmp_path: Path) -> None:
    promtool, folder = program("promtool"), tmp_path / "it's here"
    lines = [line.strip() for line in CliRunner().invoke(main, [str(folder)]).stdout.splitlines()]
    config = load_yaml("\n".join(line for line in lines if "_files: " in line))
    assert config == {"scrape_config_files": [f"{folder}/scrape.yml"], "rule_files": [f"{folder}/rules/*.yml"]}
    (assets,) = (word for line in lines if "user-assets" in line for word in shlex.split(line))
    assert Path(assets.partition("=")[2], "alerts.html").is_file()
    # as for one that is older than 2.43: the rules are named, and the jobs are copied
    (tmp_path / "prometheus.yml").write_text(
        "\n".join([*(line for line in lines if "rule_files" in line), (folder / "scrape.yml").read_text()])
    )
    command = [promtool, "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rules found" in done.stdout
