# SPDX-License-Identifier: Apache-2.0
"""The programs in examples/, each run against a real server as its page says."""

import ast
import itertools
import json
import os
import re
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
    "program", ["beams_and_sampling.py", "stream.py", "plain_http.py", "plain_tritonclient.py", "fetch.mjs"]
)
def test_without_a_server_each_says_so_in_one_sentence(program: str) -> None:
    addresses = {
        "plain_http.py": ["127.0.0.1:1"],
        "plain_tritonclient.py": ["127.0.0.1:1"],
        "fetch.mjs": ["http://127.0.0.1:1"],
    }
    assert re.fullmatch(
        r"(Error|ECONNREFUSED|fetch failed|bad port).*\n", fail(program, BOOK, *addresses.get(program, []))
    )


@pytest.mark.parametrize("program", [name for name in PROGRAMS if name not in ("bulk_to_parquet.py", "many_async.py")])
def test_a_file_that_is_not_there_is_one_sentence(program: str, tmp_path: Path) -> None:
    told = fail(program, tmp_path / "nowhere")
    assert re.match(r"(Error|ENOENT): ", told)
    assert "nowhere" in told
    assert told.count("\n") == 1


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
    assert run(server, "fetch.mjs", BOOK, server.http_url) == "a book on a purple background\n"


def test_fetch_fails_with_a_code(server: TritonServer) -> None:
    command: list[str | Path] = [NODE, EXAMPLES / "fetch.mjs", SAMPLES / "captions.json", server.http_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"invalid_\w+: image must be a JPEG.*\n", done.stderr)


def test_plain_http(server: TritonServer) -> None:
    address = server.http_url.removeprefix("http://")
    assert run(server, "plain_http.py", BOOK, address) == "a book on a purple background\n"


def test_plain_tritonclient(server: TritonServer) -> None:
    lines = run(server, "plain_tritonclient.py", BOOK, server.grpc_url.removeprefix("grpc://")).splitlines()
    assert lines[0].endswith("a book on a purple background")
    assert len(lines) == 3


def test_bulk_to_parquet(server: TritonServer, samples: dict[str, str], tmp_path: Path) -> None:
    for _ in range(2):  # and again, where nothing is left to do
        lines = run(server, "bulk_to_parquet.py", SAMPLES, tmp_path / "captions.parquet").splitlines()
        assert f"{len(samples)} rows, {len(samples)} without an error" in lines
        assert {f"{name}: {caption}" for name, caption in samples.items()} < set(lines)


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
