# SPDX-License-Identifier: Apache-2.0
"""TLS over both protocols, with the tests' own certificates, through a proxy that ends TLS."""

import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from blipstream_client import Client, InvalidCertificate, ServerUnreachable
from tests.support.clients import texts
from tests.support.proxy import proxy
from tests.support.tiny_triton import TinyTriton


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The authority, a client's certificate and key from it, and those of another authority."""
    folder = tmp_path_factory.mktemp("tls")
    stranger = trustme.CA()
    certificate, strangers = authority.issue_cert("client"), stranger.issue_cert("client")
    blobs = {
        "ca": authority.cert_pem,
        "cert": certificate.cert_chain_pems[0],
        "key": certificate.private_key_pem,
        "both": certificate.private_key_and_cert_chain_pem,
        "other_ca": stranger.cert_pem,
        "other": strangers.private_key_and_cert_chain_pem,
    }
    for name, blob in blobs.items():
        blob.write_to_path(folder / f"{name}.pem")
    return {name: folder / f"{name}.pem" for name in blobs}


@pytest.fixture(params=["server", "mutual"])
def mutual(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "mutual")


@pytest.fixture
def url(tiny: TinyTriton, scheme: str, authority: trustme.CA, mutual: bool) -> Iterator[str]:
    """A server with a certificate for 127.0.0.1. If `mutual`, clients need one, too."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    if mutual:
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    if scheme == "grpc":
        context.set_alpn_protocols(["h2"])
    with proxy(tiny.port(scheme), tls=context) as running:
        yield f"{scheme}s://127.0.0.1:{running.port}"


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_both_certificates(url: str, files: dict[str, Path], kind: str, mutual: bool) -> None:
    own: dict[str, Any] = {"cert_file": files["cert"], "key_file": files["key"]} if mutual else {}
    assert texts(kind, url, [b"image"], ca_file=files["ca"], **own) == ["5 bytes"]


def test_key_and_certificate_may_share_a_file(url: str, files: dict[str, Path]) -> None:
    assert texts("blocking", url, [b"image"], ca_file=str(files["ca"]), cert_file=str(files["both"])) == ["5 bytes"]


@pytest.mark.parametrize("ca", [None, "other_ca"])
def test_a_server_that_is_not_trusted(url: str, files: dict[str, Path], ca: str | None) -> None:
    with (
        Client(url, ca_file=files[ca] if ca else None, retries=0) as client,
        pytest.raises(ServerUnreachable, match=r"(?i)certificate") as caught,
    ):
        client.caption(b"image")
    assert str(caught.value).startswith(f"The certificate at {url} is not trusted (")
    assert str(caught.value).endswith("): give its authority's certificate as ca_file (--ca-file)")


def test_the_command_line_says_it_in_one_line(url: str) -> None:
    """gRPC's C library adds none of its own."""
    command = [sys.executable, "-m", "blipstream_client", "caption", __file__, "--url", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: The certificate at {url} is not trusted (")
    assert done.stderr.count("\n") == 1


def test_a_certificate_of_another_name(tiny: TinyTriton, scheme: str, authority: trustme.CA, files: Any) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("elsewhere.example").configure_cert(context)
    context.set_alpn_protocols(["h2"] if scheme == "grpc" else ["http/1.1"])
    with proxy(tiny.port(scheme), tls=context) as running:
        url = f"{scheme}s://127.0.0.1:{running.port}"
        with (
            Client(url, ca_file=files["ca"]) as client,
            pytest.raises(ServerUnreachable, match=r"mismatch.*: use a name that is in it$"),
        ):
            client.caption(b"image")


def test_a_client_that_is_not_trusted(url: str, files: dict[str, Path], mutual: bool) -> None:
    for own in (None, "other"):
        with Client(url, ca_file=files["ca"], cert_file=files[own] if own else None, retries=0) as client:
            if mutual:
                with pytest.raises(ServerUnreachable):
                    client.caption(b"image")
            else:
                assert client.caption(b"image").text == "5 bytes"


def test_no_tls_to_a_server_that_wants_it(url: str, scheme: str) -> None:
    plain = url.replace(f"{scheme}s", scheme)
    with Client(plain, retries=0) as client, pytest.raises(ServerUnreachable) as caught:
        client.caption(b"image")
    if scheme == "grpc":
        assert str(caught.value) == f"Expected gRPC at {plain}, and gRPC with TLS answers there: use {url}"
    else:
        assert str(caught.value) == f"Expected HTTP at {plain}, and HTTPS answers there: use {url}"


def test_files_that_cannot_be_used(files: dict[str, Path], scheme: str, tmp_path: Path) -> None:
    url, wrong = f"{scheme}s://localhost", tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    for arguments, words in [
        ({"ca_file": tmp_path / "nowhere.pem"}, "nowhere.pem: No such file or directory"),
        ({"ca_file": wrong}, "Cannot trust the certificates in .*wrong.pem: expected PEM"),
        ({"cert_file": wrong}, "Cannot use the certificate in .*wrong.pem and its key in the same file: expected PEM"),
        ({"cert_file": files["cert"], "key_file": files["other"]}, "with a key that matches"),
        ({"key_file": files["key"]}, "only with cert_file"),
    ]:
        with pytest.raises(InvalidCertificate, match=words):
            Client(url, **arguments)  # type: ignore[arg-type]
    with pytest.raises(InvalidCertificate, match="for grpcs:// and https://"):
        Client(f"{scheme}://localhost", ca_file=files["ca"])


def test_a_key_with_a_password_does_not_ask_for_it(files: dict[str, Path], tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(files["key"].read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(InvalidCertificate, match="unencrypted"):
        Client("https://localhost", cert_file=files["cert"], key_file=locked)
