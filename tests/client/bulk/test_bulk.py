# SPDX-License-Identifier: Apache-2.0
"""The command `blipstream bulk`: its output, which interruptions do not change."""

import io
import json
import os
import pty
import random
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

from blipstream.server.triton import TritonServer
from blipstream_client._options import OPTIONS
from blipstream_client.bulk.extras import pyarrow
from tests.support.bulk_output import read
from tests.support.proxy import proxy
from tests.support.tiny_triton import Answer, Inputs, Refusal, TinyTriton, size_of_image, tiny_triton

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "blipstream_client", "bulk"]
SMALL_PARTS = """
from blipstream_client.__main__ import main
from blipstream_client.bulk import sinks
sinks.PART_ROWS = {part_rows}
main()
"""
CONFIRM_EACH = """
from blipstream_client.__main__ import main
from blipstream_client.bulk import runner
runner.CONFIRM_SECONDS = 0
main()
"""
COUNT_HEAPS = """
import ctypes, sys, tempfile
from blipstream_client.__main__ import main

libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p

def heaps():
    with tempfile.NamedTemporaryFile() as file:
        stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
        libc.malloc_info(0, stream)
        libc.fclose(stream)
        return file.read().count(b"<heap nr=")

before = heaps()
try:
    main()
finally:
    print(heaps() - before, "heaps more", file=sys.stderr)
"""

pa = pyarrow("This test")
pq = pa.parquet


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "client"))


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8 + number % 5, 6), (number % 256, number // 256 % 256, 0)).save(buffer, "JPEG")
    return buffer.getvalue() + number.to_bytes(4, "big")


def write_images(count: int) -> None:
    Path("images").mkdir()
    for number in range(count):
        Path(f"images/{number:06}.jpg").write_bytes(jpeg(number))


def bulk(*arguments: str, stdin: str = "", command: Sequence[str] = COMMAND) -> tuple[int, str]:
    """Exit status and standard error."""
    done = subprocess.run(
        [*command, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
    )
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize("output", ["a.jsonl", "a.csv", "a.parquet"])
def test_one_row_for_each_image(tiny: TinyTriton, scheme: str, output: str) -> None:
    write_images(20)
    tiny.name = "demo@123"
    arguments = ["images", "--output", output, "--url", tiny.url(scheme), "--prompt", "a picture of"]
    assert bulk(*arguments) == (0, f"20 rows in {output}, 0 of them from before\n")
    rows = read(Path(output))
    assert [row["name"] for row in rows] == [f"images/{number:06}.jpg" for number in range(20)]
    assert rows[3]["caption"] == f"{len(jpeg(3))} bytes"
    assert float(rows[3]["score"]) == -1.5
    assert (int(rows[3]["width"]), int(rows[3]["height"])) == (11, 6)
    assert {(row["checkpoint"], row["options"]) for row in rows} == {("demo@123", '{"prompt": "a picture of"}')}
    assert len({row["hash"] for row in rows}) == 20
    assert bulk(*arguments) == (0, f"20 rows in {output}, 20 of them from before\n")


@pytest.mark.parametrize("output", ["a.jsonl", "a.csv", "a.parquet"])
def test_captions_that_match_too_little(demo_server: TritonServer, output: str) -> None:
    """A row without a caption is no failure. Going on keeps it."""
    samples = ROOT / "build/demo/samples"
    shutil.copyfile(samples / "a-book.jpg", "a.jpg")
    shutil.copyfile(samples / "two-whales.jpg", "b.jpg")
    options = ["--prompt", "a book", "--num-beams", "4", "--rerank", "4", "--min-match", "0.5"]
    arguments = ["a.jpg", "b.jpg", "--output", output, "--url", demo_server.grpc_url, *options]
    empty = "1 without a caption that matches\n"
    assert bulk(*arguments) == (0, f"2 rows in {output}, 0 of them from before\n{empty}")
    book, whales = read(Path(output))
    assert book["caption"] == "a book on a purple background"
    assert float(book["match"]) > 0.5
    assert not book["why_empty"]
    assert not any(whales[name] for name in ("caption", "score", "match", "error"))
    assert whales["why_empty"].startswith("No caption matches well enough: the best of 4 captions, 'a book ")
    assert bulk(*arguments) == (0, f"2 rows in {output}, 2 of them from before\n{empty}")


def test_other_files_are_left_out_and_counted(tiny: TinyTriton) -> None:
    write_images(1)
    Path("images/a.jfif").write_bytes(jpeg(1))
    Path("images/b.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    arguments = ["images", "--output", "a.jsonl", "--url", tiny.url("grpc")]
    said = "1 file left out for not being JPEG, PNG, WebP, BMP, GIF or TIFF: 1 .heic (images/b.HEIC)\n"
    for found in (0, 2):
        assert bulk(*arguments) == (0, f"2 rows in a.jsonl, {found} of them from before\n{said}")
    assert bulk("images/a.jfif", *arguments[1:2], "b.jsonl", *arguments[3:]) == (
        0,
        "1 row in b.jsonl, 0 of them from before\n",
    )


def test_nothing_at_all_is_an_error(tiny: TinyTriton) -> None:
    Path("empty").mkdir()
    Path("others").mkdir()
    Path("others/a.avif").touch()
    arguments = ["--output", "a.jsonl", "--url", tiny.url("grpc")]
    assert bulk("empty", *arguments) == (1, "Error: There is no image to caption\n")
    status, err = bulk("others", "--output", "b.jsonl", *arguments[2:])
    assert status == 1
    assert err.startswith("Error: There is no image to caption: 1 file left out for not being JPEG, PNG, ")
    assert bulk("-", "--output", "c.jsonl", *arguments[2:])[0] == 1
    Path("empty/a.jpg").write_bytes(jpeg(0))
    assert bulk("empty", *arguments)[0] == 0


def test_an_unreadable_image_is_a_row(tiny: TinyTriton) -> None:
    os.mkfifo("pipe.jpg")
    Path("zero.jpg").symlink_to("/dev/zero")
    with Path("large.jpg").open("wb") as file:
        file.truncate(2**40)
    with tarfile.open("a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("empty.jpg"))
    Path("secret.jpg").write_bytes(jpeg(1))
    pq.write_table(pa.table({"path": ["secret.jpg", "a" * 18_000]}), "a.parquet")
    arguments = ["pipe.jpg", "zero.jpg", "large.jpg", "a.tar", "a.parquet", "--url", tiny.url("grpc"), "--output"]
    status, err = bulk(*arguments, "a.jsonl")
    assert (status, err.splitlines()[1].partition(";")[0]) == (1, "6 have an error instead of a caption")
    rows = read(Path("a.jsonl"))
    words = ["got a pipe", "got a device", "larger than 32 MiB", "got 0 bytes", *["--allow-local-paths permits it"] * 2]
    assert all(word in row["error"] for word, row in zip(words, rows, strict=True))
    assert max(len(row["error"]) for row in rows) < 250
    assert bulk(*arguments, "b.jsonl", "--allow-local-paths")[0] == 1
    rows = read(Path("b.jsonl"))
    assert (rows[4]["caption"], "File name too long" in rows[5]["error"]) == (f"{len(jpeg(1))} bytes", True)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e39"])
def test_nan_is_refused(tiny: TinyTriton, value: str) -> None:
    """NaN would differ from itself when the run goes on."""
    write_images(1)
    arguments = ["images", "--output", "a.jsonl", "--url", tiny.url("grpc")]
    for name, option in OPTIONS.items():
        if option.type.python is float:
            status, err = bulk(*arguments, f"--{name.replace('_', '-')}", value)
            assert (status, err.count("\n")) == (1, 1)
            assert err.startswith(f"Error: {name} must be between {option.low:g} and {option.high:g}, got")
            assert err.endswith(f", got {float(value)}\n")
    assert sorted(each.name for each in Path().iterdir()) == ["images"]


def test_formulas_in_csv_and_going_on(tiny: TinyTriton) -> None:
    names = ["=1+1.jpg", "+a.jpg", "@b.jpg", "'c.jpg"]
    for name in names:
        Path(name).write_bytes(jpeg(0))
    tiny.answer = lambda _: ("=HYPERLINK(1)", -1.5, 2)
    arguments = ["-", "--output", "a.csv", "--url", tiny.url("grpc")]
    for found in (0, 4):
        said = f"4 rows in a.csv, {found} of them from before\n"
        assert bulk(*arguments, stdin="\n".join(names)) == (0, said)
    assert [row["name"] for row in read(Path("a.csv"))] == [f"'{name}" for name in names]
    assert {(row["caption"], row["score"]) for row in read(Path("a.csv"))} == {("'=HYPERLINK(1)", "-1.5")}


def test_failures_are_rows_and_a_summary(tiny: TinyTriton) -> None:
    write_images(3)
    Path("images/000001.jpg").write_bytes(b"")
    status, err = bulk("images", "nowhere/../images/000002.jpg", "-", "--output", "a.jsonl", "--url", tiny.url("grpc"))
    assert (status, "There is no file" in err) == (1, True)
    arguments = ["images", "-", "--output", "a.jsonl", "--url", tiny.url("grpc")]
    status, err = bulk(*arguments, stdin="nowhere.jpg\nimages/000002.jpg\n")
    assert status == 1
    assert err.startswith(
        "5 rows in a.jsonl, 0 of them from before\n2 have an error instead of a caption; images/000001"
    )
    rows = read(Path("a.jsonl"))
    assert [row["error"] is None for row in rows] == [True, False, True, False, True]
    assert "No such file" in rows[3]["error"]
    status, err = bulk(*arguments, stdin="nowhere.jpg\nimages/000002.jpg\n")
    assert (status, "2 have an error" in err) == (1, True)


@pytest.mark.parametrize("output", ["a.jsonl", "a.csv", "a.parquet"])
def test_names_that_are_not_utf_8(tiny: TinyTriton, output: str) -> None:
    write_images(1)
    shutil.copy("images/000000.jpg", os.fsdecode(b"images/\xff.jpg"))
    Path(os.fsdecode(b"images/\xfe.jpg")).touch()
    arguments = ["images", "-", "--output", output, "--url", tiny.url("grpc")]
    for found in (0, 4):
        status, err = bulk(*arguments, stdin=os.fsdecode(b"http://127.0.0.1/\xff\n"))
        assert (status, f"4 rows in {output}, {found} of them from before" in err) == (1, True)
    rows = read(Path(output))
    assert [row["name"] for row in rows[:3]] == ["images/000000.jpg", "images/\\udcfe.jpg", "images/\\udcff.jpg"]
    assert [bool(row["caption"]) for row in rows] == [True, False, True, False]
    assert rows[3]["name"] == "http://127.0.0.1/\\udcff"


def test_odd_images_do_not_end_the_run(tiny: TinyTriton) -> None:
    Path("images").mkdir()
    Image.new("RGB", (8, 6)).save("images/drawing.jpg", "EPS")
    surface = struct.pack("<4s7I44x8I20x", b"DDS ", 124, 0x1007, 6, 8, 0, 0, 0, 32, 4, 1, 0, 0, 0, 0, 0)
    Path("images/surface.jpg").write_bytes(surface)
    assert bulk("images", "--output", "a.jsonl", "--url", tiny.url("grpc"), "--max-side", "4")[0] == 0
    rows = read(Path("a.jsonl"))
    assert [(row["width"], row["height"]) for row in rows] == [(None, None)] * 2
    assert rows[1]["caption"] == f"{len(surface)} bytes"


def test_an_output_among_the_images(tiny: TinyTriton) -> None:
    write_images(3)
    arguments = ["images", "--output", "images/a.parquet", "--url", tiny.url("grpc")]
    assert bulk(*arguments) == (0, "3 rows in images/a.parquet, 0 of them from before\n")
    assert bulk(*arguments) == (0, "3 rows in images/a.parquet, 3 of them from before\n")
    arguments[2] = "images/b.parquet"
    assert bulk(*arguments) == (0, "3 rows in images/b.parquet, 0 of them from before\n")


@pytest.mark.parametrize("output", ["images/000000.jpg/a.jsonl", "images/000000.jpg/a.parquet", f"{'a' * 300}.csv"])
def test_an_output_that_cannot_be_written(tiny: TinyTriton, output: str) -> None:
    write_images(1)
    status, err = bulk("images", "--output", output, "--url", tiny.url("grpc"))
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith(f"Error: Cannot write to {output} (")


@pytest.mark.parametrize("output", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_disk_that_is_full(tiny: TinyTriton, output: str) -> None:
    write_images(40)
    arguments = ["images", "--output", output, "--url", tiny.url("grpc")]
    full = ["bash", "-c", 'ulimit -f 4 && exec "$@"', "bash", *COMMAND]  # KiB a file
    status, err = bulk(*arguments, command=full)
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith(f"Error: Cannot write to {output} (the same command goes on once that is mended): ")
    assert bulk(*arguments)[0] == 0
    assert [row["name"] for row in read(Path(output))] == [f"images/{number:06}.jpg" for number in range(40)]


def test_a_run_goes_on_after_a_broken_shard_is_replaced(tiny: TinyTriton) -> None:
    write_images(3)
    with tarfile.open("shard.tar", "w") as tar:
        tar.add("images/000000.jpg")
    whole = Path("shard.tar").read_bytes()
    Path("shard.tar").write_bytes(whole[:700])
    arguments = ["images", "shard.tar", "--output", "a.jsonl", "--url", tiny.url("grpc")]
    status, err = bulk(*arguments)
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("Error: Cannot read shard.tar")
    Path("shard.tar").write_bytes(whole)
    assert bulk(*arguments)[0] == 0
    assert read(Path("a.jsonl"))[3]["name"] == "shard.tar/images/000000.jpg"


def test_the_images_before_a_cut_have_rows(tiny: TinyTriton) -> None:
    write_images(5)
    with tarfile.open("shard.tar", "w") as tar:
        tar.add("images")
    with tarfile.open("shard.tar") as tar:
        offset = tar.getmember("images/000003.jpg").offset_data
    whole = Path("shard.tar").read_bytes()
    Path("shard.tar").write_bytes(whole[: offset + 100])
    arguments = ["shard.tar", "--output", "a.jsonl", "--url", tiny.url("grpc")]
    assert bulk(*arguments) == (
        1,
        "Error: Cannot read shard.tar/images/000003.jpg: unexpected end of data"
        " (3 rows are done; once that is mended, the same command goes on)\n",
    )
    Path("shard.tar").write_bytes(whole)
    assert bulk(*arguments) == (0, "5 rows in a.jsonl, 3 of them from before\n")


def on_a_terminal(*arguments: str) -> tuple[int, str]:
    """Exit status and everything on the terminal."""
    controller, terminal = pty.openpty()
    with os.fdopen(controller, "rb", buffering=0) as screen:
        with os.fdopen(terminal, "wb", buffering=0) as stderr:
            process = subprocess.Popen([*COMMAND, *arguments], stderr=stderr)
        shown = b""
        with suppress(OSError):  # at the end of a terminal's output
            while piece := screen.read(1 << 16):
                shown += piece
    return process.wait(), shown.decode()


def test_the_bar(tiny: TinyTriton) -> None:
    write_images(3)
    url = ["--url", tiny.url("grpc")]
    status, shown = on_a_terminal("images", "--output", "a.jsonl", *url)
    assert status == 0
    assert "3/3" in shown
    assert " 0 in flight" in shown.rpartition("3/3")[2]  # not as many as there may be
    assert shown.splitlines()[-1] == "Next: head -n 3 a.jsonl"
    _, shown = on_a_terminal("images", "http://127.0.0.1/a.parquet", "--output", "b.jsonl", *url)
    assert "4/4" in shown
    assert "1 failed" in shown
    Path("images/broken.parquet").write_bytes(b"no table")
    Path("empty").mkdir()
    status, shown = on_a_terminal("empty", "--output", "d.jsonl", *url)
    assert (status, shown.strip()) == (1, "Error: There is no image to caption")

    status, shown = on_a_terminal("images", "--output", "c.jsonl", *url)
    assert (status, "Traceback" in shown) == (1, False)
    assert "/?" in shown
    assert "Error: Cannot read images/broken.parquet" in shown


def test_tar_and_parquet_in_parquet_out(tiny: TinyTriton) -> None:
    with tarfile.open("shard.tar", "w") as tar:
        for number in range(70):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = len(jpeg(number))
            tar.addfile(info, io.BytesIO(jpeg(number)))
    url = ["--url", tiny.url("grpc")]
    assert bulk("shard.tar", "--output", "a.parquet", *url)[0] == 0
    assert [row["name"] for row in read(Path("a.parquet"))] == [f"shard.tar/{number}.jpg" for number in range(70)]


def test_changed_images_and_options_are_refused(tiny: TinyTriton) -> None:
    write_images(5)
    arguments = ["images", "--output", "a.jsonl", "--url", tiny.url("grpc")]
    assert bulk(*arguments)[0] == 0
    status, err = bulk(*arguments, "--num-beams", "3")
    assert (status, err.count("\n")) == (1, 1)
    assert 'Error: a.jsonl was begun with options {}, not {"num_beams": 3}' in err
    assert 'begun with model "caption", not "other"' in bulk(*arguments, "--model", "other")[1]
    Path("images/000003.jpg").rename("images/000002b.jpg")
    status, err = bulk(*arguments)
    assert (status, err.count("\n")) == (1, 1)
    assert "a.jsonl goes on with images/000003.jpg, and here comes images/000002b.jpg" in err
    tiny.name = "other@checkpoint"
    assert "begun with checkpoint null" in bulk(*arguments)[1]


def test_a_lost_server_ends_the_run_and_keeps_the_rows(tiny: TinyTriton) -> None:
    write_images(40)
    with proxy(tiny.grpc_port) as between:
        tiny.answer = lambda inputs: gone(inputs, between)
        arguments = ["images", "--output", "a.jsonl", "--max-in-flight", "1"]
        command = [sys.executable, "-c", CONFIRM_EACH, "bulk"]
        url = f"grpc://127.0.0.1:{between.port}"
        status, err = bulk(*arguments, "--url", url, "--retries", "1", "--timeout", "60", command=command)
    assert status == 1
    assert "No Triton server answers" in err
    found = len(read(Path("a.jsonl")))
    assert 0 < found <= 10
    assert f"{found} rows are done; the same command goes on" in err
    tiny.answer = size_of_image
    assert bulk(*arguments, "--url", tiny.url("grpc")) == (0, f"40 rows in a.jsonl, {found} of them from before\n")


@pytest.mark.parametrize("moment", ["at first", "later"])
def test_a_server_that_is_not_there_is_waited_for_aloud(tiny: TinyTriton, scheme: str, moment: str) -> None:
    """It comes, or comes back, once the command has said that it waits."""
    write_images(3)
    with proxy(tiny.port(scheme)) as between:

        def leave(inputs: Inputs) -> Answer:
            if inputs["image"][0, 0] == jpeg(1) and between.connections:
                between.target, tiny.answer = 1, size_of_image
                between.cut()
            return size_of_image(inputs)

        if moment == "later":
            tiny.answer = leave
        else:
            between.target = 1  # no process listens there
        url = f"{scheme}://127.0.0.1:{between.port}"
        command = [*COMMAND, "images", "--output", "a.jsonl", "--url", url, "--max-in-flight", "1"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            told = process.stderr.readline()
            between.target = tiny.port(scheme)
            rest = process.stderr.read()
    assert told.startswith(f"No Triton server answers at {url}: ")
    assert told.endswith(" Trying again for up to 300 s; Ctrl-C ends it.\n")
    assert rest == "The server answers.\n3 rows in a.jsonl, 0 of them from before\n"


@pytest.mark.parametrize(("output", "number"), [("a.jsonl", signal.SIGINT), ("a.parquet", signal.SIGTERM)])
def test_a_signal_to_end_says_what_is_safe(tiny: TinyTriton, output: str, number: int) -> None:
    write_images(40)
    asked, opened = threading.Event(), threading.Event()

    def stay(inputs: Inputs) -> Answer:
        if inputs["image"][0, 0] == jpeg(10):
            asked.set()
            opened.wait(60)
        return size_of_image(inputs)

    tiny.answer = stay
    arguments = ["images", "--output", output, "--max-in-flight", "1", "--url", tiny.url("grpc")]
    command = [sys.executable, "-c", CONFIRM_EACH, "bulk", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert asked.wait(60)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    opened.set()
    found = len(read(Path(output)))
    assert 0 < found <= 10
    assert process.returncode == 130
    assert err == f"Interrupted: {found} rows safe in {output}; the same command goes on\n"
    assert bulk(*arguments) == (0, f"40 rows in {output}, {found} of them from before\n")


def test_ctrl_c_while_there_is_no_server(closed_port: int) -> None:
    write_images(1)
    arguments = ["images", "--output", "a.jsonl", "--url", f"grpc://127.0.0.1:{closed_port}"]
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "Interrupted: written rows are safe; the same command goes on\n")


def gone(inputs: Inputs, between: Any) -> Answer:
    if inputs["image"][0, 0] == jpeg(10):
        between.target = 1
        between.cut()
    return size_of_image(inputs)


def test_another_checkpoint_ends_the_run(tiny: TinyTriton, scheme: str) -> None:
    """No caption of another checkpoint is written, and the next run writes the rest."""
    write_images(40)
    tiny.name = "demo@1"

    def replaced(inputs: Inputs) -> Answer:
        if inputs["image"][0, 0] == jpeg(20):
            tiny.name = "other@2"
        return tiny.name, -1.5, 2

    tiny.answer = replaced
    arguments = ["images", "--output", "a.jsonl", "--max-in-flight", "3", "--url", tiny.url(scheme)]
    command = [sys.executable, "-c", CONFIRM_EACH, "bulk"]
    expected = (1, f"Error: a.jsonl was begun with checkpoint {tiny.name!r}, not 'other@2'".replace("'", '"'))
    status, err = bulk(*arguments, command=command)
    assert (status, err.partition(":" + " use")[0]) == expected
    found = len(read(Path("a.jsonl")))
    assert 0 < found <= 20
    assert bulk(*arguments)[1] == err
    tiny.name, tiny.answer = "renamed@1", lambda _: (tiny.name, -1.5, 2)
    assert bulk(*arguments) == (0, f"40 rows in a.jsonl, {found} of them from before\n")
    pairs = [(row["caption"], row["checkpoint"]) for row in read(Path("a.jsonl"))]
    assert pairs == [("demo@1", "demo@1")] * found + [("renamed@1", "renamed@1")] * (40 - found)


def test_other_defaults_of_the_server_end_the_run(tiny: TinyTriton, scheme: str) -> None:
    """No caption by other defaults is written, and the next run refuses them, too."""
    write_images(40)
    five, six = {"option_defaults": '{"max_tokens": 5}'}, {"option_defaults": '{"max_tokens": 6}'}
    tiny.parameters = five

    def restarted(inputs: Inputs) -> Answer:
        if inputs["image"][0, 0] == jpeg(20):
            tiny.parameters = six
        return tiny.parameters["option_defaults"], -1.5, 2

    tiny.answer = restarted
    arguments = ["images", "--output", "a.jsonl", "--max-in-flight", "3", "--url", tiny.url(scheme)]
    status, err = bulk(*arguments, command=[sys.executable, "-c", CONFIRM_EACH, "bulk"])
    told = 'Error: a.jsonl was begun with the server\'s defaults {"max_tokens": 5}, not {"max_tokens": 6}: '
    assert (status, err.startswith(told)) == (1, True)
    assert bulk(*arguments) == (1, err)
    tiny.parameters = five | {"fixed_options": '{"max_tokens": 5}'}
    assert 'begun with the server\'s fixed options [], not ["max_tokens"]' in bulk(*arguments)[1]
    tiny.parameters, tiny.answer = five, lambda _: ('{"max_tokens": 5}', -1.5, 2)
    assert bulk(*arguments)[0] == 0
    assert [(row["caption"], row["defaults"]) for row in read(Path("a.jsonl"))] == [('{"max_tokens": 5}',) * 2] * 40


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"temperature": "3"},
            'calibration {"temperature": 2.0, "threshold": 0.5}, not {"temperature": 3.0, "threshold": 0.5}: ',
        ),
        ({"checkpoint": "coco@2"}, 'retrieval checkpoint "coco@1", not "coco@2": '),
    ],
)
def test_other_matching_ends_a_run_that_reranks(
    tiny: TinyTriton, scheme: str, changed: dict[str, str], told: str
) -> None:
    """No caption that another calibration or retrieval checkpoint has chosen is written under the same captioner."""
    write_images(8)
    begun = {"checkpoint": "coco@1", "temperature": "2", "threshold": "0.5"}
    tiny.parameters = begun

    def restarted(inputs: Inputs) -> Answer:
        if inputs["image"][0, 0] == jpeg(4):
            tiny.parameters = begun | changed
        return json.dumps(tiny.parameters), -1.5, 2

    tiny.answer = restarted
    arguments = ["images", "--output", "a.jsonl", "--max-in-flight", "3", "--url", tiny.url(scheme), "--rerank", "1"]
    status, err = bulk(*arguments, command=[sys.executable, "-c", CONFIRM_EACH, "bulk"])
    assert (status, err.startswith(f"Error: a.jsonl was begun with the server's {told}")) == (1, True), err
    assert bulk(*arguments) == (1, err)
    tiny.parameters, tiny.answer = begun, lambda _: (json.dumps(begun), -1.5, 2)
    assert bulk(*arguments)[0] == 0
    assert [row["caption"] for row in read(Path("a.jsonl"))] == [json.dumps(begun)] * 8


@pytest.mark.parametrize("output", ["no/such folder/a.jsonl", "no/such folder/a.parquet"])
def test_the_folder_of_the_output_must_exist(closed_port: int, output: str) -> None:
    """That is told before anything else, and no folder is made."""
    write_images(1)
    status, err = bulk("images", "--output", output, "--url", f"grpc://127.0.0.1:{closed_port}")
    remedy = "make it by `mkdir -p 'no/such folder'`, or use another --output"
    assert (status, err) == (1, f"Error: There is no folder no/such folder: {remedy}\n")
    assert not Path("no").exists()


def test_endpoints_of_different_checkpoints_end_the_run(tiny: TinyTriton, scheme: str) -> None:
    write_images(8)
    with tiny_triton() as other:
        tiny.name, other.name = "demo@1", "demo@2"
        url = f"{tiny.url(scheme)},127.0.0.1:{other.port(scheme)}"
        status, err = bulk("images", "--output", "a.jsonl", "--url", url)
    assert (status, err.startswith('Error: a.jsonl was begun with checkpoint "demo@1", not "demo@2"')) == (1, True)
    assert {row["checkpoint"] for row in read(Path("a.jsonl"))} <= {"demo@1"}
    assert len(other.headers) == 0


def test_a_server_that_comes_back_with_another_checkpoint_is_not_used(tiny: TinyTriton, scheme: str) -> None:
    write_images(4)
    tiny.name = "demo@1"
    with tiny_triton() as other, proxy(tiny.port(scheme)) as between:
        other.name = "demo@2"

        def leave(inputs: Inputs) -> Answer:
            if inputs["image"][0, 0] == jpeg(3):
                between.target = other.port(scheme)
                between.cut()
            return size_of_image(inputs)

        tiny.answer = leave
        url = f"{scheme}://127.0.0.1:{between.port}"
        status, err = bulk("images", "--output", "a.jsonl", "--url", url, "--max-in-flight", "1")
    assert (status, other.headers) == (1, [])
    assert err.splitlines()[-1].startswith('Error: a.jsonl was begun with checkpoint "demo@1", not "demo@2"')


class Narrow:
    """A server that accepts so many requests at once and refuses the others."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.refused = 0
        self.taken = 0
        self._inside = 0
        self._lock = threading.Lock()

    def __call__(self, inputs: Inputs) -> Answer:
        with self._lock:
            if self._inside >= self.width:
                self.refused += 1
                raise Refusal(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
            self._inside += 1
            self.taken += 1
        time.sleep(0.01)
        with self._lock:
            self._inside -= 1
        return size_of_image(inputs)


def test_an_overloaded_server_gets_fewer_requests(tiny: TinyTriton) -> None:
    write_images(400)
    tiny.answer = narrow = Narrow(12)
    assert bulk("images", "--output", "a.jsonl", "--url", tiny.url("grpc"))[0] == 0
    assert len(read(Path("a.jsonl"))) == narrow.taken == 400
    assert 0 < narrow.refused < 200


def run_with_kills(arguments: list[str], kills: int, longest: float, part_rows: int = 20) -> int:
    """Start the command, kill it at random moments, and start it again until it ends. Returns the number of kills."""
    moments = random.Random(0)
    killed = 0
    command = [sys.executable, "-c", SMALL_PARTS.format(part_rows=part_rows), "bulk", *arguments]
    while True:
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            if killed < kills:
                try:
                    process.wait(moments.uniform(0.3, longest))
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    killed += 1
                    continue
            _, err = process.communicate(timeout=600)
            assert process.returncode == 0, err
            return killed


@pytest.mark.parametrize(
    "output", ["parquet", *(pytest.param(each, marks=pytest.mark.full) for each in ("jsonl", "csv"))]
)
def test_a_killed_run_goes_on(server: TritonServer, samples: dict[str, str], samples_folder: Path, output: str) -> None:
    """Real captions of a few hundred demo images."""
    names = list(samples)
    Path("images").mkdir()
    for number in range(240):
        content = (samples_folder / names[number % len(names)]).read_bytes()
        Path(f"images/{number:06}.jpg").write_bytes(content)
    url = ["--url", server.grpc_url, "--max-in-flight", "16"]
    killed = run_with_kills(["images", "--output", f"killed.{output}", *url], kills=5, longest=3)
    assert killed > 0
    assert bulk("images", "--output", f"whole.{output}", *url)[0] == 0
    whole, again = read(Path(f"whole.{output}")), read(Path(f"killed.{output}"))
    for one, other in zip(whole, again, strict=True):
        assert float(one.pop("score")) == pytest.approx(float(other.pop("score")), abs=0.05)
    assert again == whole
    assert Counter(row["caption"] for row in whole) == Counter(samples[names[i % len(names)]] for i in range(240))


def peak_memory(arguments: list[str]) -> int:
    """The memory of one run, in bytes."""
    process = subprocess.Popen([*COMMAND, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


def test_threads_share_one_heap(tiny: TinyTriton) -> None:
    """Many heaps would each fragment, and grow for hours."""
    write_images(100)
    command = [sys.executable, "-c", COUNT_HEAPS, "bulk"]
    status, said = bulk("images", "--url", tiny.url("grpc"), "--output", "a.jsonl", command=command)
    assert (status, said.splitlines()[-1]) == (0, "0 heaps more")


@pytest.mark.parametrize("kind", ["tar", pytest.param("parquet", marks=pytest.mark.full)])
def test_memory_does_not_grow_with_the_number_of_images(tiny: TinyTriton, kind: str) -> None:
    size, counts = 2**20, (10, 200)
    for count in counts:
        if kind == "tar":
            with tarfile.open(f"{count}.tar", "w") as tar:
                for number in range(count):
                    info = tarfile.TarInfo(f"{number}.jpg")
                    info.size = size
                    tar.addfile(info, io.BytesIO(number.to_bytes(4, "big") * (size // 4)))
        else:
            schema = pa.schema([("image", pa.binary())])
            with pq.ParquetWriter(f"{count}.parquet", schema) as writer:
                for number in range(0, count, 10):
                    images = [os.urandom(size) for _ in range(number, number + 10)]
                    writer.write_table(pa.table({"image": images}, schema=schema))
    url = ["--url", tiny.url("grpc"), "--max-in-flight", "4"]
    few, many = (peak_memory([f"{count}.{kind}", "--output", f"{count}.jsonl", *url]) for count in counts)
    assert many - few < 100 * 2**20


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("output", ["jsonl", "parquet"])
def test_a_hundred_thousand_images_and_twenty_kills(tiny: TinyTriton, output: str) -> None:
    with tarfile.open("shard.tar", "w") as tar:
        for number in range(100_000):
            content = number.to_bytes(4, "big") * (1 + number % 50)
            info = tarfile.TarInfo(f"{number:06}.jpg")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    url = ["--url", tiny.url("grpc")]
    assert bulk("shard.tar", "--output", f"whole.{output}", *url)[0] == 0
    killed = run_with_kills(["shard.tar", "--output", f"killed.{output}", *url], kills=20, longest=5, part_rows=500)
    assert killed == 20
    whole = read(Path(f"whole.{output}"))
    assert len(whole) == 100_000
    assert json.dumps(read(Path(f"killed.{output}"))) == json.dumps(whole)


def test_options_that_no_image_can_pass_end_the_run_before_its_first_row(tiny: TinyTriton, scheme: str) -> None:
    def answer(inputs: Inputs) -> Answer:
        if inputs.get("num_beams", 1) == 99:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT, "[invalid_input] num_beams must be between 1 and 10, not 99"
            )
        return size_of_image(inputs)

    write_images(3)
    tiny.answer = answer
    arguments = ["images", "--output", "a.jsonl", "--url", tiny.url(scheme)]
    assert bulk(*arguments, "--num-beams", "99") == (1, "Error: num_beams must be between 1 and 10, not 99\n")
    assert [path.name for path in Path().iterdir()] == ["images"]
    assert bulk(*arguments, "--num-beams", "9") == (0, "3 rows in a.jsonl, 0 of them from before\n")
