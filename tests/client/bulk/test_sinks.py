# SPDX-License-Identifier: Apache-2.0
import errno
import json
from pathlib import Path
from typing import Any

import pytest

from blipstream_client import InvalidRequest
from blipstream_client.bulk import sinks
from blipstream_client.bulk.caption import COLUMNS
from blipstream_client.bulk.extras import pyarrow
from blipstream_client.bulk.rows import Row
from blipstream_client.bulk.sinks import open_sink, replace
from tests.support.bulk_output import read

pq = pyarrow("This test").parquet

NEEDS = ("name", "error")
JOB: dict[str, Any] = {"images": ["a"], "options": {}}


def row(number: int, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "name": f"{number}.jpg",
        "caption": f'a "bear", ein Bär 🐻\nnumber {number}',
        "score": -number / 2,
        "match": 0.5,
        "why_empty": None,
        "options": "{}",
        "defaults": "{}",
        "checkpoint": None,
        "width": 8,
        "height": 6,
        "hash": "0" * 64,
        "error": None,
    }
    return values | changes


ROWS = [row(0), row(1, caption=None, score=None, error="no image,\r\nat all"), row(2)]


@pytest.fixture(params=[".jsonl", ".csv", ".parquet"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"captions{request.param}"


def write(output: Path, rows: list[Row], job: dict[str, Any] = JOB) -> list[tuple[str, bool]]:
    """Add rows as a run does. Returns the rows that were there."""
    sink = open_sink(str(output))
    sink.begin(job, COLUMNS)
    found = [(each["name"], each["error"] is None) for each in sink.recover(NEEDS)]
    for each in rows:
        sink.write(each)
    sink.close()
    return found


def test_rows_come_back(output: Path) -> None:
    assert write(output, ROWS) == []
    found = read(output)
    assert [list(each) for each in found] == [list(COLUMNS)] * 3
    assert [each["caption"] or None for each in found] == [each["caption"] for each in ROWS]
    assert [each["error"] or None for each in found] == [each["error"] for each in ROWS]
    assert [float(each["score"]) if each["score"] not in ("", None) else None for each in found] == [0, None, -1]


def test_going_on_adds_to_what_is_there(output: Path) -> None:
    write(output, ROWS[:2])
    assert write(output, ROWS[2:]) == [("0.jpg", True), ("1.jpg", False)]
    assert write(output, []) == [("0.jpg", True), ("1.jpg", False), ("2.jpg", True)]
    assert len(read(output)) == 3


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_an_incomplete_row_is_cut_off(suffix: str, tmp_path: Path) -> None:
    """Wherever the file ends."""
    whole = tmp_path / f"whole{suffix}"
    write(whole, ROWS)
    content = whole.read_bytes()
    expected = [each["name"] for each in ROWS]
    for end in range(len(",".join(COLUMNS) + "\r\n") if suffix == ".csv" else 0, len(content)):
        cut = tmp_path / f"cut{suffix}"
        write(cut, [])
        cut.write_bytes(content[:end])
        found = [name for name, _ in write(cut, [])]
        assert found == expected[: len(found)]
        write(cut, ROWS[len(found) :])
        assert cut.read_bytes() == content


def test_a_csv_file_that_lost_its_header_gets_it_back(tmp_path: Path) -> None:
    output = tmp_path / "a.csv"
    write(output, [])
    output.write_bytes(b"name,cap")
    write(output, ROWS)
    assert [each["name"] for each in read(output)] == ["0.jpg", "1.jpg", "2.jpg"]


def test_long_json_lines_are_cut_off_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "BLOCK", 64)
    output = tmp_path / "a.jsonl"
    write(output, ROWS[:1])
    with output.open("a") as file:
        file.write("{" + "x" * 1000)
    assert write(output, []) == [("0.jpg", True)]


def test_an_incomplete_part_is_removed(tmp_path: Path) -> None:
    output = tmp_path / "captions.parquet"
    write(output, ROWS[:1])
    (output / ".part-000002.parquet.tmp").write_bytes(b"half")
    assert write(output, ROWS[1:]) == [("0.jpg", True)]
    assert sorted(path.name for path in output.iterdir()) == ["_job.json", "part-000001.parquet", "part-000002.parquet"]


def test_parts_are_written_during_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "PART_ROWS", 2)
    output = tmp_path / "captions.parquet"
    write(output, [row(number) for number in range(5)])
    assert [pq.read_metadata(part).num_rows for part in sorted(output.glob("part-*"))] == [2, 2, 1]


@pytest.mark.parametrize("renamed", [False, True])
def test_ctrl_c_while_a_part_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: bool) -> None:
    output = tmp_path / "captions.parquet"
    write(output, [row(0)])

    def interrupted(path: Path, content: bytes) -> None:
        monkeypatch.setattr(sinks, "replace", replace)
        if renamed:
            replace(path, content)
        raise KeyboardInterrupt

    sink = open_sink(str(output))
    sink.begin(JOB, COLUMNS)
    assert len(list(sink.recover(NEEDS))) == 1
    sink.write(row(1))
    monkeypatch.setattr(sinks, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sink.close()
    sink.close()
    assert [name for name, _ in write(output, [row(2)])] == ["0.jpg", "1.jpg"]
    assert [each["name"] for each in read(output)] == ["0.jpg", "1.jpg", "2.jpg"]


@pytest.mark.parametrize("missing", ["part-000001.parquet", "part-000002.parquet"])
def test_a_part_that_is_missing(tmp_path: Path, missing: str) -> None:
    output = tmp_path / "captions.parquet"
    for each in ROWS:
        write(output, [each])
    (output / missing).rename(tmp_path / missing)
    with pytest.raises(InvalidRequest, match=f"{missing} is missing: put it back, or remove all later parts to go on"):
        write(output, [row(3)])
    (tmp_path / missing).rename(output / missing)
    write(output, [row(3)])
    assert [each["name"] for each in read(output)] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]


@pytest.mark.parametrize("damage", [b"", b"no table", bytes(4000)])
def test_a_part_that_is_damaged(tmp_path: Path, damage: bytes) -> None:
    output = tmp_path / "captions.parquet"
    for each in ROWS:
        write(output, [each])
    (output / "part-000002.parquet").write_bytes(damage)
    with pytest.raises(InvalidRequest, match=r"Cannot read .*part-000002\.parquet \(remove it and all later parts"):
        write(output, [])
    (output / "part-000002.parquet").unlink()
    (output / "part-000003.parquet").unlink()
    assert write(output, ROWS[1:]) == [("0.jpg", True)]


@pytest.mark.parametrize("damage", [b"\n", b'{"name": \n', b"\0\0\n", b"\xff\n", b"{}\n", b"7\n"])
def test_a_json_line_that_is_damaged(tmp_path: Path, damage: bytes) -> None:
    output = tmp_path / "captions.jsonl"
    write(output, ROWS)
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(lines[0] + damage + lines[2])
    with pytest.raises(InvalidRequest, match=r"Cannot read line 2 of .*captions\.jsonl \(cut the file off before it"):
        write(output, [])
    output.write_bytes(lines[0])
    assert write(output, ROWS[1:]) == [("0.jpg", True)]


@pytest.mark.parametrize("damage", [b"other,columns\r\n1,2\r\n", b"name,error\r\n\xff,\r\n"])
def test_a_csv_file_that_is_damaged(tmp_path: Path, damage: bytes) -> None:
    output = tmp_path / "captions.csv"
    write(output, [])
    output.write_bytes(damage)
    with pytest.raises(InvalidRequest, match=r"Cannot read .*captions\.csv \(use another --output\)"):
        write(output, [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options": {"num_beams": 3}}, r'begun with options {}, not {"num_beams": 3}'),
        ({"images": ["b"]}, r'begun with images \["a"\], not \["b"\]'),
        ({"checkpoint": "x@1"}, 'begun with checkpoint null, not "x@1"'),
    ],
)
def test_another_job_is_refused(output: Path, changes: dict[str, Any], words: str) -> None:
    write(output, ROWS)
    with pytest.raises(InvalidRequest, match=words):
        open_sink(str(output)).begin(JOB | changes, COLUMNS)
    assert len(read(output)) == 3


@pytest.mark.parametrize("job", [json.dumps(JOB), "{"])
def test_after_the_rows_were_deleted_another_job_may_begin(output: Path, job: str) -> None:
    write(output, ROWS)
    open_sink(str(output)).job_path.write_text(job)
    for rows in output.glob("part-*") if output.is_dir() else [output]:
        rows.unlink()
    sink = open_sink(str(output))
    sink.begin(JOB | {"images": ["b"]}, COLUMNS)
    assert (list(sink.recover(NEEDS)), json.loads(sink.job_path.read_text())["images"]) == ([], ["b"])


def test_a_checkpoint_is_known_by_its_revision(output: Path) -> None:
    write(output, ROWS, JOB | {"checkpoint": "x@1"})
    open_sink(str(output)).begin(JOB | {"checkpoint": "y@1"}, COLUMNS)
    with pytest.raises(InvalidRequest, match='begun with checkpoint "x@1", not "x@2"'):
        open_sink(str(output)).begin(JOB | {"checkpoint": "x@2"}, COLUMNS)


def test_other_files_are_not_overwritten(output: Path) -> None:
    output.write_text("precious")
    with pytest.raises(InvalidRequest, match="exists and was not begun by this command"):
        open_sink(str(output)).begin(JOB, COLUMNS)
    assert output.read_text() == "precious"


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").mkdir()
    (tmp_path / "a.parquet" / "._job.json.tmp").write_text("{")
    assert write(tmp_path / "a.parquet", ROWS) == []


def test_a_job_of_an_older_client_is_not_gone_on_with(output: Path) -> None:
    """Its rows do not say which defaults they had."""
    write(output, ROWS)
    with pytest.raises(InvalidRequest, match="did not record the server's defaults yet: use another --output"):
        write(output, [], JOB | {"defaults": {}})


@pytest.mark.parametrize("job", ["{", "7", '["images"]'])
def test_a_job_that_cannot_be_read(output: Path, job: str) -> None:
    write(output, ROWS)
    open_sink(str(output)).job_path.write_text(job)
    with pytest.raises(InvalidRequest, match="to begin anew"):
        open_sink(str(output)).begin(JOB, COLUMNS)


def test_only_one_process_at_a_time(output: Path) -> None:
    """Even before the output exists."""
    for _ in range(2):
        with (
            open_sink(str(output)).lock(),
            pytest.raises(InvalidRequest, match=f"Another process is writing to {output}"),
        ):
            open_sink(str(output)).lock()
        open_sink(str(output)).lock().close()
        write(output, ROWS)


def test_systems_without_locks(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with open_sink(str(output)).lock(), open_sink(str(output)).lock():
        assert write(output, ROWS) == []


@pytest.mark.parametrize("name", ["captions", "captions.txt", "captions.json"])
def test_other_kinds_of_output(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"ends in \.parquet, \.jsonl or \.csv"):
        open_sink(name)


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    """Numbers stay numbers, and without the first apostrophe, text is as it was."""
    texts = ["=1+1", "+a", "-b", "@c", "\td", "\re", "\nf", "'g", "''h", "i=1", "-1.5"]
    rows = [row(number, name=text, caption=text) for number, text in enumerate(texts)]
    output = tmp_path / "a.csv"
    write(output, rows)
    for each, text in zip(read(output), texts, strict=True):
        for cell in (each["name"], each["caption"]):
            assert cell.removeprefix("'") == text
            assert cell == text or cell[0] == "'"
            assert cell[0] not in "=+-@\t\r\n"
        assert float(each["score"]) <= 0
    assert write(output, []) == [(text, True) for text in texts]
