# SPDX-License-Identifier: Apache-2.0
"""`blipstream search` against the real server."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from blipstream.server.triton import TritonServer
from blipstream_client import Client
from blipstream_client._cli import main
from tests.conftest import SAMPLES
from tests.support.embeddings import embed, row, write_table

TEXT = "two whales on a purple background"
NAMES = sorted(path.name for path in SAMPLES.glob("*.jpg"))
Search = Callable[..., Result]


@pytest.fixture(scope="module")
def rows(matching_server: TritonServer) -> list[dict[str, Any]]:
    with Client(matching_server.grpc_url) as client:
        return embed(client, NAMES, [(SAMPLES / name).read_bytes() for name in NAMES])


@pytest.fixture
def table(rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The embeddings of the samples, which lie beside the table in the working folder."""
    shutil.copytree(SAMPLES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return write_table(Path("embeddings.parquet"), rows)


@pytest.fixture
def search(matching_server: TritonServer, table: Path) -> Search:
    """Runs the command."""
    return lambda *words: CliRunner().invoke(main, ["search", str(table), *words, "--url", matching_server.grpc_url])


def hits(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["hits"]
    assert [hit["rank"] for hit in found] == [*range(1, len(found) + 1)]
    return found


@pytest.fixture(scope="module")
def similarities(matching_server: TritonServer, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of the text and each image, in float64."""
    with Client(matching_server.grpc_url) as client:
        query = client.embed_text(TEXT).astype(np.float64)
    return {each["name"]: float(np.dot(np.array(each["embedding"], np.float64), query)) for each in rows}


def test_by_similarity(search: Search, similarities: dict[str, float]) -> None:
    found = hits(search(TEXT, "--no-rerank", "--json", "--k", "5"))
    expected = sorted(similarities, key=lambda name: -similarities[name])[:5]
    assert [hit["name"] for hit in found] == expected
    assert [hit["similarity"] for hit in found] == pytest.approx([similarities[name] for name in expected], abs=1e-5)
    assert {hit["match"] for hit in found} == {None}


def test_the_first_are_ranked_by_logit_plus_similarity(
    search: Search, similarities: dict[str, float], matching_server: TritonServer
) -> None:
    """As `match`, asked separately, says."""
    with Client(matching_server.grpc_url) as client:
        matches = {name: client.match(SAMPLES / name, [TEXT])[0] for name in NAMES}
    nearest = sorted(NAMES, key=lambda name: -similarities[name])
    expected = sorted(nearest[:7], key=lambda name: -(matches[name].logit + similarities[name])) + nearest[7:]
    assert expected != nearest
    found = hits(search(TEXT, "--rerank", "7", "--json"))
    assert [hit["name"] for hit in found] == expected
    for hit in found[:7]:
        assert hit["logit"] == pytest.approx(matches[hit["name"]].logit, abs=1e-3)
        assert hit["match"] == pytest.approx(matches[hit["name"]].match, abs=1e-3)
    assert {hit["match"] for hit in found[7:]} == {None}
    assert [hit["name"] for hit in hits(search(TEXT, "--rerank", "7", "--json", "--k", "2"))] == expected[:2]


def test_by_an_image(search: Search) -> None:
    found = hits(search("--image", NAMES[3], "--json", "--k", "100"))
    assert len(found) == len(NAMES)
    assert (found[0]["name"], found[0]["match"]) == (NAMES[3], None)
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-4)


def test_lines_for_people(search: Search, rows: list[dict[str, Any]]) -> None:
    copies = [*rows, rows[0] | {"name": "copy.jpg"}]
    write_table(Path("embeddings.parquet"), copies)
    head, *lines = search(TEXT, "--k", "8").stdout.splitlines()
    assert head.split() == ["rank", "similarity", "match", "image"]
    assert [int(line.split()[0]) for line in lines] == [*range(1, 9)]
    (marked,) = (line for line in lines if NAMES[0] in line)
    assert marked.endswith(f"{NAMES[0]}  (and 1 with the same bytes)")
    assert search("--image", NAMES[0]).stdout.splitlines()[0].split() == ["rank", "similarity", "image"]


def test_a_contact_sheet(search: Search) -> None:
    result = search(TEXT, "--k", "6", "--sheet", "sheet.png")
    assert result.exit_code == 0, result.output
    assert result.stderr == "contact sheet: sheet.png\n"
    sheet = Image.open("sheet.png").convert("RGB")
    assert (sheet.format, min(sheet.size) > 500) == (None, True)
    best = result.stdout.splitlines()[1].split()[-1]
    expected = np.asarray(Image.open(best).convert("RGB").resize((256, 256)), np.float32)
    drawn = np.asarray(sheet.crop((20, 20, 276, 276)), np.float32)
    assert np.abs(drawn - expected).mean() < 8


def test_images_that_are_gone_come_last(search: Search, similarities: dict[str, float]) -> None:
    best, second = sorted(NAMES, key=lambda name: -similarities[name])[:2]
    Path(best).unlink()
    Path(second).write_bytes(Path(NAMES[0] if second != NAMES[0] else NAMES[1]).read_bytes())
    result = search(TEXT, "--json", "--sheet", "sheet.png")
    found = hits(result)
    assert [hit["name"] for hit in found[-2:]] == [best, second]
    assert "No such file or directory" in found[-2]["error"]
    assert found[-1]["error"] == "It has changed since it was embedded"
    assert result.stderr.splitlines()[0].startswith(
        f"2 of the nearest images cannot be matched, and come last; the first is {best}: Cannot read the image file"
    )
    assert result.stderr.splitlines()[2].startswith(f"2 of its images cannot be drawn; the first is {best}: ")
    assert Path("sheet.png").exists()


def test_no_image_can_be_read(search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.copy("embeddings.parquet", "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = search(TEXT)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: None of the nearest images can be matched with the text; the first is ")
    assert result.stderr.endswith(
        "(relative names hold in the folder where `blipstream embed` ran; --no-rerank needs no images)\n"
    )
    assert len(hits(search(TEXT, "--no-rerank", "--json"))) == len(NAMES)
    assert "None of the images can be drawn for --sheet" in search(TEXT, "--no-rerank", "--sheet", "a.png").stderr


def test_a_table_names_no_file_that_was_not_embedded(search: Search, rows: list[dict[str, Any]]) -> None:
    """Whoever made the table might like the server to see another file."""
    Path("secret.png").write_bytes(Path(NAMES[0]).read_bytes() + b"secret")
    write_table(Path("embeddings.parquet"), [rows[0] | {"name": "secret.png"}])
    assert "secret.png: It has changed since it was embedded" in search(TEXT).stderr


def test_the_embeddings_of_another_retrieval_checkpoint(search: Search, rows: list[dict[str, Any]]) -> None:
    """A server may not tell its own."""
    turned = [each | {"embedding": each["embedding"][::-1]} for each in rows]
    write_table(Path("embeddings.parquet"), turned)
    assert "by its embedding in the table, and" in search(TEXT).stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Give either a TEXT in quotes or an --image to search by"),
        (["a cat", "--image", "a.jpg"], "Give either a TEXT in quotes or an --image to search by"),
        (["a cat", "--k", "0"], "0 is not in the range 1<=x<=10000"),
        (["a cat", "--rerank", "0"], "0 is not in the range 1<=x<=10000"),
        (["a cat", "--sheet", "a.bmp"], "--sheet must end in .png, not 'a.bmp'"),
        (["a cat", "--sheet", "nowhere/a.png"], "There is no folder nowhere: make it by `mkdir -p nowhere`"),
    ],
)
def test_wrong_command_lines(search: Search, words: list[str], sentence: str) -> None:
    result = search(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([""], "text"),
        (["a" * 5000], "text"),
        (["a " * 400], "set truncate"),
        (["\udcff"], "A text must be one that UTF-8 can hold"),
        (["--image", "nowhere.jpg"], "Cannot read the image file 'nowhere.jpg'"),
        (["--image", "embeddings.parquet"], "image must be a JPEG"),
        (["--image", NAMES[0], "--resize-mode", "fold"], "resize_mode"),
    ],
)
def test_wrong_queries_are_one_sentence(search: Search, words: list[str], sentence: str) -> None:
    result = search(*words)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_long_text_can_be_cut(search: Search) -> None:
    assert len(hits(search("a " * 400, "--truncate", "--json"))) == len(NAMES)


def test_a_server_without_matching(server: TritonServer, table: Path) -> None:
    result = CliRunner().invoke(main, ["search", str(table), TEXT, "--url", server.grpc_url])
    assert result.stderr == "Error: This server has no embed_text; it has caption, caption_stream, explain\n"


def test_no_server(table: Path, closed_port: int) -> None:
    words = ["search", str(table), TEXT, "--url", f"grpc://127.0.0.1:{closed_port}", "--retries", "0"]
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


def test_a_wrong_table_needs_no_server(closed_port: int, tmp_path: Path) -> None:
    words = ["search", str(tmp_path / "none"), TEXT, "--url", f"grpc://127.0.0.1:{closed_port}"]
    assert "No such file or directory" in CliRunner().invoke(main, words).stderr


def test_names_reach_no_terminal_raw(search: Search, rows: list[dict[str, Any]]) -> None:
    name = "\x1b]0;gone\x07 \x9b31m\u202e.jpg"
    write_table(Path("embeddings.parquet"), [rows[0] | {"name": name}, rows[1]])
    for words in (["--no-rerank"], ["--no-rerank", "--json"], [], ["--sheet", "a.png"]):
        result = search(TEXT, *words)
        assert result.output.replace("\n", "").isprintable()
    assert {hit["name"] for hit in hits(search(TEXT, "--no-rerank", "--json"))} == {name, NAMES[1]}


def test_ctrl_c_ends_it_quietly(tmp_path: Path) -> None:
    """While a server is asked that never answers."""
    path = write_table(tmp_path / "a.parquet", [row("a.jpg", [1.0])])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(120)
        url = f"grpc://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "blipstream_client", "search", str(path), TEXT, "--url", url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ,
        )
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=120) == (b"", b"")
    assert process.returncode == 130
