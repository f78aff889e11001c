# SPDX-License-Identifier: Apache-2.0
"""The programs in examples/, each run against a real server as its page says."""

import ast
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blipstream.server.triton import TritonServer
from tests.conftest import ROOT, SAMPLES
from tests.support.programs import NODE

EXAMPLES = ROOT / "examples"
NOTEBOOK: dict[str, Any] = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))
BOOK, DOG = SAMPLES / "a-book.jpg", SAMPLES / "a-dog-above-a-door.jpg"


def run(server: TritonServer, program: str, *arguments: str | Path) -> str:
    environment = os.environ | {"BLIPSTREAM_URL": server.grpc_url}
    interpreter = NODE if program.endswith(".mjs") else sys.executable
    command: list[str | Path] = [interpreter, EXAMPLES / program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


PROGRAMS = sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".mjs"))


def fail(program: str, *arguments: str | Path) -> str:
    """Standard error of an example that fails."""
    interpreter = NODE if program.endswith(".mjs") else sys.executable
    command: list[str | Path] = [interpreter, EXAMPLES / program, *arguments]
    environment = os.environ | {"BLIPSTREAM_URL": "grpc://127.0.0.1:1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_without_arguments_each_says_how_to_call_it(program: str) -> None:
    interpreter = "node" if program.endswith(".mjs") else "python"
    assert re.fullmatch(f"usage: {interpreter} examples/{re.escape(program)} [A-Z].*\n", fail(program))


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("beams_and_sampling.py", [BOOK]),
        ("stream.py", [BOOK]),
        ("caption_folder.py", [SAMPLES]),
        ("many_async.py", [BOOK, DOG]),
        ("plain_http.py", [BOOK, "127.0.0.1:1"]),
        ("plain_http.py", [BOOK, "http://127.0.0.1:1/"]),
        ("plain_tritonclient.py", [BOOK, "127.0.0.1:1"]),
        ("fetch.mjs", [BOOK, "127.0.0.1:1"]),
        ("fetch.mjs", [BOOK, "http://127.0.0.1:1/"]),
    ],
)
def test_without_a_server_each_says_so_in_one_sentence(program: str, arguments: list[str | Path]) -> None:
    assert re.fullmatch(r"Error: .*127\.0\.0\.1:1.*\n", fail(program, *arguments))


@pytest.mark.parametrize("program", [name for name in PROGRAMS if name not in ("bulk_to_parquet.py", "many_async.py")])
def test_a_file_that_is_not_there_is_one_sentence(program: str, tmp_path: Path) -> None:
    told = fail(program, tmp_path / "nowhere")
    assert told.startswith("Error: ")
    assert "nowhere" in told
    assert told.count("\n") == 1
    assert told.count("ENOENT") <= 1


@pytest.mark.parametrize("program", [name for name in PROGRAMS if name.endswith(".py")])
def test_ctrl_c_prints_no_traceback(program: str, tmp_path: Path) -> None:
    """While a server is asked that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(120)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        arguments: dict[str, list[str | Path]] = {
            "bulk_to_parquet.py": [SAMPLES, tmp_path / "captions.parquet"],
            "caption_folder.py": [SAMPLES],
            "plain_http.py": [BOOK, address],
            "plain_tritonclient.py": [BOOK, address],
        }
        process = subprocess.Popen(
            [sys.executable, EXAMPLES / program, *arguments.get(program, [BOOK])],
            env=os.environ | {"BLIPSTREAM_URL": f"grpc://{address}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        connection, _ = silent.accept()
        with connection:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_the_page_names_them_all() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".mjs", ".ipynb"))


def test_caption_folder(server: TritonServer, samples: dict[str, str]) -> None:
    lines = run(server, "caption_folder.py", SAMPLES).splitlines()
    assert [line for line in lines if " failed: " not in line] == [
        f"{name}: {samples[name]}" for name in sorted(samples)
    ]
    (failed,) = (line for line in lines if " failed: " in line)
    assert failed.startswith("captions.json failed: image must be a JPEG")


def test_caption_folder_says_that_a_folder_is_empty(tmp_path: Path) -> None:
    assert fail("caption_folder.py", tmp_path) == f"Error: {tmp_path} has no files\n"


def test_stream(server: TritonServer) -> None:
    assert run(server, "stream.py", BOOK) == "a book on a purple background (7 tokens, stop)\n"


def test_many_async(server: TritonServer, samples: dict[str, str]) -> None:
    files = [*(SAMPLES / name for name in samples), SAMPLES / "captions.json"]
    lines = run(server, "many_async.py", *files).splitlines()
    assert {f"{SAMPLES / name}: {caption}" for name, caption in samples.items()} < set(lines)
    assert len(lines) == len(files)


def test_beams_and_sampling(server: TritonServer) -> None:
    lines = run(server, "beams_and_sampling.py", DOG).splitlines()
    titles = [line for line in lines if not line.startswith(" ")]
    assert titles == ["greedy", "3 beams", "sampled", "with a prompt"]
    counts = [lines.index(after) - lines.index(title) - 1 for title, after in itertools.pairwise(titles)]
    assert counts == [1, 3, 3]
    assert lines[1].endswith("a dog above a door on a brown background")
    assert " two" in lines[-1]
    assert run(server, "beams_and_sampling.py", DOG).splitlines() == lines, "the same request has another answer"


def test_fetch(server: TritonServer) -> None:
    assert run(server, "fetch.mjs", BOOK, f"{server.http_url}/") == "a book on a purple background\n"


def test_fetch_fails_with_a_code(server: TritonServer) -> None:
    command: list[str | Path] = [NODE, EXAMPLES / "fetch.mjs", SAMPLES / "captions.json", server.http_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"invalid_\w+: image must be a JPEG.*\n", done.stderr)


def test_plain_http(server: TritonServer) -> None:
    for address in (server.http_url, server.http_url.removeprefix("http://")):
        assert run(server, "plain_http.py", BOOK, address) == "a book on a purple background\n"


@pytest.mark.parametrize("program", ["plain_http.py", "fetch.mjs"])
def test_the_port_for_grpc_is_no_http(server: TritonServer, program: str) -> None:
    told = fail(program, BOOK, server.grpc_url.removeprefix("grpc://"))
    assert re.fullmatch(r"Error: \S+ does not answer in HTTP: [ -~]+\n", told)


def test_plain_tritonclient(server: TritonServer) -> None:
    lines = run(server, "plain_tritonclient.py", BOOK, server.grpc_url.removeprefix("grpc://")).splitlines()
    assert lines[0].endswith("a book on a purple background")
    assert len(lines) == 3


def test_bulk_to_parquet(server: TritonServer, samples: dict[str, str], tmp_path: Path) -> None:
    for _ in range(2):  # and again, where nothing is left to do
        lines = run(server, "bulk_to_parquet.py", SAMPLES, tmp_path / "captions.parquet").splitlines()
        assert f"{len(samples)} rows, {len(samples)} without an error" in lines
        assert {f"{name}: {caption}" for name, caption in samples.items()} < set(lines)


def test_bulk_to_parquet_reads_the_table_though_an_image_failed(server: TritonServer, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(BOOK, folder)
    (folder / "broken.jpg").write_bytes(BOOK.read_bytes()[:100])
    command: list[str | Path] = [sys.executable, EXAMPLES / "bulk_to_parquet.py", folder, tmp_path / "captions.parquet"]
    environment = os.environ | {"BLIPSTREAM_URL": server.grpc_url}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert {"2 rows, 1 without an error", "a-book.jpg: a book on a purple background"} < set(done.stdout.splitlines())


def test_bulk_to_parquet_refuses_another_output_at_once(tmp_path: Path) -> None:
    assert fail("bulk_to_parquet.py", SAMPLES, tmp_path / "captions.csv").startswith("usage: ")
    assert not any(tmp_path.iterdir())


def cells() -> list[dict[str, Any]]:
    return [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_notebook(server: TritonServer) -> None:
    """Its cells run one after the other, and print and return what it shows."""
    program = ["import json, io, contextlib", "space, shown = {}, []"]
    for cell in cells():
        *body, last = ast.parse("".join(cell["source"])).body
        value = ast.unparse(last.value) if isinstance(last, ast.Expr) else "None"
        statements = "\n".join(map(ast.unparse, body if isinstance(last, ast.Expr) else [*body, last]))
        program += [
            "with contextlib.redirect_stdout(io.StringIO()) as printed:",
            f"    exec({statements!r}, space)",
            f"    value = eval({value!r}, space)",
            "shown.append((printed.getvalue(), '' if value is None else repr(value)))",
        ]
    program.append("print(json.dumps(shown))")
    environment = os.environ | {"BLIPSTREAM_URL": server.grpc_url}
    command = [sys.executable, "-c", "\n".join(program)]
    done = subprocess.run(command, cwd=EXAMPLES, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for cell, (printed, value) in zip(cells(), json.loads(done.stdout), strict=True):
        outputs = {output["output_type"]: output for output in cell["outputs"]}
        assert "".join(outputs.get("stream", {}).get("text", "")) == printed
        result = outputs.get("execute_result", {}).get("data", {})
        assert "image/png" in result or "".join(result.get("text/plain", "")) == value
