# SPDX-License-Identifier: Apache-2.0
"""Where nothing is wrong with an address, or nothing can be found out, the error stays as it is."""

import ssl

import pytest
import trustme

from blipstream_client._endpoints import parse_urls
from blipstream_client._probe import find_fault
from blipstream_client._tls import TLS
from tests.support.proxy import proxy
from tests.support.tiny_triton import TinyTriton


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


def test_nobody_listens(scheme: str, closed_port: int) -> None:
    for tls in ("", "s"):
        assert fault(f"{scheme}{tls}://127.0.0.1:{closed_port}") is None


def test_a_server_that_says_nothing(scheme: str, silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blipstream_client._probe.SECONDS", 0.1)
    assert fault(f"{scheme}://127.0.0.1:{silent_port}") is None
