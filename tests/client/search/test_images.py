# SPDX-License-Identifier: Apache-2.0
"""The images that names in a table stand for."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from blipstream_client import InvalidImage
from blipstream_client.bulk.sources import Sources
from blipstream_client.search.images import images
from tests.support.embeddings import pa


def found(names: Iterable[str]) -> dict[str, bytes | str]:
    """Each name's image, or the sentence that says why there is none."""
    return {name: str(image) if isinstance(image, InvalidImage) else image for name, image in images(names)}


def write_tar(path: str, mode: str, contents: dict[str, bytes]) -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_files_and_urls_stand_for_themselves() -> None:
    names = ["a.jpg", "https://captions.example/shard.tar/a.jpg", "nowhere.tar/a.jpg", "nowhere.parquet#3"]
    assert found(names) == dict(zip(names, names, strict=True))


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz"), (".TAR", "w")])
def test_every_name_of_a_shard_leads_to_its_image(jpeg: bytes, suffix: str, mode: str) -> None:
    """As `blipstream embed` names them, which reads the same sources."""
    contents = {f"0{number}/a.tar/{number}.jpg": jpeg + bytes(number) for number in range(5)}
    write_tar(f"shard{suffix}", mode, contents)
    pa.parquet.write_table(pa.table({"jpg": [*contents.values()]}), "rows.parquet")
    named = {item.name: item.load() for item in Sources([f"shard{suffix}", "rows.parquet"]).items()}
    assert len(named) == 10
    assert found(named) == named
    few = [*named][3:8:2]
    assert found(few) == {name: named[name] for name in few}


def test_a_file_may_be_called_like_a_row(jpeg: bytes) -> None:
    pa.parquet.write_table(pa.table({"jpg": [jpeg]}), "rows.parquet")
    Path("rows.parquet#0").write_bytes(b"another")
    assert found(["rows.parquet#0"]) == {"rows.parquet#0": "rows.parquet#0"}


def test_what_is_not_there_any_more(jpeg: bytes) -> None:
    write_tar("shard.tar", "w", {"a.jpg": jpeg})
    pa.parquet.write_table(pa.table({"jpg": [jpeg]}), "rows.parquet")
    Path("damaged.tar").write_bytes(Path("shard.tar").read_bytes()[:700])
    names = ["shard.tar/b.jpg", "shard.tar/a.jpg", "rows.parquet#7", "damaged.tar/b.jpg"]
    told = found(names)
    assert told.pop("shard.tar/a.jpg") == jpeg
    assert told["shard.tar/b.jpg"] == "Cannot read it from shard.tar: it is there no more"
    assert told["rows.parquet#7"] == "Cannot read it from rows.parquet: it is there no more"
    assert str(told["damaged.tar/b.jpg"]).startswith("Cannot read it from damaged.tar: Cannot read damaged.tar: ")
