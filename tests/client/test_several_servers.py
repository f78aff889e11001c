# SPDX-License-Identifier: Apache-2.0
"""Two real servers, one of which dies during the run, or stops and comes back."""

import contextlib
import os
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from blipstream.server.triton import TritonServer
from blipstream_client import AccessDenied, Caption, Client

IMAGES = 120
GRPC_AND_IN_FULL_HTTP = pytest.mark.parametrize("scheme", ["grpc", pytest.param("http", marks=pytest.mark.full)])


@pytest.fixture(scope="module")
def start(artifacts: Path) -> Callable[[], TritonServer]:
    """Makes another server with the same models. It keeps its ports when it is started again."""
    return lambda: TritonServer(repository=artifacts, config="cpu", http_port=0, grpc_port=0, metrics_port=0)


@pytest.fixture(scope="module")
def second(start: Callable[[], TritonServer]) -> Iterator[TritonServer]:
    with start() as running:
        yield running


def url_of(scheme: str, *servers: TritonServer) -> str:
    ports = [getattr(server, f"{scheme}_port") for server in servers]
    return f"{scheme}://" + ",".join(f"127.0.0.1:{port}" for port in ports)


def images(samples: dict[str, str], folder: Path) -> tuple[list[bytes], list[str]]:
    """Images and their captions."""
    files = [((folder / name).read_bytes(), text) for name, text in samples.items()]
    chosen = [files[i % len(files)] for i in range(IMAGES)]
    return [data for data, _ in chosen], [text for _, text in chosen]


def captions_of(server: TritonServer) -> int:
    """The server's count of captions."""
    with urllib.request.urlopen(server.metrics_url) as page:
        lines = page.read().decode().splitlines()
    return sum(int(line.split()[-1]) for line in lines if line.startswith('nv_inference_count{model="caption"'))


def text_of(result: Any) -> str:
    return result.text if isinstance(result, Caption) else repr(result)


@pytest.mark.full
@GRPC_AND_IN_FULL_HTTP
def test_both_get_the_same_share(
    server: TritonServer, second: TritonServer, samples: dict[str, str], scheme: str, samples_folder: Path
) -> None:
    before = [captions_of(each) for each in (server, second)]
    sent, expected = images(samples, samples_folder)
    with Client(url_of(scheme, server, second)) as client:
        assert [text_of(result) for result in client.caption_many(sent, max_in_flight=8)] == expected
    shares = [captions_of(each) - earlier for each, earlier in zip((server, second), before, strict=True)]
    assert sum(shares) == IMAGES
    assert max(shares) - min(shares) <= IMAGES * 0.1


@GRPC_AND_IN_FULL_HTTP
def test_one_is_killed_and_no_image_fails(
    server: TritonServer,
    start: Callable[[], TritonServer],
    samples: dict[str, str],
    scheme: str,
    samples_folder: Path,
) -> None:
    sent, expected = images(samples, samples_folder)
    results = []
    with start() as dying, Client(url_of(scheme, server, dying)) as client:
        for result in client.caption_many(sent, max_in_flight=8):
            results.append(text_of(result))
            if len(results) == IMAGES // 4:
                os.killpg(dying.pid, signal.SIGKILL)
    assert results == expected


@pytest.mark.full
@pytest.mark.parametrize(("scheme", "signal_"), [("grpc", signal.SIGTERM), ("http", signal.SIGKILL)])
def test_the_only_one_goes_and_comes_back(
    start: Callable[[], TritonServer], samples: dict[str, str], scheme: str, samples_folder: Path, signal_: int
) -> None:
    sent, expected = images(samples, samples_folder)
    results: list[str] = []
    gone, finished = threading.Event(), threading.Event()
    with contextlib.ExitStack() as stack:
        only = stack.enter_context(start())

        def restart() -> None:  # the thread that starts the server must outlive it
            gone.wait(60)
            if signal_ == signal.SIGKILL:
                os.killpg(only.pid, signal.SIGKILL)
            only.stop()
            with only:
                finished.wait(120)

        thread = threading.Thread(target=restart)
        thread.start()
        with Client(url_of(scheme, only), retries=100, timeout=120) as client:
            for result in client.caption_many(sent, max_in_flight=8):
                results.append(text_of(result))
                if len(results) == IMAGES // 4:
                    gone.set()
        finished.set()
        thread.join()
    assert results == expected


class SecureTriton(TritonServer):
    """Triton's own TLS for gRPC, and headers that its protocols ask for."""

    more: dict[str, object]

    def _command_line(self, *arguments: Any) -> list[str]:
        return super()._command_line(*arguments) + [f"--{name}={value}" for name, value in self.more.items()]


@pytest.mark.full  # tests/security does it with our own options
def test_tritons_own_tls_and_tokens(
    artifacts: Path, tmp_path: Path, samples: dict[str, str], samples_folder: Path
) -> None:
    authority = trustme.CA()
    own, clients = authority.issue_cert("127.0.0.1"), authority.issue_cert("client")
    for name, blob in {
        "ca": authority.cert_pem,
        "cert": own.cert_chain_pems[0],
        "key": own.private_key_pem,
        "client": clients.private_key_and_cert_chain_pem,
    }.items():
        blob.write_to_path(tmp_path / name)
    secure = SecureTriton(repository=artifacts, config="cpu", http_port=0, grpc_port=0, metrics_port=0)
    secure.more = {
        "grpc-use-ssl": "true",
        "grpc-use-ssl-mutual": "true",
        "grpc-server-cert": tmp_path / "cert",
        "grpc-server-key": tmp_path / "key",
        "grpc-root-cert": tmp_path / "ca",
        "grpc-restricted-protocol": "inference:token=secret",
        "http-restricted-api": "inference:token=secret",
    }
    name, text = next(iter(samples.items()))
    with secure:
        files = {"ca_file": tmp_path / "ca", "cert_file": tmp_path / "client"}
        for url, arguments, prefix in [
            (f"grpcs://127.0.0.1:{secure.grpc_port}", files, "triton-grpc-protocol-"),
            (secure.http_url, {}, ""),
        ]:
            with Client(url, headers={f"{prefix}token": "secret"}, **arguments) as client:  # type: ignore[arg-type]
                assert client.caption(samples_folder / name).text == text
                assert "".join(piece.text for piece in client.stream(samples_folder / name)) == text
            with Client(url, **arguments) as client, pytest.raises(AccessDenied):  # type: ignore[arg-type]
                next(client.stream(samples_folder / name))
