# SPDX-License-Identifier: Apache-2.0
"""nginx: its configuration, filled in for a folder, and the program."""

import contextlib
import grp
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from blipstream.errors import ServerError
from blipstream.files import NGINX

PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])  # PATH may lack sbin
LISTEN = re.compile(r"^\s*listen (?P<address>\[?(?P<host>[^;\s]*?)\]?:(?P<port>\d+)) ssl\b", re.MULTILINE)
CERTIFICATE = re.compile(r"^\s*ssl_certificate\s+([^;\s$\"']+);", re.MULTILINE)
KEY = re.compile(r"^\s*ssl_certificate_key\s+([^;\s$\"']+);", re.MULTILINE)
NO_PAIR = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}  # OpenSSL's words
RELOAD_SECONDS = 30.0  # for new workers to be there, also on a busy machine


class ReloadRefused(Exception):
    """nginx would not read its files anew, so it was not told to."""


def configuration(listen: str, http: str, grpc: str) -> str:
    """deploy/nginx/nginx.conf for a folder with `keys`, `certificate.pem`, `key.pem` and the folder `tmp`.

    It listens on `listen` and asks Triton at `http` and `grpc`, each HOST:PORT. It names files as seen from the folder,
    which is to be nginx's prefix.
    """
    text = (NGINX / "nginx.conf").read_text(encoding="utf-8")
    for ours, here in {
        "error_log /dev/stderr": "error_log stderr",  # see `become`
        "listen 8443": f"listen {listen}",
        "triton:8000": http,
        "triton:8001": grpc,
        "/tmp": "tmp",  # noqa: S108
        "/run/secrets/api_keys": "keys",
        "/run/secrets/tls_certificate": "certificate.pem",
        "/run/secrets/tls_key": "key.pem",
    }.items():
        assert ours in text
        text = text.replace(ours, here)
    return text


def _listen(folder: Path) -> re.Match[str]:
    file = folder / "nginx.conf"
    found = LISTEN.search(file.read_text(encoding="utf-8"))
    if not found:
        raise ServerError(f"{file} has no line `listen HOST:PORT ssl`: write one")
    return found


def taken_address(folder: Path) -> str | None:
    """Where a folder's configuration listens, if something listens there already."""
    with contextlib.suppress(ServerError, OSError):
        found = _listen(folder)
        socket.create_connection((found["host"], int(found["port"])), timeout=5).close()
        return found["address"]
    return None


def free_address(folder: Path) -> str:
    """Where a folder's configuration listens. Raises ServerError if it does not say so, or if nginx could not."""
    file = folder / "nginx.conf"
    found = _listen(folder)
    listen = f"the line `listen` in {file}"
    try:
        family = socket.AF_INET6 if ":" in found["host"] else socket.AF_INET
        socket.create_server((found["host"], int(found["port"])), family=family).close()
    except socket.gaierror as error:
        raise ServerError(f"{found['host']} is no address of this machine: mend {listen}") from error
    except OSError as error:
        raise ServerError(
            f"port {found['port']} cannot be used ({os.strerror(error.errno or 0)}): mend {listen}"
        ) from error
    return found["address"]


def command(folder: Path) -> list[str]:
    """The command line that runs nginx in the foreground. Raises ServerError if there is no nginx."""
    program = shutil.which("nginx", path=PLACES)
    if program is None:
        raise ServerError("nginx is not installed: apt-get install nginx")
    directives = ["daemon off"]
    if os.geteuid() == 0:
        owner = folder.stat()  # nginx's own choice, nobody, could not enter the folder
        directives.append(f"user {pwd.getpwuid(owner.st_uid).pw_name} {grp.getgrgid(owner.st_gid).gr_name}")
    return [program, "-p", str(folder.resolve()), "-c", "nginx.conf", "-g", "; ".join([*directives, ""]).strip()]


def check(command: list[str], folder: Path) -> None:
    """Raises ServerError if nginx could not serve by `command`."""
    done = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerError(_reason(done.stderr, folder))
    text = (folder / "nginx.conf").read_text(encoding="utf-8")
    for certificate, key in zip(CERTIFICATE.findall(text), KEY.findall(text), strict=False):
        if not _is_pair(folder / certificate, folder / key):
            raise ServerError(_no_pair(folder / key, folder))


def check_dates(folder: Path) -> None:
    """Raises ServerError if a certificate has expired."""
    openssl = shutil.which("openssl")
    for name in re.findall(CERTIFICATE, (folder / "nginx.conf").read_text(encoding="utf-8")) if openssl else ():
        asked = [str(openssl), "x509", "-noout", "-checkend", "0", "-in", folder / name]
        if subprocess.run(asked, capture_output=True, check=False).returncode:
            raise ServerError(
                f"the certificate {folder / name} has expired: `blipstream proxy renew` makes a new trial one; "
                "or put another and its key there"
            )


def _is_pair(certificate: Path, key: Path) -> bool:
    """Whether a key belongs to a certificate. nginx does not notice where one is RSA and the other EC."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        return error.reason not in NO_PAIR
    return True


def _no_pair(key: object, folder: Path) -> str:
    return f"the key {key} does not belong to the certificate: put both of one pair into {folder}"


def _reason(printed: str, folder: Path) -> str:
    """Why `nginx -t` failed, in one sentence."""
    (reason,) = re.findall(r"\[emerg\] (?:\d+#\d+: )?(.*)", printed)[:1] or [printed.strip().replace("\n", "; ")]
    file = re.search(r'"(?P<name>[^"]*)"', reason)
    if file and "key values mismatch" in reason:
        return _no_pair(file["name"], folder)
    if file and "No such file" in reason:
        return f"the file {file['name']} is missing: put it there, or mend {folder / 'nginx.conf'}"
    return f"nginx cannot start: {reason}: mend that, starting from {folder / 'nginx.conf'}"


def become(command: list[str], folder: Path) -> NoReturn:
    """Run nginx in place of this process. It works in the folder, so that `master` can tell whose it is.

    nginx opens /dev/stdout anew for its log. It may not where that belongs to another user, as after sudo, and cannot
    where that is a socket, as under systemd. So it gets a pipe of its own.
    """
    log, stdout = os.pipe()
    subprocess.Popen(["cat"], stdin=log, start_new_session=True)  # Ctrl-C does not end it, so no line is lost
    os.dup2(stdout, sys.stdout.fileno())
    os.chdir(folder)
    os.execv(command[0], command)  # noqa: S606


def reload(folder: Path) -> bool:
    """Let a running nginx read its files again, keys and certificate among them, and wait until it has.

    Requests under way go on. Returns whether an nginx runs. Raises ReloadRefused if it would not read the files, and
    ServerError if it has not read them, if it is another user's, or as `master` does.
    """
    pid = master(folder)
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError as error:
        raise ServerError(
            f"nginx runs as another user, so have root tell it to read the files anew: `sudo kill -HUP {pid}`"
        ) from error
    try:
        check(command(folder), folder)
    except ServerError as error:
        raise ReloadRefused(str(error)) from error
    old = _serving(pid)
    os.kill(pid, signal.SIGHUP)
    end = time.monotonic() + RELOAD_SECONDS
    while not (workers := _serving(pid)) or workers & old:
        if time.monotonic() > end:
            raise ServerError(
                "nginx goes on with what it had, and its log says why: mend that, end nginx by "
                f"`kill {pid}`, and start it again"
            )
        time.sleep(0.05)
    return True


def master(folder: Path) -> int | None:
    """The process of a folder's nginx, if it runs. Raises ServerError if its workers go on without it."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
        pid = int((folder / "tmp" / "nginx.pid").read_text(encoding="ascii"))
        # otherwise the number is another's by now, or that of one who has died
        if _name(pid) == "nginx\n" and _command_line(pid):
            return pid
    if workers := _workers(folder):
        kill = shlex.join(["kill", *map(str, workers)])
        raise ServerError(
            f"nginx's master was killed, and its workers go on with the keys and certificate that they had: end them "
            f"by `{kill}`, then start nginx, which reads all anew"
        )
    return None


def _workers(folder: Path) -> list[int]:
    """The folder's workers, by where they work."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(process.name)
            is_worker = _name(pid) == "nginx\n" and _command_line(pid).startswith(b"nginx: worker process")
            if is_worker and (process / "cwd").samefile(folder):
                found.append(pid)
    return sorted(found)


def _serving(master: int) -> set[int]:
    """The workers that take new connections. Those of before a reload end once their requests are answered."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(process.name)
            parent = int((process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            if parent == master and _command_line(pid).rstrip(b"\0 ") == b"nginx: worker process":
                found.add(pid)
    return found


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8")


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
