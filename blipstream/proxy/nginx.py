# SPDX-License-Identifier: Apache-2.0
"""nginx: its configuration, filled in for a folder, and the program."""

import grp
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from blipstream.errors import ServerError
from blipstream.files import NGINX

PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])  # PATH may lack sbin
LISTEN = re.compile(r"^\s*listen (?P<address>\[?(?P<host>[^;\s]*?)\]?:(?P<port>\d+)) ssl\b", re.MULTILINE)


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


def free_address(folder: Path) -> str:
    """Where a folder's configuration listens. Raises ServerError if it does not say so, or if nginx could not."""
    file = folder / "nginx.conf"
    found = LISTEN.search(file.read_text(encoding="utf-8"))
    if not found:
        raise ServerError(f"{file} has no line `listen HOST:PORT ssl`: write one")
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


def become(command: list[str]) -> NoReturn:
    """Run nginx in place of this process.

    nginx opens /dev/stdout anew for its log. It may not where that belongs to another user, as after sudo, and cannot
    where that is a socket, as under systemd. So it gets a pipe of its own.
    """
    log, stdout = os.pipe()
    subprocess.Popen(["cat"], stdin=log, start_new_session=True)  # Ctrl-C does not end it, so no line is lost
    os.dup2(stdout, sys.stdout.fileno())
    os.execv(command[0], command)  # noqa: S606


def reload(folder: Path) -> bool:
    """Let a running nginx read its files again, keys among them. Returns whether one runs."""
    try:
        pid = int((folder / "tmp" / "nginx.pid").read_text(encoding="ascii"))
        if Path(f"/proc/{pid}/comm").read_text(encoding="utf-8") != "nginx\n":  # the number is another's by now
            return False
        os.kill(pid, signal.SIGHUP)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return False
    return True
