# SPDX-License-Identifier: Apache-2.0
"""The soak test finds lost and doubled images, captions that differ, undue answers, and memory that grows."""

import json
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from blipstream.server.triton import TritonServer
from soak import (
    IMAGE_WORKERS,
    Difficult,
    Footprint,
    Sample,
    Visits,
    bounds,
    check_rows,
    compare,
    halves,
    main,
    medians,
    write_shards,
)

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


def sample(pause: int, captions: int, mb: float) -> Sample:
    return Sample(pause, captions, {"a": Footprint(mb)})


def test_the_pauses_that_are_compared() -> None:
    """Those that begin after so many captions, each by the median of its samples."""
    samples = [sample(0, 9, 99), sample(0, 11, 99), sample(1, 12, 1), sample(1, 13, 2), sample(1, 14, 7)]
    samples += [sample(2, 20, 5), sample(3, 30, 4), sample(4, 40, 6), sample(5, 50, 3)]
    earlier, later = halves(samples, 10)
    assert bounds(earlier, max) == {"a": Footprint(5)}
    assert bounds(later, min) == {"a": Footprint(3)}
    assert halves(samples, 50) == ([], [])
    assert [len(half) for half in halves(samples, 40)] == [1, 1]
    assert bounds([], max) == medians([]) == {}


def test_what_goes_up_and_down_has_not_grown() -> None:
    def growth(*mb: float) -> list[str]:
        earlier, later = halves([sample(pause, pause, each) for pause, each in enumerate(mb)], 0)
        return compare(bounds(earlier, max), bounds(later, min), growth=0.02)

    assert not growth(10, 14, 11, 15, 12, 13)
    assert not growth(10, 12, 11, 11, 14, 14)
    assert growth(10, 11, 12, 13, 14, 15)
    assert growth(10, 11, 10, 12, 11.5, 13)


def test_what_is_not_there_all_the_time_has_no_median() -> None:
    both = Sample(0, 0, {"a": Footprint(1), "b": Footprint(2)})
    assert medians([both, sample(0, 0, 1)]) == {"a": Footprint(1)}


@pytest.mark.parametrize(
    ("after", "held"),
    [
        (Footprint(10.1, 3, 2), None),
        (Footprint(10.3, 3, 2), "10.3 MB, 3 files and 2 threads"),
        (Footprint(9, 4, 2), "9.0 MB, 4 files and 2 threads"),
        (Footprint(9, 3, 3), "9.0 MB, 3 files and 3 threads"),
    ],
)
def test_growth(after: Footprint, held: str | None) -> None:
    wrong = [f"a holds at least {held} in the second half, and held at most 10.0, 3 and 2 in the first"] if held else []
    assert compare({"a": Footprint(10, 3, 2)}, {"a": after, "new": Footprint(1)}, growth=0.02) == wrong


def test_image_workers_come_and_go() -> None:
    assert compare({IMAGE_WORKERS: Footprint(1)}, {IMAGE_WORKERS: Footprint(9)}, growth=0.02) == []


def test_answers_that_are_not_due(server: TritonServer) -> None:
    kinds = {"a": Difficult(lambda _, image: Counter({image.decode(): 2, "late": 1}), {"OK"})}
    with Visits(server, kinds, b"OK") as visits:
        while not visits.answers["a"]:
            time.sleep(0.01)
    assert visits.undue() == ["a got late 1 times"]


def test_too_few_images() -> None:
    result = CliRunner().invoke(main, ["--images", "100", "--settled", "60"])
    assert result.output == "Error: --images must be at least twice --settled, which is 60, not 100\n"


@pytest.mark.full
@pytest.mark.timeout(900)
def test_real_server(artifacts: Path, tmp_path: Path) -> None:
    """Each row and each answer is judged. Memory is not, since caches still fill after so few images."""
    output = tmp_path / "soak.json"
    clients = ("forms", "compressed requests", "many chunks", "slow images")
    options = ["--repository", artifacts, "--images", 6000, "--settled", 1, "--growth", 10, "--output", output]
    options += [option for name in clients for option in ("--client", name)]
    result = CliRunner().invoke(main, [str(option) for option in options])
    assert result.exit_code == 0, result.output
    last = json.loads(output.read_text())[-1]
    footprints = last["footprints"]
    processes = {"tritonserver", "preprocess (stub)", "encoder (stub)", "decoder (stub)", IMAGE_WORKERS}
    assert {"shared memory", *processes} < set(footprints)
    assert footprints["decoder (stub)"]["mb"] > 10
    assert last["captions"] > 2000
