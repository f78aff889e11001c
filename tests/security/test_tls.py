# SPDX-License-Identifier: Apache-2.0
"""gRPC over TLS in Triton, with and without client certificates. HTTP has no TLS and listens on loopback only."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import trustme
from click.testing import CliRunner

from blipstream import signals
from blipstream.errors import ServerError
from blipstream.server import command as serve
from blipstream.server.tls import TLS
from blipstream_client import Client, ServerUnreachable
from tests.support.serving import child, serving
from tests.support.toy_models import write_repository

ADDRESS = "127.0.0.1"


class Files(NamedTuple):
    """PEM files."""

    ca: Path
    server: Path  # certificate and key
    certificate: Path  # a client's
    key: Path
    stranger: Path  # certificate and key from an authority that the server does not know


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    client = authority.issue_cert("client")
    blobs = (
        authority.cert_pem,
        authority.issue_cert(ADDRESS).private_key_and_cert_chain_pem,
        client.cert_chain_pems[0],
        client.private_key_pem,
        trustme.CA().issue_cert("client").private_key_and_cert_chain_pem,
    )
    paths = Files(*(folder / f"{name}.pem" for name in Files._fields))
    for blob, path in zip(blobs, paths, strict=True):
        blob.write_to_path(path)
    return paths


@pytest.fixture(scope="module", params=[False, True], ids=["tls", "mutual"])
def mutual(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def listening(mutual: bool, files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The addresses on which a server with --host=0.0.0.0 listens, by URL."""
    folder = tmp_path_factory.mktemp("server")
    options = ["--host=0.0.0.0", "--config=toy", f"--tls-certificate={files.server}"]
    options += [f"--tls-client-ca={files.ca}"] if mutual else []
    with serving(folder, f"--repository={write_repository(folder / 'models')}", *options) as (process, lines):
        (told,) = (line for line in lines if line.startswith("serving on "))
        ports = dict(re.findall(r"(http|grpcs)://127\.0\.0\.1:(\d+)", told))
        connections = psutil.Process(child(process)).net_connections("inet")
        addresses = {each.laddr.port: each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
        yield {f"{scheme}://{ADDRESS}:{port}": addresses[int(port)] for scheme, port in ports.items()}


@pytest.fixture(scope="module")
def url(listening: dict[str, str]) -> str:
    return next(url for url in listening if url.startswith("grpcs"))


def test_clients_that_are_accepted(url: str, files: Files, mutual: bool) -> None:
    own = (files.certificate, files.key) if mutual else (None, None)
    with Client(url, ca_file=files.ca, cert_file=own[0], key_file=own[1]) as client:
        assert client.caption(b"image").text == "5 bytes"


def test_clients_that_are_refused(url: str, files: Files, mutual: bool) -> None:
    clients = [
        Client(url.replace("grpcs", "grpc"), retries=0),
        Client(url, retries=0),
    ]  # no TLS; no authority
    if mutual:
        clients += [
            Client(url, ca_file=files.ca, retries=0),
            Client(url, ca_file=files.ca, cert_file=files.stranger, retries=0),
        ]
    for client in clients:
        with client, pytest.raises(ServerUnreachable):
            client.caption(b"image")


def test_http_listens_on_loopback_only(listening: dict[str, str]) -> None:
    assert {url.partition(":")[0]: address for url, address in listening.items()} == {"http": ADDRESS, "grpcs": "::"}


def test_files_of_no_use(files: Files, tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("no certificate")
    for arguments, words in [
        ((nonsense, nonsense, None), "needs a certificate and its unencrypted key, both PEM; .*nonsense.pem"),
        ((files.certificate, files.stranger, None), "KEY_VALUES_MISMATCH"),
        ((files.server, files.server, nonsense), "an authority's certificate in PEM, which .*nonsense.pem is not"),
    ]:
        with pytest.raises(ServerError, match=words):
            TLS(*arguments)


def test_options_that_lack_another(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "handle", lambda _: None)
    result = CliRunner().invoke(serve.main, [f"--tls-key={files.key}"])
    assert result.exit_code == 1
    assert result.stderr == "Error: --tls-key and --tls-client-ca go with a --tls-certificate: give that too\n"
