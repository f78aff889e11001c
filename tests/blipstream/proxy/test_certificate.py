# SPDX-License-Identifier: Apache-2.0
"""The certificate to try the proxy with, as TLS libraries judge it."""

import socket
import ssl
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from blipstream.errors import ServerError
from blipstream.proxy import certificate


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    certificate.make(
        tmp_path / "certificate.pem", tmp_path / "key.pem", ["captions.example", "*.inner.example", "192.0.2.7"]
    )
    return tmp_path / "certificate.pem", tmp_path / "key.pem"


def is_trusted(files: tuple[Path, Path], name: str) -> bool:
    """Whether a strict client that trusts the certificate takes it as that of `name`."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*files)
    client = ssl.create_default_context(cafile=files[0])
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # as from Python 3.13
    near, far = socket.socketpair()

    def serve() -> None:
        with suppress(OSError), server.wrap_socket(far, server_side=True) as connection:
            connection.recv(1)

    thread = Thread(target=serve)
    thread.start()
    try:
        with near, client.wrap_socket(near, server_hostname=name):
            return True
    except ssl.SSLCertVerificationError:
        return False
    finally:
        thread.join()


@pytest.mark.parametrize(
    ("name", "trusted"),
    [
        *((name, True) for name in ("captions.example", "a.inner.example", "192.0.2.7", "localhost", "127.0.0.1")),
        *((name, False) for name in ("other.example", "www.captions.example", "127.0.0.2")),
    ],
)
def test_names(files: tuple[Path, Path], name: str, trusted: bool) -> None:
    assert is_trusted(files, name) == trusted


def test_nobody_else_reads_the_key(files: tuple[Path, Path]) -> None:
    assert [path.stat().st_mode & 0o777 for path in files] == [0o644, 0o600]


@pytest.mark.parametrize("name", ["", "two words", "a,DNS:b", "a\nb", "https://captions.example", "captions.example:1"])
def test_no_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ServerError, match="a domain is a name such as captions"):
        certificate.make(tmp_path / "certificate.pem", tmp_path / "key.pem", [name])
    assert not any(tmp_path.iterdir())


def test_without_openssl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match="openssl makes the certificate, and is not installed: apt-get install"):
        certificate.make(tmp_path / "certificate.pem", tmp_path / "key.pem", [])


def test_what_openssl_refuses(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="openssl could not make the certificate: "):
        certificate.make(tmp_path / "certificate.pem", tmp_path / "none" / "key.pem", [])
