# SPDX-License-Identifier: Apache-2.0
"""`make loadtest`, with Locust against real servers for a few seconds: whether it measures, not what."""

import csv
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest
import trustme

from blipstream.server.network import free_ports
from blipstream.server.triton import TritonServer
from blipstream_loadtest.options import MIX_FILE
from blipstream_loadtest.results import LoadTest
from tests.conftest import ROOT
from tests.support.proxy import proxy
from tests.support.tiny_triton import Inputs, TinyTriton, size_of_image, tiny_triton

SVG = "data:image/svg+xml;base64,"
MODELS = {"caption", "preprocess", "encoder", "decoder"}


def start(*options: str | float | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "blipstream_loadtest", *map(str, options)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # on a busy machine, more threads would wait for each other
    )


def load(*options: str | float | Path) -> tuple[int, str]:
    """Run a load test; return its exit status and output."""
    process = start(*options)
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


@pytest.fixture(scope="module")
def closed(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of steps of closed-loop users, over both protocols, on a server that the load test starts."""
    output = tmp_path_factory.mktemp("closed")
    status, said = load(
        *("--repository", artifacts, "--protocol", "both", "--shape", "steps", "--users", 2, "--duration", 4),
        *("--timeout", 60, "--name", "steps", "--output", output),
    )
    assert status == 0, said
    assert "SLO met" in said
    assert f"report: {output}/steps/index.html (open it in a browser)" in said
    lines = said.splitlines()
    assert lines[0] == "preparing the load test ..."
    assert {"starting a server ...", "sending one request of each kind ...", "writing the report ..."} < set(lines)
    assert any("/s  p95 " in line and line.endswith(" s left of this step") for line in lines)
    assert max(map(len, lines[:-1])) <= 80
    return output / "steps"


@pytest.fixture(scope="module")
def open_loop(server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a spike of open-loop users in two workers, on a running server. Some requests are streams."""
    output = tmp_path_factory.mktemp("open")
    streams = output / "streams.yaml"
    streams.write_text(MIX_FILE.read_text().replace("weight: 0", "weight: 9"))
    status, said = load(
        *("--mix", streams),
        *("--host", server.grpc_url, "--shape", "spike", "--users", 4, "--rate", 20, "--duration", 6),
        *("--workers", 2, "--master-port", 0, "--timeout", 60, "--name", "spike", "--output", output),
        *("--min-rps", 100000, "--p95-ms", 0),
    )
    assert status == 1, said
    assert "SLO missed: p95 " in said
    assert "are below 100000" in said
    return output / "spike"


@pytest.fixture(params=["closed", pytest.param("open_loop", marks=pytest.mark.full)])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "requests.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_request_is_recorded_once(folder: Path) -> None:
    counts = {name: count for name, count in locust_counts(folder).items() if not name.endswith(" text")}
    assert len(rows(folder)) == sum(counts.values()) > 0
    assert {row["error"] for row in rows(folder)} == {""}


def locust_counts(folder: Path) -> Counter[str]:
    """Request counts by the name of Locust's entries."""
    counts: Counter[str] = Counter()
    with (folder / "locust_stats.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["Name"] != "Aggregated":
                counts[row["Name"]] += int(row["Request Count"])
    return counts


@pytest.mark.full
def test_streams_are_timed_text_by_text(closed: Path, open_loop: Path) -> None:
    """Two workers run these users, and gevent waits for gRPC there."""
    (streams,) = summary(open_loop)["streams"]
    streamed = [list(map(float, row["texts_ms"].split())) for row in rows(open_loop) if row["kind"] == "stream"]
    assert streams["name"] == "grpc stream"
    assert streams["streams"] == len(streamed) == locust_counts(open_loop)["stream: first text"] > 0
    texts = sum(len(each) for each in streamed)
    assert locust_counts(open_loop)["stream: next text"] == texts - len(streamed) > 3 * len(streamed)
    assert all(each == sorted(each) for each in streamed)
    first = [each[0] for each in streamed]
    assert min(first) <= streams["first_text_p50_ms"] <= streams["first_text_p99_ms"] <= max(first)
    assert streams["next_text_p50_ms"] > 0
    assert "next text p95 ms" in (open_loop / "index.html").read_text()
    assert summary(closed)["streams"] == []
    assert "next text" not in (closed / "index.html").read_text()


def test_the_server_counts_the_same(folder: Path) -> None:
    front_doors = [model for model in summary(folder)["models"] if model["name"] in ("caption", "caption_stream")]
    assert sum(model["requests"] for model in front_doors) == len(rows(folder))
    assert {model["name"] for model in summary(folder)["models"]} >= MODELS
    for model in summary(folder)["models"]:
        batched = sum(int(size) * count for size, count in model["batches"].items())
        assert batched == model["requests"]


@pytest.mark.full
def test_stages(closed: Path, open_loop: Path) -> None:
    assert [(stage["name"], stage["users"]) for stage in summary(closed)["stages"]][:2] == [
        ("1 user", 1),
        ("2 users", 2),
    ]
    assert [(stage["name"], stage["users"]) for stage in summary(open_loop)["stages"]] == [
        ("before", 1),
        ("spike", 4),
        ("after", 1),
    ]


@pytest.mark.full
def test_both_protocols_and_frequent_parts_of_the_mix(closed: Path, open_loop: Path) -> None:
    asked = rows(closed) + rows(open_loop)
    assert {row["protocol"] for row in asked} == {"grpc", "http"}
    frequent = {"greedy", "stream"}
    assert frequent <= {row["kind"] for row in asked} <= frequent | {"prompt", "beams", "sampling"}
    assert {"original", "640"} <= {row["size"] for row in asked} <= {"original", "640", "1920"}
    assert json.loads((closed / "run.json").read_text())["mix"] == MIX_FILE.read_text()


def test_processor_and_memory(folder: Path) -> None:
    test = LoadTest(folder)
    assert sum(cores for _, cores, _ in test.usage("server")) > 0
    assert all(memory > 50 for _, _, memory in test.usage("server"))
    assert sum(cores for _, cores, _ in test.usage("load")) > 0


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]


def test_page_needs_no_network(folder: Path) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert all(address.startswith("data:") for address in page.addresses)
    assert "script" not in page.tags
    assert "@import" not in text
    assert "url(" not in text


def test_page_has_charts_and_conditions(folder: Path) -> None:
    import base64

    text = (folder / "index.html").read_text(encoding="utf-8")
    charts = [address for address in Page(text).addresses if address.startswith(SVG)]
    words = []
    for chart in charts:
        drawing = ElementTree.fromstring(base64.b64decode(chart.removeprefix(SVG)))  # noqa: S314 - our own
        words.append("".join(drawing.itertext()))
    assert len(words) == 5
    for chart_words, word in zip(words, ("answered a second", "users", "queue", "batch size", "cores"), strict=True):
        assert word in chart_words
    conditions = json.loads((folder / "run.json").read_text())
    for value in (conditions["machine"]["processor"], conditions["versions"]["locust"], "num_beams: 3", "SLO m"):
        assert value in text


def test_page_can_be_written_again(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "index.html").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "blipstream_loadtest", "--report", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (0 if summary(folder)["passed"] else 1), done.stderr
    assert (copy / "index.html").read_text() == (folder / "index.html").read_text()


def test_a_report_for_another_demand(closed: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(closed, tmp_path / "copy")
    status, said = load("--report", copy, "--images-per-day", "5M", "--peak-factor", 3)
    assert status == 0, said
    assert "5,000,000 images a day are 57.9 a second on average and 173.6 at the peak" in said
    assert "Machines: " in said
    assert f"report: {copy}/index.html" in said
    page = (copy / "index.html").read_text()
    assert page.index("Machines: ") < page.index("<h2>Stages</h2>")
    assert summary(copy)["plan"][0].startswith("5,000,000 images a day")
    assert (copy / "run.json").read_text() == (closed / "run.json").read_text()  # so the old demand comes back


def test_a_report_of_a_missed_slo(closed: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(closed, tmp_path / "copy")
    conditions = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(conditions | {"slo": {"p95_ms": 1}}))
    status, said = load("--report", copy)
    assert status == 1, said
    assert "SLO missed: " in said


def test_a_search_says_what_it_found(closed: Path) -> None:
    """Two users were the bound. In the end comes a try with random arrivals, and every line fits a terminal."""
    test = LoadTest(closed)
    assert test.findings[0] == "The limit was not reached with 2 users: search on with a higher --users."
    assert test.planned
    assert test.findings[1].endswith(f"a second, sent at random times as people do: p95 {test.planned.p95_ms:.0f} ms.")
    assert test.planned.requests > 0
    stages = (closed / "stages.csv").read_text()
    assert [line.split(",")[0] for line in stages.splitlines()] == [
        "name",
        "1 user",
        "2 users",
        "pause",
        "at 70%",
        "end",
    ]


def test_a_search_goes_on_until_throughput_stops_growing(tmp_path: Path, tiny: TinyTriton) -> None:
    """The server answers one request after the other."""
    one_at_a_time = threading.Lock()

    def busy(inputs: Inputs) -> tuple[str, float, int]:
        with one_at_a_time:
            time.sleep(0.1)
        return size_of_image(inputs)

    tiny.answer = busy
    status, said = load(
        *("--host", tiny.url("grpc"), "--images-per-day", "100_000", "--duration", 3, "--name", "search"),
        *("--output", tmp_path),
    )
    assert status == 0, said
    test = LoadTest(tmp_path / "search")
    assert [stage.users for stage in test.searched][:3] == [1, 2, 4]
    assert test.findings[0].startswith("The limit was found: with more than ")
    assert test.planned
    assert "100,000 images a day are 1.2 a second on average and 2.9 at the peak, 2.5 times" in said
    assert "Machines: 1, each at 70% of the " in said


def test_a_search_ends_if_the_server_dies(tmp_path: Path) -> None:
    """Few requests are sent to nobody."""
    options = ("--images-per-day", "5M", "--p95-ms", 30000, "--duration", 300, "--name", "dead", "--output", tmp_path)
    with tiny_triton() as server:
        process = start("--host", server.url("grpc"), *options)
        deadline = time.monotonic() + 120
        while not (tmp_path / "dead" / "requests.csv").exists() or len(rows(tmp_path / "dead")) < 10:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 2, said
    assert "No result: the server stopped answering after " in said
    assert "Machines: unknown, since the server stopped answering." in said
    assert not summary(tmp_path / "dead")["passed"]
    assert "nan" not in (tmp_path / "dead" / "index.html").read_text().split("<h2>Stages</h2>")[0]
    assert 0 < sum(1 for row in rows(tmp_path / "dead") if row["error"]) < 100


def test_a_search_ends_if_its_first_requests_are_not_answered(tmp_path: Path, tiny: TinyTriton) -> None:
    """The server says that it is ready. The first four requests warm up."""
    asked, opened = 0, threading.Event()

    def hanging(inputs: Inputs) -> tuple[str, float, int]:
        nonlocal asked
        asked += 1
        if asked > 4:
            opened.wait(240)
        return size_of_image(inputs)

    tiny.answer = hanging
    try:
        status, said = load(
            *("--host", tiny.url("grpc"), "--images-per-day", "5M", "--duration", 3, "--timeout", 10),
            *("--name", "hung", "--output", tmp_path),
        )
    finally:
        opened.set()
    assert status == 2, said
    assert "the server stopped answering after 0 s (No answer from grpc://127.0.0.1:" in " ".join(said.split())
    assert len(rows(tmp_path / "hung")) == 1


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_behind_tls(scheme: str, tmp_path: Path, tiny: TinyTriton) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    if scheme == "grpc":
        context.set_alpn_protocols(["h2"])
    with proxy(tiny.port(scheme), tls=context) as running:
        status, said = load(
            *("--host", f"{scheme}s://127.0.0.1:{running.port}", "--ca-file", tmp_path / "ca.pem", "--users", 1),
            *("--duration", 1, "--name", "tls", "--output", tmp_path),
        )
    assert status == 0, said
    assert {row["error"] for row in rows(tmp_path / "tls")} == {""}
    refusal = {"grpc": "not implemented", "http": "Expecting value"}  # the tests' server has no statistics
    assert refusal[scheme] in (tmp_path / "tls" / "server.jsonl").read_text()


def test_a_certificate_that_is_not_trusted(tmp_path: Path, tiny: TinyTriton) -> None:
    """gRPC's own lines about it are not shown."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    context.set_alpn_protocols(["h2"])
    with proxy(tiny.port("grpc"), tls=context) as running:
        status, said = load("--host", f"grpcs://127.0.0.1:{running.port}", "--output", tmp_path)
    assert status == 2, said
    assert "is not trusted" in said
    assert "Handshake failed" not in said


@pytest.mark.full
def test_a_worker_elsewhere(tmp_path: Path, tiny: TinyTriton) -> None:
    """It waits for its master, and ends with it."""
    (port,) = free_ports([("127.0.0.1", "master", 0)])
    with start("--work-for", "127.0.0.1", "--master-port", port) as worker:
        try:
            status, said = load(
                *("--host", tiny.url("grpc"), "--users", 2, "--duration", 3, "--name", "far", "--output", tmp_path),
                *("--remote-workers", 1, "--master-port", port),
            )
            assert status == 0, said
            assert len(rows(tmp_path / "far")) > 0
            assert worker.wait(60) == 0
        finally:
            worker.kill()


@pytest.mark.full
def test_open_loop_users_do_not_slow_down_for_a_slow_server(tmp_path: Path, tiny: TinyTriton) -> None:
    """Two closed-loop users would send four requests a second, each with a latency of half a second."""

    def slow(inputs: Inputs) -> tuple[str, float, int]:
        time.sleep(0.5)
        return size_of_image(inputs)

    tiny.answer = slow
    status, said = load(
        *("--host", tiny.url("grpc"), "--users", 2, "--rate", 40, "--duration", 4, "--name", "open"),
        *("--output", tmp_path),
    )
    assert status == 0, said
    assert len(rows(tmp_path / "open")) > 4 * 4 * 2
    assert all(float(row["latency_ms"]) >= 500 for row in rows(tmp_path / "open"))
    page = (tmp_path / "open" / "index.html").read_text()
    assert "Statistics were missing" in page
    assert "cannot be seen from here" in page


def test_other_settings_of_locust_change_nothing(
    tmp_path: Path, tiny: TinyTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings in the environment, or in files where Locust looks for them."""
    monkeypatch.setenv("LOCUST_TAGS", "none")
    monkeypatch.setenv("LOCUST_USERS", "many")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".locust.conf").write_text("tags = none")
    (tmp_path / "locust.conf").write_text("exit-code-on-error = many")
    monkeypatch.chdir(tmp_path)
    status, said = load(
        *("--host", tiny.url("http"), "--users", 1, "--duration", 1, "--name", "alone", "--output", tmp_path)
    )
    assert status == 0, said
    assert len(rows(tmp_path / "alone")) > 0


def test_errors_are_counted_by_kind(tmp_path: Path, tiny: TinyTriton) -> None:
    import grpc

    from tests.support.tiny_triton import Refusal

    asked = 0

    def failing(inputs: Inputs) -> tuple[str, float, int]:
        nonlocal asked
        asked += 1
        if asked > 4:  # the first four warm up
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        return size_of_image(inputs)

    tiny.answer = failing
    status, said = load(
        *("--host", tiny.url("http"), "--rate", 20, "--users", 1, "--duration", 2, "--name", "full"),
        *("--output", tmp_path),
    )
    assert status == 1, said
    assert "error rate 100.00% is above 1.00%" in said
    errors = summary(tmp_path / "full")["errors"]
    assert {error["error"] for error in errors} == {"ServerOverloaded"}
    assert sum(error["count"] for error in errors) == len(rows(tmp_path / "full"))
    assert asked == 4 + len(rows(tmp_path / "full"))  # no request is repeated without a record
    assert "Exceeds maximum queue size" in (tmp_path / "full" / "index.html").read_text()


@pytest.fixture
def tiny() -> Iterator[TinyTriton]:
    with tiny_triton() as server:
        yield server


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
def test_interrupted(tmp_path: Path, tiny: TinyTriton, number: signal.Signals) -> None:
    """No process stays behind."""
    process = start("--host", tiny.url("grpc"), "--duration", 60, "--name", "long", "--output", tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "long" / "stages.csv").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    assert psutil.wait_procs(children, timeout=30)[1] == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--host", "grpc://127.0.0.1:1"], "Error: the first 'greedy' request of"),
        (["--host", "grpc://127.0.0.1:1,localhost:2"], "a:8001,http://b:8000, got 'localhost:2'; the schemes are"),
        (["mine", "--host", "grpc://127.0.0.1:1"], "--host is a server that has its models: leave out mine, or --host"),
        (["--ca-file", str(MIX_FILE)], "--ca-file is for a --host with grpcs:// or https://"),
        (["--host", "ftp://there"], "Error: Expected an address such as grpc://localhost:8001"),
        (["--name", "a/b", "--host", "grpc://127.0.0.1:1"], "Error: a name has letters, digits"),
        (["--mix", str(ROOT / "README.md")], "Error: "),
        (["--users", "0"], "0 is not in the range x>=1"),
        (["--remote-workers", "1", "--master-port", "0"], "--remote-workers need a --master-port that they know"),
    ],
)
def test_mistakes(options: list[str], sentence: str, tmp_path: Path) -> None:
    status, said = load(*options, "--output", tmp_path)
    assert status == 2
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.full
def test_page_in_a_browser(open_loop: Path, tmp_path: Path) -> None:
    """Chromium shows the page, writes nothing to its console, and loads nothing from a network."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    address = (open_loop / "index.html").as_uri()
    picture = tmp_path / "page.png"
    quiet = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path}/user",
    )
    done = subprocess.run(
        [chromium, *quiet, "--enable-logging=stderr", "--window-size=1100,3500", f"--screenshot={picture}", address],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    from PIL import Image

    with Image.open(picture) as shown:
        colours = shown.convert("RGB").getcolors(maxcolors=1 << 24) or []
    assert len(colours) > 100
