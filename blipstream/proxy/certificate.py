# SPDX-License-Identifier: Apache-2.0
"""A certificate to try the proxy with, which clients must be told to trust. The program `openssl` makes it."""

import ipaddress
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from blipstream.errors import ServerError

DAYS = 365
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
SUBJECT = "Blipstream trial certificate"

# It vouches for its names alone and for no other certificate, so whoever trusts it trusts this one server.
SETTINGS = """\
[req]
prompt = no
distinguished_name = subject
x509_extensions = extensions
[subject]
CN = {subject}
[extensions]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
subjectAltName = {names}
"""


def make(certificate: Path, key: Path, domains: Sequence[str]) -> None:
    """Write a self-signed certificate for `domains` and this machine's local names, and its key.

    `domains` are names or IP addresses. Raises ServerError if one is neither, or if openssl fails.
    """
    names = ", ".join(dict.fromkeys(_alternative_name(name) for name in (*domains, *LOCAL_NAMES)))
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", str(DAYS)]
    command: list[str | Path] = ["openssl", "req", "-x509", "-config", "/dev/stdin", *options]
    command += ["-keyout", key, "-out", certificate]
    try:
        settings = SETTINGS.format(names=names, subject=SUBJECT)
        done = subprocess.run(command, input=settings, capture_output=True, text=True, umask=0o077, check=False)
    except FileNotFoundError as error:
        raise ServerError("openssl makes the certificate, and is not installed: apt-get install openssl") from error
    if done.returncode:
        raise ServerError(f"openssl could not make the certificate: {done.stderr.strip().splitlines()[-1]}")
    certificate.chmod(0o644)  # it is for clients


def renew(certificate: Path, key: Path, domains: Sequence[str] = ()) -> None:
    """Replace a certificate that `make` made, and its key, by new ones: for `domains`, else for the same names.

    The owner of the files stays. Raises ServerError if the certificate is another one, or if openssl fails.
    """
    names = names_of(certificate)
    new = [path.with_name(f"{path.name}.new") for path in (certificate, key)]
    owner = certificate.stat()
    try:
        make(new[0], new[1], domains or names)
        for path, target in zip(new, (certificate, key), strict=True):
            os.chown(path, owner.st_uid, owner.st_gid)
            path.replace(target)
    finally:
        for path in new:
            path.unlink(missing_ok=True)


def names_of(certificate: Path) -> list[str]:
    """The domains of a certificate that `make` made. Raises ServerError if it is another one."""
    if not certificate.exists():
        raise ServerError(f"{certificate} is missing: put it back, or make a new folder by `blipstream proxy init`")
    command: list[str | Path] = ["openssl", "x509", "-noout", "-subject", "-ext", "subjectAltName", "-in", certificate]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ServerError("openssl reads the certificate, and is not installed: apt-get install openssl") from error
    if done.returncode or SUBJECT not in done.stdout.partition("\n")[0]:
        raise ServerError(f"{certificate} is not the trial certificate: get a new one where it came from")
    return re.findall(r"(?:DNS|IP Address):([^,\s]+)", done.stdout)


def _alternative_name(name: str) -> str:
    try:
        return f"IP:{ipaddress.ip_address(name)}"
    except ValueError:
        if not re.fullmatch(r"(?!(.*\.)?\d+$)(\*\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", name):
            raise ServerError(
                f"a domain is a name such as captions.example, or an IP address, which {name!r} is not"
            ) from None
        return f"DNS:{name}"
