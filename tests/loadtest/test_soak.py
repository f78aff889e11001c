# SPDX-License-Identifier: Apache-2.0
"""The soak finds what it looks for: images lost, doubled or captioned otherwise, and memory that grows."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from soak import Sample, Weight, around, check_rows, compare, main, write_shards

ROW: dict[str, Any] = {"caption": "a key", "error": None}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(ROW | row) + "\n" for row in rows))
    return path


def test_the_pictures_come_in_turn(tmp_path: Path) -> None:
    count = write_shards(tmp_path, 20)
    with tarfile.open(tmp_path / "00000000.tar") as shard:
        members = shard.getmembers()
        files = [shard.extractfile(member) for member in members]
        contents = [file.read() for file in files if file]
    assert [member.name for member in members] == [f"{number:08}.jpg" for number in range(20)]
    assert len(set(contents)) == count
    assert contents[count:] == contents[: 20 - count]


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        ([{"name": f"a.tar/{number:08}.jpg"} for number in (3, 0, 2, 1)], ""),
        ([{"name": "0.jpg"}, {"name": "1.jpg"}], "4 images got 2 rows for 2 of them"),
        ([{"name": f"{number}.jpg"} for number in (0, 1, 2, 3, 3)], "4 images got 5 rows for 4 of them"),
        ([{"name": "0.jpg"}, {"name": "1.jpg", "error": "lost"}], "image 1 failed: lost"),
        ([{"name": "0.jpg"}, {"name": "2.jpg", "caption": "a cat"}], "image 2 got 'a cat', its picture 'a key' before"),
    ],
)
def test_rows(rows: list[dict[str, Any]], wrong: str, tmp_path: Path) -> None:
    assert check_rows(write_rows(tmp_path / "rows.jsonl", rows), images=4, pictures=2) == wrong


def test_median_of_a_span() -> None:
    samples = [Sample(captions, {"a": Weight(mb)}) for captions, mb in ((5, 99), (10, 1), (11, 2), (12, 7), (20, 99))]
    assert around(samples, 10, 5) == {"a": Weight(2)}
    assert around(samples, 30, 5) == {}


@pytest.mark.parametrize(
    ("after", "wrong"),
    [
        (Weight(10.1, 3, 2), []),
        (Weight(10.3, 3, 2), ["a holds 10.3 MB, 3 files and 2 threads at the end, 10.0, 3 and 2 near the beginning"]),
        (Weight(9, 4, 2), ["a holds 9.0 MB, 4 files and 2 threads at the end, 10.0, 3 and 2 near the beginning"]),
        (Weight(9, 3, 3), ["a holds 9.0 MB, 3 files and 3 threads at the end, 10.0, 3 and 2 near the beginning"]),
    ],
)
def test_growth(after: Weight, wrong: list[str]) -> None:
    assert compare({"a": Weight(10, 3, 2)}, {"a": after, "new": Weight(1)}, growth=0.02) == wrong


def test_too_few_images() -> None:
    result = CliRunner().invoke(main, ["--images", "100", "--settled", "60"])
    assert result.output == "Error: --images must be at least twice --settled, which is 60, not 100\n"


@pytest.mark.full
@pytest.mark.timeout(900)
def test_real_server(artifacts: Path, tmp_path: Path) -> None:
    """Caches still fill after so few images: what is held is not judged, each row is."""
    output = tmp_path / "soak.json"
    options = ["--repository", artifacts, "--images", 3000, "--settled", 1000, "--growth", 10, "--output", output]
    result = CliRunner().invoke(main, [str(option) for option in options])
    assert result.exit_code == 0, result.output
    last = json.loads(output.read_text())[-1]
    assert {"tritonserver", "preprocess (stub)", "encoder (stub)", "decoder (stub)", "shared memory"} < set(last)
    assert last["decoder (stub)"]["mb"] > 10
    assert last["captions"] > 2000
