# SPDX-License-Identifier: Apache-2.0
"""`blipstream proxy` as a user calls it, with the real nginx in front of a real server."""

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner

from blipstream.errors import ServerError
from blipstream.proxy import keys, nginx
from blipstream.proxy.certificate import names_of
from blipstream.proxy.command import _change, main
from blipstream.server.triton import TritonServer
from tests.conftest import SAMPLES
from tests.support.programs import TOOLS, free_port, listens, program
from tests.support.waiting import wait_until

BIN = Path(sys.executable).parent
SAMPLE = "a-book.jpg"
NOBODY = 65534
PATH = os.pathsep.join([str(BIN), f"{TOOLS}/sbin", os.environ["PATH"]])


def run(here: Path, command: str) -> subprocess.CompletedProcess[str]:
    """A line of shell, where the programs of the environment are."""
    environment = os.environ | {"PATH": PATH}
    return subprocess.run(
        ["sh", "-c", command], cwd=here, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def well(here: Path, command: str) -> str:
    """What a command prints that succeeds. No line is wider than a terminal."""
    done = run(here, command)
    assert done.returncode == 0, done.stderr
    assert all(len(line) <= 80 for line in (done.stdout + done.stderr).splitlines())
    return done.stdout


def fault(here: Path, command: str) -> str:
    """The one sentence with which a command fails."""
    done = run(here, command)
    assert done.returncode != 0
    assert not done.stdout
    return done.stderr.splitlines()[-1]


@contextmanager
def started(here: Path, command: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The proxy while it runs in the foreground."""
    environment = os.environ | {"PATH": PATH}
    with (here / "log").open("w") as log:
        process = subprocess.Popen(["sh", "-c", f"exec {command}"], cwd=here, env=environment, stdout=log, stderr=log)
    name = Path(f"/proc/{process.pid}/comm")  # nginx's at last; what it checks before listens for a moment, too
    try:
        wait_until(
            lambda: process.poll() is not None or (name.read_text() == "nginx\n" and listens(port)),
            otherwise=(here / "log").read_text,
        )
        assert process.poll() is None, (here / "log").read_text()
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder to work in, whose name needs quotes."""
    program("nginx")
    here = tmp_path / "it's here"
    here.mkdir()
    (here / "photo.jpg").write_bytes((SAMPLES / SAMPLE).read_bytes())
    return here


def initialise(here: Path, server: TritonServer, port: int, options: str = "") -> list[list[str]]:
    """The commands that `init` prints, paragraph by paragraph."""
    ports = f"--https-port {port} --http-port {server.http_port} --grpc-port {server.grpc_port}"
    printed = well(here, f"blipstream proxy init 'my proxy' {ports} {options}")
    paragraphs: list[list[str]] = []
    for line in printed.splitlines():
        if not line.startswith("  "):
            paragraphs.append([])
        else:
            paragraphs[-1].append(line)
    return [lines for lines in paragraphs if lines]


def test_what_is_printed_works(here: Path, server: TritonServer, samples: dict[str, str]) -> None:
    """Start, ask, give a key and take one back: the printed lines as they stand."""
    port = free_port()
    (start,), ask, (add, revoke) = initialise(here, server, port, "--domain captions.example")
    caption = textwrap.dedent("\n".join(ask)).replace("IMAGE", "photo.jpg")
    as_bob = caption.replace(" me)", " bob)")
    assert as_bob != caption
    with started(here, start.strip(), port):
        for url in ("grpcs", "https"):
            assert samples[SAMPLE] in well(here, caption.replace("grpcs", url))
        assert "no key for 'bob'" in run(here, as_bob).stderr
        well(here, add.replace("NAME", "bob"))
        wait_until(lambda: samples[SAMPLE] in run(here, as_bob).stdout)
        key = well(here, "blipstream proxy key 'my proxy' bob").strip()
        well(here, revoke.replace("NAME", "bob"))
        refused = f"BLIPSTREAM_API_KEY={key}; export BLIPSTREAM_API_KEY\n" + caption.partition("\n")[2]
        wait_until(lambda: "the key is missing or wrong" in run(here, refused).stdout + run(here, refused).stderr)
        assert samples[SAMPLE] in well(here, caption)
    log = (here / "log").read_text()
    assert '"client":"bob"' in log
    assert key not in log


def test_its_files(here: Path, server: TritonServer) -> None:
    """Nobody else may read what is secret, and git takes none of it."""
    initialise(here, server, free_port())
    modes = {path.name: path.stat().st_mode & 0o777 for path in (here / "my proxy").iterdir()}
    assert modes["keys"] == modes["key.pem"] == 0o600
    assert (here / "my proxy").stat().st_mode & 0o777 == 0o700
    well(here, "git init -q . && git add -A")
    assert "my proxy" not in well(here, "git ls-files")


def test_an_image_that_waits_in_a_file(here: Path, server: TritonServer) -> None:
    """A request above 1 MiB goes through a file, in the folder; and the folder may be moved."""
    port = free_port()
    initialise(here, server, port)
    (here / "my proxy").rename(here / "moved")
    header = '{"inputs":[{"name":"image","shape":[1,1],"datatype":"BYTES","parameters":{"binary_data_size":3000004}}]}'
    body = header.encode() + (3_000_000).to_bytes(4, "little") + b"BM" + bytes(2_999_998)
    (here / "body").write_bytes(body)
    with started(here, "blipstream proxy start moved", port):
        key = well(here, "blipstream proxy key moved me").strip()
        answer = well(
            here,
            f"curl -s --cacert moved/certificate.pem -H 'x-api-key: {key}' -H 'Content-Type: application/octet-stream'"
            f" -H 'Inference-Header-Content-Length: {len(header)}' --data-binary @body"
            f" https://localhost:{port}/v2/models/caption/infer | cut -c 1-60",
        )
    assert "[invalid_" in answer, (here / "log").read_text()
    assert [path.name for path in (here / "moved" / "tmp").rglob("*") if path.is_file()] == []


def test_domains_and_addresses(here: Path, server: TritonServer) -> None:
    port = free_port()
    options = "--domain captions.example --domain 192.0.2.7 --host ::1 --triton localhost --client alice"
    _, ask, _ = initialise(here, server, port, options)
    assert f"grpcs://localhost:{port}" in "".join(ask)
    opened = well(here, f"blipstream proxy init open --https-port {port} --domain captions.example --host 0.0.0.0")
    assert f"grpcs://captions.example:{port}" in opened
    assert "'my proxy' alice" in ask[0]
    config = (here / "my proxy" / "nginx.conf").read_text()
    assert f"listen [::1]:{port} ssl" in config
    assert f"server localhost:{server.grpc_port};" in config
    nginx = program("nginx")
    done = subprocess.run([nginx, "-t", "-p", here / "my proxy", "-c", "nginx.conf", "-e", "stderr"], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ("--host 10.0.0.5", "10.0.0.5"),
        ("--host fd00::5", "[fd00::5]"),
        ("--host captions.example", "captions.example"),
        ("--host 10.0.0.5 --domain captions.example", "captions.example"),
        ("--host 0.0.0.0 --domain captions.example", "captions.example"),
        ("--host 0.0.0.0 --domain '*.ex.com' --domain ex.com", "ex.com"),
        ("--host 0.0.0.0", "localhost"),
        ("--host :: ", "localhost"),
        ("", "localhost"),
    ],
)
def test_the_name_to_ask(here: Path, options: str, name: str) -> None:
    """It leads to where nginx listens, and the certificate has it."""
    printed = well(here, f"blipstream proxy init proxy {options}")
    assert f"--url grpcs://{name}:8443 " in printed
    assert name.strip("[]") in [
        str(ip_address(each)) if ":" in each else each for each in names_of(here / "proxy" / "certificate.pem")
    ]
    advice = [line.strip() for line in printed.splitlines() if " renew " in line]
    assert advice == (
        ["blipstream proxy renew proxy --domain NAME"] if options in ("--host 0.0.0.0", "--host :: ") else []
    )


def test_several_clients(here: Path) -> None:
    assert "a key for alice, bob and a" in well(here, "blipstream proxy init proxy --client alice --client bob")
    found = [well(here, f"blipstream proxy key proxy {name}") for name in ("alice", "bob")]
    assert [len(key.strip()) for key in found] == [64, 64]


def test_a_certificate_for_any_name(here: Path) -> None:
    """Nobody can ask a `*`."""
    printed = well(here, "blipstream proxy init proxy --host 0.0.0.0 --domain '*.ex.com'")
    assert "--url grpcs://NAME.ex.com:8443 " in printed
    assert "a domain is a name" in fault(here, "blipstream proxy renew proxy --domain 999.9.9.9")


def test_a_folder_that_is_taken(here: Path, server: TritonServer) -> None:
    """Nothing in it is touched. One that fails on the way leaves nothing."""
    assert fault(here, "blipstream proxy init .").startswith("Error: . exists: choose another folder")
    assert "a domain is a name" in fault(here, "blipstream proxy init new --domain 'no name'")
    assert [path.name for path in here.iterdir()] == ["photo.jpg"]
    assert "name a folder that `blipstream proxy init DIR` made" in fault(here, "blipstream proxy add . bob")
    initialise(here, server, free_port())
    before = (here / "my proxy" / "keys").read_text()
    assert "exists" in fault(here, "blipstream proxy init 'my proxy'")
    assert "me has a key" in fault(here, "blipstream proxy add 'my proxy' me")
    assert (here / "my proxy" / "keys").read_text() == before


def test_what_keeps_it_from_starting(here: Path, server: TritonServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        initialise(here, server, port)
        start = "blipstream proxy start 'my proxy'"
        assert f"port {port} cannot be used (Address already in use): mend the line" in fault(here, start)
    places = f"PATH={BIN}:/usr/bin:/bin"
    if not run(here, f"{places}; command -v nginx || ls /usr/sbin/nginx /usr/local/sbin/nginx").stdout:
        assert "nginx is not installed: apt-get install nginx" in fault(here, f"{places}; {start}")
    with (here / "my proxy" / "keys").open("a") as file:
        file.write("short bob;\n")
    assert "line 2 is not a key and its name: write" in fault(here, start)
    assert "line 2 is not a key and its name: write" in fault(here, "blipstream proxy add 'my proxy' carol")
    (here / "my proxy" / "nginx.conf").write_text("")
    (here / "my proxy" / "keys").write_text("# nobody\n")
    assert "has no key, so nobody could ask: give one by `blipstream proxy add" in fault(here, start)
    well(here, "blipstream proxy add 'my proxy' me")
    assert "has no line `listen HOST:PORT ssl`: write one" in fault(here, start)


@pytest.mark.parametrize("host", ["a;b", "", "a b", "http://a", "a:8000", "fe80::1%a;b", "[::1]", "999.9.9.9", "1.2.3"])
@pytest.mark.parametrize("option", ["--triton", "--host"])
def test_hosts_that_cannot_be(here: Path, option: str, host: str) -> None:
    found = fault(here, f"blipstream proxy init new {option} '{host}'")
    assert f"a host is a name such as triton.example, or an IP address, which '{host}' is not" in found
    assert not (here / "new").exists()


def test_what_nginx_would_refuse(here: Path) -> None:
    """One sentence says why, before anything says that nginx listens."""
    well(here, f"blipstream proxy init proxy --https-port {free_port()}")
    start, folder = "blipstream proxy start proxy", here / "proxy"
    key, certificate = (folder / "key.pem").read_text(), (folder / "certificate.pem").read_text()
    expired = trustme.CA().issue_cert("localhost", not_after=datetime(2020, 1, 1, tzinfo=UTC))
    expired.private_key_pem.write_to_path(folder / "key.pem")
    assert "key.pem does not belong to the certificate: put both of one pair into proxy" in fault(here, start)
    expired.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    told = "the certificate proxy/certificate.pem has expired: `blipstream proxy renew` makes a new trial one; or put"
    assert told in fault(here, start)
    assert "proxy/certificate.pem is not the trial certificate: get a" in fault(here, "blipstream proxy renew proxy")
    (folder / "certificate.pem").write_text(certificate)
    (folder / "key.pem").unlink()
    assert "proxy/key.pem is missing: put it there" in fault(here, start)
    (folder / "key.pem").write_text(key)
    with (folder / "nginx.conf").open("a") as file:
        file.write("nonsense;\n")
    assert 'nginx cannot start: unknown directive "nonsense" in' in fault(here, start)


def status(here: Path, port: int, key: str) -> str:
    """What a request with a key gets over a new connection."""
    ask = f"curl -s -o /dev/null -w '%{{http_code}}' --cacert proxy/certificate.pem -H 'x-api-key: {key}'"
    return well(here, f"{ask} https://localhost:{port}/v2")


def test_a_revoke_that_nginx_would_not_read(here: Path) -> None:
    """It fails and changes nothing, and works once the fault is mended, with the connections' next request."""
    port = free_port()
    well(here, f"blipstream proxy init proxy --https-port {port}")
    well(here, "blipstream proxy add proxy carol 2>&1")
    key = well(here, "blipstream proxy key proxy carol").strip()
    with started(here, "blipstream proxy start proxy", port):
        wait_until(lambda: (here / "proxy" / "tmp" / "nginx.pid").exists())
        before, config = (here / "proxy" / "keys").read_text(), (here / "proxy" / "nginx.conf").read_text()
        (here / "proxy" / "nginx.conf").write_text(f"{config}bogus on;\n")
        for command in ("revoke proxy carol", "add proxy zoe"):
            told = fault(here, f"blipstream proxy {command}")
            assert told.startswith("Error: proxy/keys stays as it was, and its keys go on working: nginx cannot start:")
            assert 'unknown directive "bogus"' in told
            assert (here / "proxy" / "keys").read_text() == before
        assert status(here, port, key) != "401"
        (here / "proxy" / "nginx.conf").write_text(config)
        assert well(here, "blipstream proxy revoke proxy carol") == "carol has no key in proxy any more.\n"
        assert status(here, port, key) == "401"


def test_a_revoke_that_nginx_does_not_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its check passes, and only a reload shows the fault."""
    port = free_port()
    well(here, f"blipstream proxy init proxy --https-port {port}")
    monkeypatch.setattr(nginx, "RELOAD_SECONDS", 1.0)
    with (
        started(here, "blipstream proxy start proxy", port) as process,
        socket.create_server(("127.0.0.1", 0)) as taken,
    ):
        wait_until(lambda: (here / "proxy" / "tmp" / "nginx.pid").read_text() == f"{process.pid}\n")
        config = here / "proxy" / "nginx.conf"
        config.write_text(config.read_text().replace(f":{port} ssl", f":{taken.getsockname()[1]} ssl"))
        done = CliRunner().invoke(main, ["revoke", str(here / "proxy"), "me"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "keys is changed, but nginx goes on with what it had, and its log says why" in done.stderr
    assert f"`kill {process.pid}`" in done.stderr


def test_what_is_under_way_when_a_key_is_revoked(here: Path) -> None:
    """It goes on for a while, not for good."""
    port = free_port()
    well(here, f"blipstream proxy init proxy --https-port {port}")
    folder = here / "proxy"
    config = (folder / "nginx.conf").read_text()
    (folder / "nginx.conf").write_text(config.replace("worker_shutdown_timeout 60s;", "worker_shutdown_timeout 1s;"))
    trust = ssl.create_default_context(cafile=folder / "certificate.pem")
    key = well(here, "blipstream proxy key proxy me").strip()
    with started(here, "blipstream proxy start proxy", port) as process:
        wait_until(lambda: (folder / "tmp" / "nginx.pid").read_text() == f"{process.pid}\n")
        with trust.wrap_socket(
            socket.create_connection(("127.0.0.1", port)), server_hostname="localhost"
        ) as connection:
            head = f"POST /v2/models/caption/infer HTTP/1.1\r\nHost: localhost\r\nx-api-key: {key}\r\n"
            connection.sendall(f"{head}Content-Length: 10000\r\n\r\n".encode())
            well(here, "blipstream proxy revoke proxy me")

            def is_cut() -> bool:
                try:
                    connection.sendall(b" ")  # else nginx takes the sender for dead
                except OSError:
                    return True
                return False

            wait_until(is_cut)


def test_a_key_of_another_kind(here: Path) -> None:
    """nginx would start with it, and every handshake would fail."""
    port = free_port()
    well(here, f"blipstream proxy init proxy --https-port {port}")
    start, told = "blipstream proxy start proxy", "key.pem does not belong to the certificate: put both of one pair"
    with started(here, start, port) as process:
        wait_until(lambda: (here / "proxy" / "tmp" / "nginx.pid").read_text() == f"{process.pid}\n")
        well(here, "openssl genrsa -out proxy/key.pem 2048")
        assert told in fault(here, "blipstream proxy add proxy bob")
        ssl.get_server_certificate(("127.0.0.1", port))
    assert told in fault(here, start)
    assert run(here, "blipstream proxy renew proxy").returncode == 0


def test_keys_that_others_may_read(here: Path) -> None:
    port = free_port()
    well(here, f"blipstream proxy init 'my proxy' --https-port {port}")
    (here / "my proxy" / "keys").chmod(0o644)
    with started(here, "blipstream proxy start 'my proxy'", port):
        log = (here / "log").read_text()
    assert "Others may read my proxy/keys: `chmod 600 'my proxy/keys'` ends that." in log
    assert "Others may read my proxy/key.pem" not in log


def test_a_master_that_was_killed(here: Path) -> None:
    """Its workers hold the port and go on with the old keys, and nothing says otherwise."""
    port = free_port()
    start = "blipstream proxy start 'my proxy'"
    well(here, f"blipstream proxy init 'my proxy' --https-port {port}")
    with started(here, start, port) as process:
        wait_until(lambda: (here / "my proxy" / "tmp" / "nginx.pid").read_text() == f"{process.pid}\n")
        ssl.get_server_certificate(("127.0.0.1", port))  # so the workers work
        assert f"nginx runs from my proxy already: to start it anew, end it by `kill {process.pid}`" in fault(
            here, start
        )
        process.kill()
        process.wait(timeout=20)
        assert "my proxy/keys is changed, but nginx's master was" in fault(here, "blipstream proxy add 'my proxy' bob")
        assert "my proxy/keys is changed, but nginx's master was" in fault(
            here, "blipstream proxy revoke 'my proxy' me"
        )
        assert listens(port)
        (kill,) = re.findall(r"master was killed, and its workers go on .*`(kill [\d ]+)`", fault(here, start))
        well(here, kill)
        wait_until(lambda: not listens(port))
    assert "counts from its next start" in run(here, "blipstream proxy add 'my proxy' me").stderr


def test_a_new_certificate(here: Path, server: TritonServer) -> None:
    """New connections see it, and a request that is under way is answered all the same."""
    port = free_port()
    initialise(here, server, port, "--domain captions.example --host 0.0.0.0")
    folder = here / "my proxy"
    old = ssl.create_default_context(cafile=folder / "certificate.pem")
    key = well(here, "blipstream proxy key 'my proxy' me").strip()
    with started(here, "blipstream proxy start 'my proxy'", port):
        shown = ssl.get_server_certificate(("127.0.0.1", port))
        with old.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost") as connection:
            head = f"POST /v2/models/caption/generate HTTP/1.1\r\nHost: localhost\r\nx-api-key: {key}\r\n"
            connection.sendall(f"{head}Content-Length: 10000\r\n\r\n".encode())
            sent = 0

            def shows_another() -> bool:
                nonlocal sent
                connection.sendall(b" ")  # else nginx takes the sender for dead
                sent += 1
                return ssl.get_server_certificate(("127.0.0.1", port)) != shown

            done = CliRunner().invoke(main, ["renew", str(folder)])
            assert (done.exit_code, done.stderr) == (0, "")
            assert "certificate.pem is new, and valid for 365 days" in done.stdout
            wait_until(shows_another)
            connection.sendall(b" " * (10_000 - sent))
            assert connection.recv(9) == b"HTTP/1.1 "
        caption = "blipstream caption photo.jpg --ca-file 'my proxy/certificate.pem' --url grpcs://localhost"
        assert "a book" in well(here, f"BLIPSTREAM_API_KEY={key} {caption}:{port}")
    assert "captions.example" in names_of(folder / "certificate.pem")
    assert [(folder / name).stat().st_mode & 0o777 for name in ("certificate.pem", "key.pem")] == [0o644, 0o600]
    assert not [*folder.glob("*.new")]
    well(here, "blipstream proxy renew 'my proxy' --domain other.example 2>&1")
    assert "captions.example" not in names_of(folder / "certificate.pem")
    assert "a domain is a name" in fault(here, "blipstream proxy renew 'my proxy' --domain 'a b'")
    (folder / "certificate.pem").unlink()
    assert "certificate.pem is missing: put it back" in fault(here, "blipstream proxy renew 'my proxy'")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start nginx and then be somebody else")
def test_an_nginx_of_root(here: Path) -> None:
    """The owner of the folder may not signal it."""
    port = free_port()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "proxy")
        assert run(here, f"blipstream proxy init {folder} --https-port {port}").returncode == 0
        for path in (Path(place), folder, *folder.iterdir()):
            os.chown(path, NOBODY, NOBODY)
        with started(here, f"blipstream proxy start {folder}", port) as process:
            os.setresuid(NOBODY, NOBODY, 0)
            try:
                with pytest.raises(ServerError) as caught:
                    nginx.reload(folder)
            finally:
                os.setresuid(0, 0, 0)
            assert str(caught.value) == (
                "nginx runs as another user, so have root tell it to read the files anew: "
                f"`sudo kill -HUP {process.pid}`"
            )
            assert nginx.reload(folder)


def test_a_taken_address(here: Path) -> None:
    """Nobody can tell whose process listens there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        well(here, f"blipstream proxy init proxy --https-port {port}")
        well(here, "blipstream proxy add proxy bob 2>&1")
        done = run(here, "blipstream proxy revoke proxy bob")
    said = done.stderr
    assert (done.returncode, done.stdout) == (1, "")
    assert "until then the old one may go on working" in said
    assert f"something listens on 127.0.0.1:{port}" in said
    assert "goes on with what it had" in said


def test_lost_keys(here: Path) -> None:
    """The advice works."""
    well(here, f"blipstream proxy init 'my proxy' --https-port {free_port()}")
    (here / "my proxy" / "keys").unlink()
    for verb in ("start 'my proxy'", "key 'my proxy' me", "revoke 'my proxy' me"):
        (advice,) = re.findall("has lost its file of keys: `(.*)` begins", fault(here, f"blipstream proxy {verb}"))
    well(here, advice)
    assert len(well(here, "blipstream proxy key 'my proxy' me").strip()) == 64


def test_an_old_pid(here: Path, server: TritonServer) -> None:
    """nginx was killed, and its number is another process's."""
    initialise(here, server, free_port())
    (here / "my proxy" / "tmp" / "nginx.pid").write_text(f"{os.getpid()}\n")
    done = run(here, "blipstream proxy add 'my proxy' bob")
    assert done.returncode == 0
    assert "nginx does not run from this folder now" in done.stderr


def test_keys_are_changed_one_at_a_time(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    well(here, "blipstream proxy init mine --client old")
    write = keys.write

    def write_late(file: Path, text: str) -> None:
        time.sleep(0.5)  # in which another one could read the file
        write(file, text)

    monkeypatch.setattr(keys, "write", write_late)
    with ThreadPoolExecutor(2) as executor:
        arguments = ["revoke", "add"], ["old", "new"]
        list(executor.map(lambda verb, name: _change(here / "mine", getattr(keys, verb), name), *arguments))
    assert list(keys.clients(here / "mine/keys")) == ["new"]
