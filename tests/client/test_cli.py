# SPDX-License-Identifier: Apache-2.0
import fcntl
import inspect
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
import grpc
import pytest

from blipstream_client import Client, __version__
from blipstream_client._cli import OWN, main
from blipstream_client._options import OPTIONS
from tests.support.tiny_triton import Answer, Event, Inputs, Refusal, TinyTriton, size_of_image, word_by_word

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "blipstream_client"]


@pytest.fixture
def environment(tiny: TinyTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with two images, and the URL of a server in the environment."""
    (tmp_path / "a.jpg").write_bytes(b"1")
    (tmp_path / "b.png").write_bytes(b"22")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "client"))
    monkeypatch.setenv("BLIPSTREAM_URL", tiny.url("grpc"))


def blipstream(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    result = subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, check=False)
    return result.returncode, result.stdout.decode(), result.stderr.decode()


def subcommand(name: str) -> click.Command:
    """One of the client's own."""
    found = main.get_command(click.Context(main), name)
    assert found
    return found


@pytest.mark.usefixtures("environment")
def test_one_line_for_each_image(scheme: str, tiny: TinyTriton) -> None:
    expected = (0, "a.jpg: 1 bytes\nb.png: 2 bytes\n", "")
    assert blipstream("caption", "a.jpg", "b.png", "--url", tiny.url(scheme)) == expected


@pytest.mark.usefixtures("environment")
def test_a_failure_does_not_affect_the_others() -> None:
    status, out, err = blipstream("caption", "a.jpg", "nowhere.jpg", "b.png")
    assert (status, out) == (1, "a.jpg: 1 bytes\nb.png: 2 bytes\n")
    assert err == "nowhere.jpg: Cannot read the image file 'nowhere.jpg': No such file or directory\n"


@pytest.mark.usefixtures("environment")
def test_json_and_standard_input(tiny: TinyTriton) -> None:
    tiny.answer = lambda inputs: (f"Bär {len(inputs['image'][0, 0])}", -1.5, 2)
    status, out, err = blipstream("caption", "--json", "-", "nowhere.jpg", stdin=b"333")
    assert (status, err) == (1, "")
    assert [json.loads(line) for line in out.splitlines()] == [
        {"file": "-", "caption": "Bär 3", "score": -1.5, "num_tokens": 2},
        {
            "file": "nowhere.jpg",
            "error": "Cannot read the image file 'nowhere.jpg': No such file or directory",
        },
    ]


@pytest.mark.usefixtures("environment")
def test_json_has_nothing_that_a_terminal_obeys(tiny: TinyTriton) -> None:
    text = "\x1b[31m \x7f\x9b\u202e\U000e0001 日本"
    tiny.answer = lambda _: (text, -1.5, 2)
    status, out, _ = blipstream("caption", "--json", "a.jpg")
    assert (status, json.loads(out)["caption"]) == (0, text)
    assert out.removesuffix("\n").isprintable()
    assert "日本" in out


@pytest.mark.parametrize("command", [["caption"], ["bulk", "--output", "a.jsonl"]], ids=str)
def test_standard_input_can_be_read_only_once(command: list[str]) -> None:
    status, out, err = blipstream(*command, "-", "a.jpg", "-", stdin=b"333")
    assert (status, out) == (2, "")
    assert "- is standard input, which can be read only once: leave out the others" in " ".join(err.split())


@pytest.mark.usefixtures("environment")
def test_every_option_is_a_flag(tiny: TinyTriton) -> None:
    seen: list[Inputs] = []

    def record(inputs: Inputs) -> Answer:
        seen.append(inputs)
        return size_of_image(inputs)

    tiny.answer = record
    words = {int: ["7"], float: ["0.5"], str: ["words"], bool: []}
    values = {int: 7, float: 0.5, str: b"words", bool: True}
    flags = []
    for name, option in OPTIONS.items():
        flags += [f"--{name.replace('_', '-')}", *words[option.type.python]]
    assert blipstream("caption", "a.jpg", *flags)[0] == 0
    assert {name: tensor[0, 0] for name, tensor in seen[0].items()} == {"image": b"1"} | {
        name: values[option.type.python] for name, option in OPTIONS.items()
    }


@pytest.mark.parametrize("command", ["caption", "bulk"])
def test_every_argument_of_the_client_is_a_flag(command: str) -> None:
    flags = {parameter.name for parameter in subcommand(command).params}
    assert inspect.signature(Client).parameters.keys() <= flags


@pytest.mark.usefixtures("environment")
def test_a_wrong_url_is_one_sentence() -> None:
    status, out, err = blipstream("caption", "a.jpg", "--url", "localhost:8001")
    assert (status, out) == (1, "")
    assert err.startswith("Error: Expected an address such as grpc://localhost:8001")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("flags", [[], ["--json"], ["--stream"]], ids=str)
def test_without_a_server_all_images_have_one_sentence(scheme: str, closed_port: int, flags: list[str]) -> None:
    images = ["a.jpg", "b.png"] * 50
    status, out, err = blipstream("caption", *images, "--url", f"{scheme}://127.0.0.1:{closed_port}", *flags)
    assert (status, out) == (1, "")
    assert err.startswith("Error: No Triton server answers at ")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("environment")
def test_an_error_that_all_images_would_get_ends_it(tiny: TinyTriton) -> None:
    def gone(inputs: Inputs) -> Answer:
        if len(inputs["image"][0, 0]) == 2:
            raise Refusal(grpc.StatusCode.UNAUTHENTICATED, "no key")
        return size_of_image(inputs)

    tiny.answer = gone
    status, out, err = blipstream("caption", "a.jpg", *["b.png"] * 50)
    assert (status, out) == (1, "a.jpg: 1 bytes\n")
    assert err == "Error: no key (1 of 51 images are done)\n"


@pytest.mark.usefixtures("environment")
def test_names_that_are_no_images(tiny: TinyTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told what takes them."""
    Path("more photos").mkdir()
    tried = ["more photos", "*.jpg", "*.nix", "a.jpg"]
    status, out, err = blipstream("caption", *tried)
    assert (status, out) == (1, "a.jpg: 1 bytes\n")
    command = "--output captions.jsonl"
    assert err.splitlines() == [
        f"more photos: It is a folder, which is for bulk: blipstream bulk 'more photos' {command}",
        f"*.jpg: It is a pattern in quotes: take them off, or use blipstream bulk '*.jpg' {command}",
        "*.nix: No file is like this pattern: mend it",
    ]
    monkeypatch.delenv("BLIPSTREAM_URL")
    url = tiny.url("http")
    status, out, err = blipstream("caption", "--json", "more photos", "--url", url)
    assert (status, err) == (1, "")
    assert json.loads(out)["error"].endswith(f"blipstream bulk 'more photos' {command} --url {url}")


@pytest.mark.usefixtures("environment")
def test_info(tiny: TinyTriton, scheme: str) -> None:
    url = ["--url", tiny.url(scheme)]
    tiny.name = f"demo@{'0123456789abcdef' * 4}"
    assert "defaults    the built-in ones\nfixed       none" in blipstream("info", *url)[1]
    tiny.parameters = {
        "option_defaults": json.dumps({"max_tokens": 20, "prompt": "ein Bär"}),
        "fixed_options": json.dumps({"num_beams": 3}),
    }
    status, out, err = blipstream("info", *url)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "server      Triton 2.51.0",
        "checkpoint  demo@0123456789ab",
        "matching    unknown",
        "models      caption, caption_stream, explain, rerank, match, explain_match,",
        "            embed_image, embed_text",
        "runtimes    caption on tiny",
        "options     none",
        'defaults    max_tokens=20, prompt="ein Bär", num_beams=3',
        "fixed       num_beams",
    ]
    assert json.loads(blipstream("info", "--json", *url)[1]) == {
        "version": "2.51.0",
        "checkpoint": tiny.name,
        "runtimes": {"caption": "tiny"},
        "options": [],
        "defaults": {"max_tokens": 20, "prompt": "ein Bär", "num_beams": 3},
        "fixed": ["num_beams"],
        "models": [
            *("caption", "caption_stream", "explain", "rerank"),
            *("match", "explain_match", "embed_image", "embed_text"),
        ],
        "calibration": None,
        "matching": {"checkpoint": None, "dtype": None, "shares_encoder": False},
        "adapters": [],
    }
    tiny.parameters = {"option_defaults": "max_tokens=20"}
    status, out, err = blipstream("info", *url)
    assert (status, out) == (1, "")
    assert err.startswith("Error: The server's description of itself is not one that Triton gives")


@pytest.mark.usefixtures("environment")
def test_a_key_from_the_environment(tiny: TinyTriton, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request has it, unless the command line has another."""
    url = ["--url", tiny.url(scheme)]
    monkeypatch.setenv("BLIPSTREAM_API_KEY", "secret\n")
    assert blipstream("caption", "a.jpg", *url)[0] == 0
    assert blipstream("caption", "a.jpg", *url, "--header", "Authorization: Basic other")[0] == 0
    assert [headers["authorization"] for headers in tiny.headers] == ["Bearer secret", "Basic other"]


@pytest.mark.parametrize("command", OWN)
def test_help_shows_every_default(command: str) -> None:
    for parameter in subcommand(command).params:
        if isinstance(parameter, click.Option) and not (parameter.is_flag and not parameter.secondary_opts):
            _, text = parameter.get_help_record(click.Context(subcommand(command))) or ("", "")
            assert "[default: " in text or "; default: " in text or "[required]" in text, parameter.name


def on_a_terminal(command: list[str], columns: int = 80) -> tuple[int, str]:
    """Exit status and everything on the terminal."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(controller, "rb", buffering=0) as screen:
        with os.fdopen(terminal, "wb", buffering=0) as output:
            # os.environ lacks the COLUMNS that readline has set behind Python's back
            process = subprocess.Popen(command, stdin=output, stdout=output, stderr=output, env=os.environ)
        shown = b""
        with suppress(OSError):  # at the end of a terminal's output
            while piece := screen.read(1 << 16):
                shown += piece
    return process.wait(), shown.decode()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["caption", "a.jpg", "--header", " ".join(["word"] * 30)], "Error: Invalid value for '--header': expected "),
        (["word" * 10 + " " + "word" * 10], "Error: No such command '"),
        (["--" + "word" * 10 + " " + "word" * 10], "Error: No such option '"),
    ],
    ids=["value", "command", "option"],
)
def test_a_wrong_command_line_is_told_in_short_lines(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal. In a pipe, the error is one line."""
    status, out, err = blipstream(*arguments)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(told)
    monkeypatch.delenv("COLUMNS", raising=False)
    status, shown = on_a_terminal([*COMMAND, *arguments], 80)
    assert status == 2
    assert f"\n{told}" in shown.replace("\r", "")
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize(
    "arguments", [["caption", "a.jpg", "nowhere.jpg"], ["info"], ["info", "--url", "grpc:localhost"]], ids=str
)
def test_lines_fit_the_terminal(arguments: list[str], columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # it would count more than the terminal
    _, shown = on_a_terminal([*COMMAND, *arguments], columns)
    assert shown.count("\n") > 1
    assert max(map(len, shown.splitlines())) <= (80 if arguments == ["info"] else min(columns, 80))


@pytest.mark.usefixtures("environment")
def test_a_terminal_is_told_whom_the_command_waits_for(silent_port: int) -> None:
    url = f"http://127.0.0.1:{silent_port}"
    _, shown = on_a_terminal([*COMMAND, "caption", "a.jpg", "--url", url, "--timeout", "4"])
    waiting, *_ = shown.splitlines()
    assert waiting == f"Waiting for {url} for up to 4 s; Ctrl-C ends it."


@pytest.mark.usefixtures("environment")
def test_version_and_help() -> None:
    assert blipstream("--version") == (0, f"blipstream, version {__version__}\n", "")
    _, out, _ = blipstream("caption", "--help")
    assert all(option.help in " ".join(out.split()) for option in OPTIONS.values())


@pytest.mark.parametrize("command", [[], *([name] for name in OWN)], ids=str)
def test_short_help(command: list[str]) -> None:
    status, out, err = blipstream(*command, "-h")
    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: python -m blipstream_client {' '.join(command)}".rstrip())
    assert (status, out, err) == blipstream(*command, "--help")


@pytest.mark.usefixtures("environment")
def test_a_closed_pipe_ends_it_quietly() -> None:
    command = [*COMMAND, "caption", *["a.jpg"] * 100]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.usefixtures("environment")
def test_ctrl_c_ends_it_quietly(scheme: str, tiny: TinyTriton) -> None:
    asked, finished = threading.Event(), threading.Event()

    def never(inputs: Inputs) -> Answer:
        asked.set()
        finished.wait(30)
        return size_of_image(inputs)

    tiny.answer = never
    command = [*COMMAND, "caption", "a.jpg", "b.png", "--url", tiny.url(scheme)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert asked.wait(20)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finished.set()
    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.usefixtures("environment")
def test_ctrl_c_while_standard_input_is_open(tiny: TinyTriton) -> None:
    asked = threading.Event()

    def record(inputs: Inputs) -> Answer:
        asked.set()
        return size_of_image(inputs)

    tiny.answer = record
    command, pipe = [*COMMAND, "caption", "a.jpg", "-"], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert asked.wait(20)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr
        assert process.stderr.read() == b""


INTERRUPTED_AT_AN_IMPORT = """
import os, runpy, signal, sys

class Interrupter:
    module = sys.argv.pop(1)

    def find_spec(name, path=None, target=None):
        if name == Interrupter.module:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupter)
runpy.run_module("blipstream_client", run_name="__main__")
"""


@pytest.mark.parametrize("module", ["_cli", "_client", "_fetch", "_images", "_tls", "bulk.job", "bulk.tar"])
def test_ctrl_c_while_it_is_imported_ends_it_quietly(module: str) -> None:
    """The signal ends the process, for which shells say 130."""
    command = [sys.executable, "-c", INTERRUPTED_AT_AN_IMPORT, f"blipstream_client.{module}", "info"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


ANOTHER_THREAD_GETS_IT = """
import os, signal, threading
from pathlib import Path
from blipstream_client._cli import main

def interrupt():
    while "pipe" not in Path(f"/proc/self/task/{os.getpid()}/wchan").read_text():
        pass
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
main()
"""


@pytest.mark.usefixtures("environment")
def test_ctrl_c_that_does_not_interrupt_the_reading_works() -> None:
    """A signal that comes just before the reading begins, or, as here, that the kernel gives to another thread."""
    command, pipe = [sys.executable, "-c", ANOTHER_THREAD_GETS_IT, "caption", "-"], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            assert process.wait(20) == 130
        finally:
            process.kill()
        assert process.stderr
        assert process.stderr.read() == b""


PATIENT = """
from blipstream_client import _base
from blipstream_client._cli import main
_base.MAX_SECONDS = 600
main()
"""


@pytest.mark.usefixtures("environment")
def test_ctrl_c_does_not_wait_for_a_url() -> None:
    with socket.create_server(("127.0.0.1", 0)) as web:
        web.settimeout(20)
        arguments = ["caption", f"http://127.0.0.1:{web.getsockname()[1]}/a.jpg", "--allow-private-urls"]
        command = [sys.executable, "-c", PATIENT, *arguments, "--timeout", "600"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            connection, _ = web.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                assert process.wait(20) == 130
            assert process.communicate() == (b"", b"")


@pytest.mark.usefixtures("environment")
def test_word_by_word(scheme: str, tiny: TinyTriton) -> None:
    url = tiny.url(scheme)
    status, out, err = blipstream("caption", "--stream", "a.jpg", "nowhere.jpg", "b.png", "--url", url)
    assert (status, out) == (1, "a.jpg: 1 bytes\nb.png: 2 bytes\n")
    assert err == "nowhere.jpg: Cannot read the image file 'nowhere.jpg': No such file or directory\n"
    status, out, err = blipstream("caption", "--stream", "--json", "a.jpg", "nowhere.jpg", "--url", url)
    assert (status, err) == (1, "")
    first, last, wrong = map(json.loads, out.splitlines())
    assert first == {"file": "a.jpg", "text": "1", "text_score": -0.75}
    assert last == {
        "file": "a.jpg",
        "text": " bytes",
        "text_score": -0.75,
        "caption": "1 bytes",
        "score": -1.5,
        "num_tokens": 2,
        "finish_reason": "stop",
    }
    assert wrong.keys() == {"file", "error"}


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("end", ["Ctrl-C", "error"])
def test_words_come_at_once(scheme: str, tiny: TinyTriton, end: str) -> None:
    """The line is ended in any case."""
    shown = threading.Event()

    def pause(inputs: Inputs) -> Iterator[Event]:
        yield next(word_by_word(inputs))
        shown.wait(30)
        raise Refusal(grpc.StatusCode.INTERNAL, "no memory")

    tiny.grow = pause
    command = [*COMMAND, "caption", "--stream", "a.jpg", "--url", tiny.url(scheme)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.read(8) == b"a.jpg: 1"
        if end == "Ctrl-C":
            process.send_signal(signal.SIGINT)
        else:
            shown.set()
        out, err = process.communicate(timeout=20)
    shown.set()
    expected = (130, b"\n", b"") if end == "Ctrl-C" else (1, b"\n", b"a.jpg: no memory\n")
    assert (process.returncode, out, err) == expected


@pytest.mark.usefixtures("environment")
def test_connection_flags(tiny: TinyTriton, closed_port: int) -> None:
    url = f"grpc://127.0.0.1:{closed_port},{tiny.url('grpc').removeprefix('grpc://')}"
    flags = ["--url", url, "--timeout", "20", "--retries", "2", "--header", "Authorization: Bearer a:b"]
    assert blipstream("caption", "a.jpg", "b.png", *flags) == (0, "a.jpg: 1 bytes\nb.png: 2 bytes\n", "")
    assert {headers["authorization"] for headers in tiny.headers} == {"Bearer a:b"}


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--header", "Authorization"], 2, "expected NAME:VALUE, got 'Authorization'"),
        *(
            ([flag, value], 1, f"{flag[2:]} must be a number of seconds above 0 and at most 1e+06, got")
            for flag in ("--timeout", "--keepalive")
            for value in ("0", "-1", "nan", "inf", "1e12", "1e308")
        ),
        (
            ["--temperature", "nan"],
            1,
            "temperature must be between 0.01 and 100",
        ),
        (
            ["--length-penalty", "1e308"],
            1,
            "length_penalty must be between -10 and 10",
        ),
        (["--seed", "9" * 30], 1, "seed must be between"),
        (["--retries", "-1"], 1, "retries must be a whole number of at least 0"),
        (["--max-side", "0"], 1, "max_side must be a whole number of at least 1"),
        (["--ca-file", "a.jpg"], 1, "Cannot trust the certificates in a.jpg"),
    ],
)
def test_wrong_flags_are_one_sentence(flags: list[str], status: int, words: str) -> None:
    found, out, err = blipstream("caption", "a.jpg", *flags)
    assert (found, out) == (status, "")
    assert words in err
    assert "Traceback" not in err


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    "flags",
    [
        *(["--timeout", value] for value in ("1e-300", "0.0005", "1e6")),
        *(["--keepalive", value] for value in ("1e-300", "1e6")),
        *([flag, "9" * 30] for flag in ("--retries", "--max-side")),
    ],
    ids=" ".join,
)
def test_extreme_numbers_are_numbers(scheme: str, tiny: TinyTriton, flags: list[str]) -> None:
    status, out, err = blipstream("caption", "a.jpg", "--url", tiny.url(scheme), *flags)
    if flags[0] == "--timeout" and float(flags[1]) < 1:
        assert (out + err).startswith(("a.jpg: No answer from ", "a.jpg: 1 bytes"))  # over HTTP it may be in time
        assert (out + err).count("\n") == 1
    else:
        assert (status, out, err) == (0, "a.jpg: 1 bytes\n", "")


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    "arguments", [["caption", "a.jpg"], ["caption", "--stream", "a.jpg"], ["info"], ["--help"], ["--version"]], ids=str
)
def test_an_output_that_is_full(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Error: Cannot write the output: No space left on device\n")


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("redirection", "problem"), [("0> c", "Bad file descriptor"), ("<&-", "it is closed")], ids=["output", "closed"]
)
def test_standard_input_that_cannot_be_read(redirection: str, problem: str) -> None:
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *COMMAND, "caption", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: Cannot read standard input: {problem}\n"


@pytest.mark.usefixtures("environment")
def test_standard_input_without_an_end() -> None:
    with Path("/dev/zero").open("rb") as zeros:
        done = subprocess.run([*COMMAND, "caption", "-", "b.png"], stdin=zeros, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"b.png: 2 bytes\n")
    assert done.stderr.startswith(b"-: Cannot send the image: it is larger than 32 MiB")


@pytest.mark.usefixtures("environment")
def test_errors_do_not_repeat_what_came() -> None:
    status, out, err = blipstream("caption", "data:image/jpeg;base64," + "A" * 18_000)
    assert (status, out) == (1, "")
    assert "File name too long" in err
    assert len(err) < 250


@pytest.mark.usefixtures("environment")
def test_images_by_url_must_be_public() -> None:
    status, out, err = blipstream("caption", "http://127.0.0.1:1/a.jpg", "--retries", "0")
    assert (status, out) == (1, "")
    assert "is not a public address; allow_private_urls=True permits it, --allow-private-urls on the" in err
    assert "refused" in blipstream("caption", "http://127.0.0.1:1/a.jpg", "--allow-private-urls")[2]
