# SPDX-License-Identifier: Apache-2.0
"""Where nothing is wrong with an address, or nothing can be found out, the error stays as it is."""

import ssl
import subprocess

import pytest
import trustme

from blipstream_client._endpoints import parse_urls
from blipstream_client._probe import find_fault
from blipstream_client._tls import TLS
from tests.support.programs import free_port, listens
from tests.support.proxy import proxy
from tests.support.tiny_triton import TinyTriton
from tests.support.waiting import wait_until


def fault(url: str, tls: TLS | None = None) -> str | None:
    (address,) = parse_urls(url)
    return find_fault(address, tls or TLS())


def test_the_right_address(tiny: TinyTriton, scheme: str) -> None:
    assert fault(tiny.url(scheme)) is None


def test_a_port_that_speaks_both_protocols(
    tiny: TinyTriton, scheme: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As a proxy's does, by what a TLS client offers."""
    authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    ca_file = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    with proxy(tiny.port(scheme), tls=context) as running:
        assert fault(f"{scheme}s://127.0.0.1:{running.port}", TLS(ca_file=ca_file)) is None


def test_a_handshake_that_fails(tiny: TinyTriton, scheme: str) -> None:
    """nginx does so where the key is of another kind than the certificate. It is no advice to go without TLS."""
    with proxy(tiny.port(scheme), tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) as running:
        for tls in ("s", ""):
            url = f"{scheme}{tls}://127.0.0.1:{running.port}"
            said = fault(url)
            assert said
            assert said.startswith(f"What answers at {url} breaks off the TLS handshake (")
            assert "its certificate and key may not belong together" in said


def test_a_server_that_refuses_to_speak_http_2(tmp_path_factory: pytest.TempPathFactory) -> None:
    """It breaks off the handshake too, and is well."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
    port = free_port()
    command = f"openssl s_server -quiet -accept 127.0.0.1:{port} -cert both.pem -alpn http/1.1"
    with subprocess.Popen(command.split(), cwd=folder, stdin=subprocess.PIPE) as server:
        try:
            wait_until(lambda: listens(port))
            assert fault(f"https://127.0.0.1:{port}", TLS(ca_file=folder / "ca.pem")) is None
            said = fault(f"grpcs://127.0.0.1:{port}", TLS(ca_file=folder / "ca.pem"))
        finally:
            server.terminate()
    assert said
    assert said.endswith(f"and HTTPS answers there: use https://127.0.0.1:{port}")


def test_nobody_listens(scheme: str, closed_port: int) -> None:
    for tls in ("", "s"):
        assert fault(f"{scheme}{tls}://127.0.0.1:{closed_port}") is None


def test_a_server_that_says_nothing(scheme: str, silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blipstream_client._probe.SECONDS", 0.1)
    assert fault(f"{scheme}://127.0.0.1:{silent_port}") is None
