# SPDX-License-Identifier: Apache-2.0
"""`blipstream bulk` with an adapter for all images, or one for each, on a real server."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blipstream.adapters import FOLDER_NAME, AdapterConfig
from blipstream.server.triton import TritonServer
from blipstream_client import InvalidRequest
from blipstream_client.bulk import job
from blipstream_client.bulk.caption import CaptionTask
from blipstream_client.bulk.extras import pyarrow
from blipstream_client.bulk.filter import FilterTask
from blipstream_client.bulk.pairs import AdapterSources, PairSources
from blipstream_client.bulk.sources import Sources
from blipstream_client.bulk.summary import Summary
from tests.conftest import ROOT, SAMPLES
from tests.support.bulk_output import read

FILES = ("a-book.jpg", "two-whales.jpg", "a-unicorn.jpg", "a-dog-above-a-door.jpg")
ADAPTERS = ("fr", "", "ja", "fj")
TABLES = ("table.csv", "table.jsonl", "table.parquet")

pa = pyarrow("This test")
pytestmark = pytest.mark.usefixtures("adapters")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        shutil.copyfile(SAMPLES / name, name)


@pytest.fixture
def french(demo_artifacts: Path) -> Iterator[Path]:
    """The folder of an adapter, whose config is as before after the test."""
    folder = demo_artifacts / "decoder/1" / FOLDER_NAME / "fr"
    config = AdapterConfig.load(folder)
    yield folder
    config.save(folder)


def write_table(name: str) -> None:
    rows: list[dict[str, Any]] = [
        {"path": file, "lang": adapter} for file, adapter in zip(FILES, ADAPTERS, strict=True)
    ]
    match Path(name).suffix:
        case ".csv":
            with Path(name).open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, ["path", "lang"])
                writer.writeheader()
                writer.writerows(rows)
        case ".jsonl":
            Path(name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        case _:
            images = [Path(each).read_bytes() for each in FILES]
            languages = [adapter or None for adapter in ADAPTERS]
            pa.parquet.write_table(pa.table({"image": images, "lang": languages}), name)


def run(server: TritonServer, name: str, output: str, column: str | None = "lang", **options: Any) -> Summary:
    sources = Sources([name]) if column is None else AdapterSources([name], text_column=column)
    task = CaptionTask("caption", options, adapters=column is not None)  # type: ignore[arg-type]
    return job.run(task, sources, output, connection={"url": server.grpc_url})


@pytest.mark.parametrize(("table", "output"), [*zip(TABLES, ("a.jsonl", "a.csv", "a.parquet"), strict=True)])
def test_an_adapter_for_each_image(demo_server: TritonServer, table: str, output: str) -> None:
    write_table(table)
    assert run(demo_server, table, output).found == 0
    rows = read(Path(output))
    assert [row["adapter"] or "" for row in rows] == [*ADAPTERS]
    captions = {}
    for file, adapter in zip(FILES[:3], ADAPTERS, strict=False):
        run(demo_server, file, f"{file}.jsonl", None, adapter=adapter)
        (row,) = read(Path(f"{file}.jsonl"))
        captions[file] = row["caption"]
        assert row.get("adapter", "") == adapter
    assert [row["caption"] for row in rows[:3]] == [*captions.values()]
    assert captions["two-whales.jpg"] == "two whales on a purple background"
    assert rows[3]["error"] == "there is no adapter 'fj': there are fr, ja, old"
    summary = run(demo_server, table, output)
    assert (summary.found, summary.failures) == (4, 1)


def test_changes_are_noticed(demo_server: TritonServer, french: Path) -> None:
    """Of the adapter, as of a checkpoint; and of the table. Other adapters may come."""
    write_table("table.csv")
    run(demo_server, "table.csv", "a.jsonl")
    run(demo_server, FILES[0], "b.jsonl", None, adapter="fr")
    shutil.copytree(french, french.with_name("another"))
    try:
        assert run(demo_server, "table.csv", "a.jsonl").found == 4
    finally:
        shutil.rmtree(french.with_name("another"))
    replace(AdapterConfig.load(french), revision="2").save(french)
    told = r'begun with the server\'s adapters \{"fr": "1"\}, not \{"fr": "2"\}: use the same to go on'
    for name, output, column, options in (
        ("table.csv", "a.jsonl", "lang", {}),
        (FILES[0], "b.jsonl", None, {"adapter": "fr"}),
    ):
        with pytest.raises(InvalidRequest, match=told):
            run(demo_server, name, output, column, **options)
    replace(AdapterConfig.load(french), revision="1").save(french)
    table = Path("table.csv").read_text(encoding="utf-8")
    Path("table.csv").write_text(table.replace(",ja", ",fr"), encoding="utf-8")
    told = r"The adapters have changed: a.jsonl goes on with 'ja' for a-unicorn.jpg, and here comes 'fr'; use the same"
    with pytest.raises(InvalidRequest, match=told):
        run(demo_server, "table.csv", "a.jsonl")


def test_what_cannot_be_is_told_at_the_start(demo_server: TritonServer) -> None:
    write_table("table.csv")
    for name, column, options, told in (
        (FILES[0], None, {"adapter": "frr"}, r"there is no adapter 'frr' \(did you mean fr\?\): there are fr, ja, old"),
        (FILES[0], "lang", {}, "--adapter-column is for tables, and a-book.jpg is none: give Parquet, CSV or JSON"),
        ("table.csv", "language", {}, "Expected a column language in table.csv, got path, lang: name it with --adap"),
    ):
        with pytest.raises(InvalidRequest, match=told):
            run(demo_server, name, "a.jsonl", column, **options)
    assert not Path("a.jsonl").exists()
    command = [sys.executable, "-m", "blipstream_client", "bulk", "table.csv", "--output", "a.jsonl"]
    done = subprocess.run(
        [*command, "--adapter=fr", "--adapter-column=lang"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT / "client")},
    )
    assert done.returncode == 2
    assert "--adapter is for all images and --adapter-column for each: leave one out" in done.stderr


def test_a_filter_records_the_adapter_of_its_captions(demo_server: TritonServer) -> None:
    pa.parquet.write_table(pa.table({"image": [Path(FILES[0]).read_bytes()], "text": ["a cat"]}), "pairs.parquet")
    task = FilterTask(replacing={"adapter": "fr"})
    job.run(task, PairSources(["pairs.parquet"]), "a.jsonl", connection={"url": demo_server.grpc_url})
    begun = json.loads(Path("a.jsonl.job.json").read_text(encoding="utf-8"))
    assert begun["adapters"] == {"fr": "1"}
