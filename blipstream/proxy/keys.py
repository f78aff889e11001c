# SPDX-License-Identifier: Apache-2.0
"""The proxy's file of keys: a line `~^KEY$ CLIENT;` for each client. Other lines stay as they are."""

import os
import re
import secrets
import subprocess
from pathlib import Path

from blipstream.errors import ServerError
from blipstream.files import NGINX

LONGEST_NAME = 64  # characters; nginx refuses to read a file with one of some 4000
CLIENT = r"[A-Za-z0-9_.-]+"  # the name of a client, as check-keys.sh has it
LINE = re.compile(rf"[ \t]*~\^(?P<key>[A-Za-z0-9_-]+)\$[ \t]+(?P<client>{CLIENT});")


def clients(file: Path) -> dict[str, str]:
    """The key of each client."""
    found = (LINE.match(line) for line in file.read_text(encoding="utf-8").splitlines())
    return {line["client"]: line["key"] for line in found if line}


def key_of(file: Path, client: str) -> str:
    """A client's key. Raises ServerError if the client has none."""
    known = clients(file)
    if client not in known:
        raise ServerError(f"{file} has no key for {client!r}: it has keys for {', '.join(known) or 'nobody'}")
    return known[client]


def add(file: Path, client: str) -> None:
    """Give a client a key.

    Raises ServerError, and changes nothing, if the name cannot be one, if it has a key, or as `check`.
    """
    if not re.fullmatch(CLIENT, client):
        raise ServerError(f"a client's name is letters, digits, _, . and -, which {client!r} is not: choose another")
    if len(client) > LONGEST_NAME:
        raise ServerError(
            f"a client's name has at most {LONGEST_NAME} characters, and this one has {len(client):,}: choose another"
        )
    if file.exists():
        check(file)
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    if before and client in clients(file):
        raise ServerError(f"{client} has a key: revoke it first, or choose another name")
    if before and not before.endswith("\n"):
        before += "\n"
    write(file, f"{before}~^{secrets.token_hex(32)}$ {client};\n")


def revoke(file: Path, client: str) -> None:
    """Take back a client's key. Raises ServerError, and changes nothing, if the client has none, or as `check`."""
    key_of(file, client)
    check(file)
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    write(file, "".join(line for line in lines if not ((found := LINE.match(line)) and found["client"] == client)))


def check(file: Path) -> None:
    """Raises ServerError if nginx would read a line otherwise than it looks."""
    done = subprocess.run(["sh", NGINX / "check-keys.sh", file], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerError(done.stderr.strip())


def write(file: Path, text: str) -> None:
    """Replace a file at once, so that nginx never reads half of it. Nobody else may read it."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as output:
        output.write(text)
    if file.exists():  # root may change the keys of a folder that is somebody else's
        os.chown(new, file.stat().st_uid, file.stat().st_gid)
    new.replace(file)
