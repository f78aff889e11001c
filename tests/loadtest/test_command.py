# SPDX-License-Identifier: Apache-2.0
"""`blipstream loadtest` and `blipstream tune` where something is missing, and their help."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from blipstream.extras import missing

VERBS = ("loadtest", "tune")


def without(package: str, verb: str) -> tuple[int, str]:
    """Exit status and standard error of a verb, where a package cannot be imported."""
    program = f"import sys; sys.modules[{package!r}] = None; from blipstream_{verb}.command import main; main([])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("package", "verb"), [("locust", "loadtest"), ("jinja2", "loadtest"), ("matplotlib", "tune"), ("yaml", "tune")]
)
def test_what_to_install(package: str, verb: str) -> None:
    status, said = without(package, verb)
    assert status == 1
    assert said.splitlines()[-1] == f"Error: {missing(package, 'loadtest')}"
    assert "Traceback" not in said


@pytest.mark.parametrize("verb", VERBS)
def test_something_is_said_before_anything_slow(verb: str) -> None:
    assert without("yaml", verb)[1].startswith(f"preparing the {'load test' if verb == 'loadtest' else 'search'} ...\n")


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_and_shows_every_default(verb: str) -> None:
    (entry_point,) = entry_points(group="blipstream.commands", name=verb)
    command = entry_point.load()
    assert isinstance(command, click.Command)
    shown = CliRunner().invoke(command, ["-h"]).output
    assert max(map(len, shown.splitlines())) <= 80
    options = [
        each for each in shown.split("\n  --")[1:] if not each.startswith(("images-per-day", "report", "work-for"))
    ]
    assert len(options) > 5
    assert [each for each in options if "[default: " not in " ".join(each.split())] == []


@pytest.mark.parametrize("number", ["many", "0", "-1"])
def test_no_number_of_images(number: str) -> None:
    (entry_point,) = entry_points(group="blipstream.commands", name="loadtest")
    refused = CliRunner().invoke(entry_point.load(), ["--images-per-day", number])
    assert refused.exit_code == 2
    assert "expected a number above 0, such as 5000000, 5_000_000, 5e6 or 5M" in refused.output


def test_an_old_report_takes_no_other_slo(tmp_path: Path) -> None:
    (entry_point,) = entry_points(group="blipstream.commands", name="loadtest")
    refused = CliRunner().invoke(entry_point.load(), ["mine", "--report", str(tmp_path), "--p95-ms", "4000"])
    assert refused.exit_code == 2
    said = " ".join(refused.output.split())
    assert "--report takes only --images-per-day and --peak-factor, " in said
    assert "leave out checkpoint, --p95-ms" in said


def test_locusts_image_needs_nothing_else() -> None:
    """It has neither the charts' package nor PyTorch."""
    program = "import sys, locust, blipstream_loadtest.locustfile; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "blipstream_loadtest.users" in done.stdout.split()
    assert not {"matplotlib", "rich", "torch", "transformers"} & set(done.stdout.split())
