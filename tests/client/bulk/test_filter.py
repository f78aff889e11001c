# SPDX-License-Identifier: Apache-2.0
"""`blipstream filter` and `blipstream embed` on a real server of the demo's two checkpoints."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blipstream.server.triton import TritonServer
from blipstream_client import Client, InvalidRequest
from blipstream_client._info import Calibration
from blipstream_client.bulk import job
from blipstream_client.bulk.caption import CaptionTask
from blipstream_client.bulk.embed import EmbedTask
from blipstream_client.bulk.extras import pyarrow
from blipstream_client.bulk.filter import FilterSummary, FilterTask
from blipstream_client.bulk.limit import Limit
from blipstream_client.bulk.pairs import PairSources
from blipstream_client.bulk.sources import Sources
from blipstream_client.bulk.task import Task
from blipstream_client.bulk.worker import Worker
from examine_filter import examine, spoiled_pairs, write_pairs
from scenes import examination
from tests.support.bulk_output import read
from tests.support.proxy import proxy
from tests.support.tiny_triton import TinyTriton

ROOT = Path(__file__).parents[3]
PROGRAM = [sys.executable, "-m", "blipstream_client"]
SMALL_PARTS = [
    sys.executable,
    "-c",
    "from blipstream_client.__main__ import main\n"
    "from blipstream_client.bulk import sinks, runner\n"
    "sinks.PART_ROWS, runner.CONFIRM_SECONDS = 3, 0\n"
    "main()",
]

pa = pyarrow("This test")
pq = pa.parquet


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "client"))


def write_lists(count: int) -> int:
    """lists.parquet: rows of 0 to 3 texts each, the first of which is right. Returns the number of rows to come."""
    scenes = list(examination(count))
    texts = [[scene.caption, "a cat", "a door above a snail"][: number % 4] for number, scene in enumerate(scenes)]
    images = [pair.image for pair in spoiled_pairs(count)]
    pq.write_table(pa.table({"image": images, "text": texts}), "lists.parquet")
    return sum(len(each) or 1 for each in texts)


def run_filter(task: FilterTask, server: TritonServer, name: str, output: str = "clean.jsonl") -> FilterSummary:
    connection = {"url": server.grpc_url}
    return job.run(task, PairSources([name]), output, connection=connection, max_in_flight=16)


def command(*arguments: str, program: list[str] = PROGRAM) -> tuple[int, str]:
    """Exit status and standard error."""
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False)
    assert (done.stdout, "Traceback" in done.stderr) == ("", False), done
    return done.returncode, done.stderr


def test_a_spoiled_data_set_comes_out_clean(demo_server: TritonServer) -> None:
    write_pairs(Path("pairs.parquet"), 300)
    run_filter(FilterTask(), demo_server, "pairs.parquet", "clean.parquet")
    rows = read(Path("clean.parquet"))
    assert [row["name"] for row in rows] == [f"pairs.parquet#{number}" for number in range(300)]
    figures = examine(Path("pairs.parquet"), Path("clean.parquet"))
    assert (figures["precision"] >= 0.98, figures["recall"] >= 0.98) == (True, True), figures
    for row in rows:
        assert (row["verdict"] == "kept") == (row["match"] >= 0.5)
        assert row["caption"] == (row["text"] if row["verdict"] == "kept" else None)
        assert row["caption_match"] == (row["match"] if row["verdict"] == "kept" else None)
    # as docs/filtering.md says
    pairs, output = pq.read_table("pairs.parquet"), pq.read_table("clean.parquet")
    clean = pairs.append_column("clean", output["caption"]).filter(output["caption"].is_valid())
    filtered = pq.read_table("clean.parquet", filters=[("caption", "!=", "")])
    assert clean["caption"].to_pylist() == clean["clean"].to_pylist() == filtered["text"].to_pylist()


def test_what_fails_is_replaced_by_what_passes(demo_server: TritonServer) -> None:
    write_pairs(Path("pairs.parquet"), 40)
    options: Any = {"min_tokens": 1}
    summary = run_filter(FilterTask(0.6, replacing=options), demo_server, "pairs.parquet")
    rows = read(Path("clean.jsonl"))
    replaced = [row for row in rows if row["verdict"] == "replaced"]
    assert len(replaced) > 6  # of the 12 that are wrong
    with Client(demo_server.grpc_url) as client:
        images = pq.read_table("pairs.parquet")["image"].to_pylist()
        for row in replaced:
            assert row["match"] < 0.6 <= row["caption_match"]
            (found,) = client.match(images[int(row["name"].partition("#")[2])], [row["caption"]])
            assert found.match == pytest.approx(row["caption_match"], abs=0.05)
    assert summary.verdicts["replaced"] == len(replaced)
    assert {row["caption"] for row in rows if row["verdict"] == "dropped"} <= {None}


def test_texts_that_cannot_be_matched_fail_alone(demo_server: TritonServer, jpeg: bytes) -> None:
    texts = [["a cat", "x" * 5000, "", "a dog"], None, ["a cat"]]
    pq.write_table(pa.table({"image": [jpeg, jpeg, b"no image"], "text": texts}), "a.parquet")
    summary = run_filter(FilterTask(), demo_server, "a.parquet", "clean.csv")
    rows = read(Path("clean.csv"))
    assert [bool(row["verdict"]) for row in rows] == [True, False, False, True, False, False]
    words = ["", "characters", "", "", "There is no text with the image", "image"]
    assert all(word in row["error"] for word, row in zip(words, rows, strict=True))
    assert [row["text"] for row in rows] == [*texts[0], "", "a cat"]  # type: ignore[misc]
    assert (summary.failures, summary.verdicts.total()) == (4, 2)


@pytest.mark.parametrize("output", ["clean.parquet", "clean.jsonl", "clean.csv"])
def test_a_killed_run_goes_on(demo_server: TritonServer, output: str) -> None:
    """Also in the middle of an image's texts, and its report has all rows."""
    count = write_lists(30)
    arguments = ["filter", "lists.parquet", "--url", demo_server.grpc_url, "--max-in-flight", "4"]
    assert command(*arguments, "--output", f"whole-{output}", "--report", "whole.html")[0] == 1
    moments = random.Random(0)
    for _ in range(4):
        with subprocess.Popen([*SMALL_PARTS, *arguments, "--output", output], stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(moments.uniform(2, 6))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
    if Path(output).is_file():  # killed in the middle of the texts of the third image
        lines = Path(output).read_bytes().splitlines(keepends=True)
        Path(output).write_bytes(b"".join(lines[: 5 if output.endswith("csv") else 4]))
    status, said = command(*arguments, "--output", output, "--report", "report.html")
    assert (status, f"{count} rows in {output}, " in said) == (1, True)
    whole, again = read(Path(f"whole-{output}")), read(Path(output))
    assert len(whole) == count
    for one, other in zip(whole, again, strict=True):
        for name in ("match", "caption_match"):
            assert float(one.pop(name) or 0) == pytest.approx(float(other.pop(name) or 0), abs=0.05)
    assert again == whole
    counts = [re.findall(r"<td>[\d,]+</td>", Path(page).read_text()) for page in ("whole.html", "report.html")]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("output", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_run_goes_on_with_the_same_texts_alone(demo_server: TritonServer, jpeg: bytes, output: str) -> None:
    Path("a.jpg").write_bytes(jpeg)
    arguments = ["filter", "pairs.jsonl", "--output", output, "--url", demo_server.grpc_url]

    def run_with(*texts: str) -> tuple[int, str]:
        lines = [json.dumps({"image": "a.jpg", "text": text}) for text in texts]
        Path("pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return command(*arguments)

    assert run_with("a cat", "=a\n'dog'")[0] == 0
    assert run_with("a cat", "=a\n'dog'", "a bear")[0] == 0
    assert len(read(Path(output))) == 3
    status, said = run_with("a cat", "a dog", "a bear")
    words = " ".join(said.split())
    assert status == 1
    assert f"The texts have changed: {output} goes on with" in words
    assert "and here comes 'a dog'; use the same texts to go on, or another --output" in words


def test_ctrl_c_and_a_server_that_goes_away_lose_no_row(demo_server: TritonServer) -> None:
    count = write_lists(60)
    with proxy(demo_server.grpc_port) as between:
        url = f"grpc://127.0.0.1:{between.port}"
        arguments = ["filter", "lists.parquet", "--output", "clean.jsonl", "--url", url, "--max-in-flight", "2"]
        with subprocess.Popen([*SMALL_PARTS, *arguments], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            wait_for_rows(process, 10)
            between.target = 1  # no process listens there
            between.cut()
            assert process.stderr.readline().startswith("No Triton server answers at ")
            between.target = demo_server.grpc_port
            assert process.stderr.readline() == "The server answers.\n"
            process.send_signal(signal.SIGINT)
            _, said = process.communicate()
        found = len(read(Path("clean.jsonl")))
        assert 10 <= found < count
        assert (process.returncode, f"Interrupted: {found} rows safe in clean.jsonl" in said) == (130, True)
        assert f"{count} rows in clean.jsonl, {found} of them from before\n" in command(*arguments)[1]
    names = [row["name"] for row in read(Path("clean.jsonl"))]
    expected = [f"lists.parquet#{number}" for number in range(60) for _ in range(number % 4 or 1)]
    assert names == expected


def wait_for_rows(process: subprocess.Popen[str], count: int) -> None:
    while not Path("clean.jsonl").exists() or Path("clean.jsonl").read_bytes().count(b"\n") < count:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.02)


def test_the_report_shows_examples_of_each_verdict(demo_server: TritonServer) -> None:
    write_pairs(Path("pairs.parquet"), 12)
    arguments = [
        "filter",
        "pairs.parquet",
        "--output",
        "<b>.jsonl",
        "--url",
        demo_server.grpc_url,
        "--report",
        "a.html",
    ]
    assert command(*arguments, "--replace", "--min-tokens", "1") == (
        0,
        f"12 rows in <b>.jsonl, 0 of them from before\n{outcome(Path('<b>.jsonl'))}\nreport: a.html\n",
    )
    rows, page = read(Path("<b>.jsonl")), Path("a.html").read_text()
    assert page.count("<figure><img src=") == len(rows)
    assert "&lt;b&gt;.jsonl" in page
    assert "<b>" not in page
    for row in rows:
        assert f"{row['match']:.3f} {row['text']}" in page
        if row["verdict"] == "replaced":
            assert f"{row['caption_match']:.3f} {row['caption']}" in page
    assert not re.search(r"(src|href)=.(?!data:)", page)  # it needs no other file


def outcome(output: Path) -> str:
    """What the command says of an output."""
    verdicts = [row["verdict"] for row in read(output)]
    found = [(verdicts.count(verdict), verdict) for verdict in ("kept", "replaced", "dropped")]
    return ", ".join(f"{number} {verdict}" for number, verdict in found if number)


@pytest.mark.parametrize("output", ["a.parquet", "a.jsonl", "a.csv"])
def test_embeddings_are_the_clients(
    demo_server: TritonServer, samples: dict[str, str], samples_folder: Path, output: str
) -> None:
    names = ["broken.jpg", *list(samples)[:2]]
    for name in names[1:]:
        shutil.copy(samples_folder / name, name)
    Path("broken.jpg").write_bytes(b"no image")
    arguments = ["embed", *names, "--output", output, "--url", demo_server.grpc_url]
    status, said = command(*arguments)
    assert (status, "1 have an error instead of an embedding; broken.jpg: " in said) == (1, True)
    rows = read(Path(output))
    assert [*rows[0]] == ["name", "embedding", "checkpoint", "width", "height", "hash", "error"]
    with Client(demo_server.grpc_url) as client:
        info = client.info()
        assert info.matching
        assert {row["checkpoint"] for row in rows} == {info.matching.checkpoint} != {info.checkpoint}
        for name, row in zip(names, rows, strict=True):
            if name == "broken.jpg":
                assert (row["embedding"] or None, bool(row["error"])) == (None, True)
                continue
            found = np.array(json.loads(row["embedding"]) if output == "a.csv" else row["embedding"])
            np.testing.assert_allclose(found, client.embed_image(name), atol=0.02)
    if output == "a.parquet":
        assert pq.read_table(output).schema.field("embedding").type == pa.list_(pa.float32())
    assert command(*arguments)[1].startswith(f"{len(names)} rows in {output}, {len(names)} of them from before\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--min-match", "nan"], "min_match must be between 0 and 1, got nan"),
        (["--min-match", "2"], "min_match must be between 0 and 1, got 2.0"),
        (["--top-p", "0.5"], "--top-p is for new captions: give --replace, too"),
        (["--report", "a.pdf"], "--report must end in .html, not 'a.pdf'"),
        (["--report", "no/a.html"], "There is no folder no: make it, or use another --report"),
    ],
)
def test_wrong_options_are_told_before_anything_else(arguments: list[str], words: str, closed_port: int) -> None:
    write_lists(1)
    url = f"grpc://127.0.0.1:{closed_port}"
    status, said = command("filter", "lists.parquet", "--output", "a.jsonl", "--url", url, *arguments)
    assert (status > 0, said.splitlines()[-1]) == (True, f"Error: {words}")
    assert [path.name for path in Path().iterdir()] == ["lists.parquet"]


def test_the_threshold_of_a_calibrated_server(tiny: TinyTriton) -> None:
    tiny.parameters = {"temperature": "2.5", "threshold": "0.25"}
    for given, expected in ((None, 0.25), (0.0, 0.0), (0.75, 0.75)):
        task = FilterTask(given)
        with Worker(Limit(1), task, tiny.url("grpc")) as worker:
            worker.check_options()
        assert (task.min_match, worker.served.calibration) == (expected, Calibration(2.5, 0.25))


def test_another_retrieval_checkpoint_is_refused(tiny: TinyTriton, jpeg: bytes) -> None:
    """Also under the same captioner."""
    pq.write_table(pa.table({"image": [jpeg], "text": ["a cat"]}), "a.parquet")

    def run() -> int:
        connection = {"url": tiny.url("grpc")}
        return job.run(FilterTask(), PairSources(["a.parquet"]), "a.jsonl", connection=connection).found

    tiny.name = "base@0"
    for checkpoint, found in (("coco@1", 0), ("renamed@1", 1)):
        tiny.parameters = {"checkpoint": checkpoint}
        assert run() == found
    tiny.parameters = {"checkpoint": "coco@2"}
    with pytest.raises(InvalidRequest, match='begun with the server\'s retrieval checkpoint "coco@1", not "coco@2"'):
        run()


def test_a_server_that_cannot_match_says_what_it_has(server: TritonServer, jpeg: bytes) -> None:
    Path("a.jpg").write_bytes(jpeg)
    connection = {"url": server.grpc_url}
    tasks: dict[str, Task[Any]] = {
        "match": FilterTask(),
        "embed_image": EmbedTask(None),
        "other": CaptionTask("other", {}),
    }
    for model, task in tasks.items():
        with pytest.raises(Exception, match=f"^This server has no {model}; it has caption, caption_stream, explain"):
            job.run(task, Sources(["a.jpg"]), "a.jsonl", connection=connection, max_in_flight=1)
    with pytest.raises(InvalidRequest, match="min_match must be between 0 and 1, got -1"):
        FilterTask(-1)
