# SPDX-License-Identifier: Apache-2.0
"""Images by URL: a real web server, and the ways in which a URL could reach a host that it must not."""

import asyncio
import contextlib
import gzip
import re
import socket
import ssl
import threading
import time
import traceback
import tracemalloc
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from blipstream_client import AsyncClient, Client, InvalidImage, RequestCancelled, _fetch
from blipstream_client._deadline import Deadline
from blipstream_client._fetch import fetch, is_public, is_url
from tests.support.clients import texts
from tests.support.proxy import RESET, proxy
from tests.support.tiny_triton import TinyTriton

Respond = Callable[[BaseHTTPRequestHandler], None]


class Web:
    """A web server and its pages."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.pages: dict[str, Respond] = {}
        self.headers: list[dict[str, str]] = []

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", /, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def redirect(url: str) -> Respond:
    return lambda handler: send(handler, 302, Location=url)


def missing(handler: BaseHTTPRequestHandler) -> None:
    send(handler, 404)


@pytest.fixture
def web() -> Iterator[Web]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.headers.append(dict(self.headers.items()))
            respond: Respond = site.pages.get(self.path, missing)
            respond(self)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Ignore clients that hang up."""

    server = Server(("127.0.0.1", 0), Handler)
    site = Web(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    site.pages["/a.jpg"] = lambda handler: send(handler, 200, b"12345")
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def get(url: str, seconds: float = 20, *, allow_private: bool = True) -> bytes:
    return fetch(url, Deadline(seconds), allow_private=allow_private)


def test_what_a_url_is() -> None:
    assert is_url("http://a/b")
    assert is_url("HTTPS://a/b")
    assert not any(map(is_url, ["a.jpg", "https", "ftp://a/b", b"http://a", None]))


def test_a_caption_for_a_url(web: Web, tiny: TinyTriton, scheme: str) -> None:
    headers = {"authorization": "Bearer secret"}
    with Client(tiny.url(scheme), allow_private_urls=True, headers=headers) as client:
        assert client.caption(web.url("/a.jpg")).text == "5 bytes"
    assert "secret" not in str(web.headers), "a token for the server is none of the web's business"


def test_private_addresses_are_refused_unless_permitted(web: Web, tiny: TinyTriton) -> None:
    with Client(tiny.url("grpc")) as client, pytest.raises(InvalidImage) as caught:
        client.caption(web.url("/a.jpg"))
    assert str(caught.value) == (
        f"Refused to fetch {web.url('/a.jpg')}: 127.0.0.1 is not a public address;"
        " allow_private_urls=True permits it, --allow-private-urls on the command line"
    )
    assert web.headers == []


def resolve(monkeypatch: pytest.MonkeyPatch, names: dict[str, list[list[str]]]) -> list[str]:
    """Make names resolve to the next of these lists of addresses. Returns the names that were resolved."""
    asked: list[str] = []
    original = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: int, **kwargs: int) -> list[tuple[object, ...]]:
        if host not in names:
            return original(host, port, *args, **kwargs)  # type: ignore[return-value]
        asked.append(host)
        addresses = names[host].pop(0) if len(names[host]) > 1 else names[host][0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"], ["::1"], ["8.8.8.8", "192.168.0.1"]],
    ids=lambda addresses: "+".join(addresses),
)
def test_names_of_private_addresses_are_refused(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    asked = resolve(monkeypatch, {"evil.example": [addresses]})
    with pytest.raises(InvalidImage, match=r"evil\.example is .*, which is not a public address"):
        get("http://evil.example/a.jpg", allow_private=False)
    assert asked == ["evil.example"]


def test_redirects_are_checked_in_the_same_way(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first host counts as public here. It redirects to one that does not."""
    monkeypatch.setattr(_fetch, "is_public", lambda address: address == "127.0.0.1")
    resolve(monkeypatch, {"inside.example": [["127.0.0.2"]]})
    web.pages["/on"] = redirect(f"http://inside.example:{web.port}/a.jpg")
    with pytest.raises(InvalidImage, match=r"inside\.example is 127\.0\.0\.2, which is not a public address"):
        get(web.url("/on"), allow_private=False)
    assert len(web.headers) == 1


def test_the_connection_goes_to_the_address_that_was_checked(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is resolved once, so that it cannot resolve to another address the second time."""
    monkeypatch.setattr(_fetch, "is_public", lambda address: address == "127.0.0.1")
    asked = resolve(monkeypatch, {"twice.example": [["127.0.0.1"], ["127.0.0.2"]]})
    assert get(web.url("/a.jpg", "twice.example"), allow_private=False) == b"12345"
    assert asked == ["twice.example"]
    assert web.headers[0]["Host"] == f"twice.example:{web.port}"


def test_https_checks_the_certificate_of_the_name(web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    resolve(monkeypatch, {"right.example": [["127.0.0.1"]], "wrong.example": [["127.0.0.1"]]})
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("right.example").configure_cert(context)
    with proxy(web.port, tls=context) as running:
        assert get(f"https://right.example:{running.port}/a.jpg") == b"12345"
        with pytest.raises(InvalidImage, match=r"(?i)certificate verify failed") as caught:
            get(f"https://wrong.example:{running.port}/a.jpg")
    assert not caught.value.transient


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_a_bad_certificate_is_reported_though_the_server_resets_the_connection(
    version: ssl.TLSVersion, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.maximum_version = version
    authority.issue_cert("right.example").configure_cert(context)

    def show_certificate_and_reset() -> None:
        connection, _ = listener.accept()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        handshake = context.wrap_bio(incoming, outgoing, server_side=True)
        while not outgoing.pending:
            incoming.write(connection.recv(1 << 16))
            with contextlib.suppress(ssl.SSLWantReadError):
                handshake.do_handshake()
        connection.sendall(outgoing.read())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=show_certificate_and_reset)
        server.start()
        with pytest.raises(InvalidImage, match=r"(?i)certificate is not valid for '127\.0\.0\.1'") as caught:
            get(f"https://127.0.0.1:{listener.getsockname()[1]}/a.jpg")
        server.join()
    assert not caught.value.transient


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),  # noqa: S104
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("192.168.1.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2001:0:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, expected: bool) -> None:
    assert is_public(address) is expected


def test_redirects(web: Web) -> None:
    web.pages["/1"] = redirect("/2")
    web.pages["/2"] = redirect(web.url("/a.jpg"))
    assert get(web.url("/1")) == b"12345"


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("/round", "redirects more than 5 times"),
        ("file:///etc/passwd", "expected an address that begins with http"),
        ("gopher://a/b", "expected an address that begins with http"),
    ],
)
def test_redirects_to_nowhere(web: Web, location: str, words: str) -> None:
    web.pages["/round"] = redirect(location)
    with pytest.raises(InvalidImage, match=words):
        get(web.url("/round"))


def test_other_statuses(web: Web, closed_port: int) -> None:
    with pytest.raises(InvalidImage, match="the server answered 404"):
        get(web.url("/nowhere.jpg"))
    with pytest.raises(InvalidImage, match=r"Cannot fetch .*refused"):
        get(f"http://127.0.0.1:{closed_port}/a.jpg")
    with pytest.raises(InvalidImage, match=r"Cannot fetch http://no-such-host\.invalid/a\.jpg"):
        get("http://no-such-host.invalid/a.jpg")
    for odd in ("http://", "http://a:b/c", "http://[::1/", f"http://{'a' * 70}.example/"):
        with pytest.raises(InvalidImage):
            get(odd)


@pytest.mark.parametrize("failure", [429, 503, "hang up"])
def test_transient_statuses_are_retried(web: Web, tiny: TinyTriton, kind: str, failure: int | str) -> None:
    def flaky(handler: BaseHTTPRequestHandler) -> None:
        if len(web.headers) > 2:
            send(handler, 200, b"12345")
        elif isinstance(failure, int):
            send(handler, failure)

    web.pages["/flaky.jpg"] = flaky
    assert texts(kind, tiny.url("grpc"), [web.url("/flaky.jpg")], allow_private_urls=True) == ["5 bytes"]
    assert len(web.headers) == 3


def test_permanent_statuses_are_not_retried(web: Web, tiny: TinyTriton, kind: str) -> None:
    assert texts(kind, tiny.url("grpc"), [web.url("/nowhere.jpg")], allow_private_urls=True) == [InvalidImage]
    assert len(web.headers) == 1


@pytest.mark.parametrize(("code", "transient"), [(socket.EAI_NONAME, False), (socket.EAI_AGAIN, True)])
def test_names_that_do_not_resolve(monkeypatch: pytest.MonkeyPatch, code: int, transient: bool) -> None:
    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(code, "no address")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(InvalidImage, match="no address") as caught:
        get("http://nowhere.example/a.jpg")
    assert caught.value.transient is transient


def test_closing_ends_a_client_that_waits_to_fetch_again(web: Web, tiny: TinyTriton) -> None:
    def close_the_second_time(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 503)
        if len(web.headers) == 2:
            client.close()

    web.pages["/busy.jpg"] = close_the_second_time
    client = Client(tiny.url("grpc"), allow_private_urls=True, retries=10_000)
    for _ in range(2):  # the second time, the client is closed already
        with pytest.raises(RequestCancelled):
            client.caption(web.url("/busy.jpg"))
    assert len(web.headers) == 2


def test_addresses_in_any_script(web: Web) -> None:
    web.pages["/b%C3%A4r.jpg?a=%20b"] = lambda handler: send(handler, 200, b"bear")
    assert get(web.url("/bär.jpg?a=%20b")) == b"bear"


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/bär.jpg?ö=%20b".encode(), "/b%C3%A4r.jpg?%C3%B6=%20b"),
        ("/bär.jpg".encode("latin-1"), "/b%E4r.jpg"),
        (b"/b%C3%A4r.jpg", "/b%C3%A4r.jpg"),
        (b"/a bear.jpg", "/a%20bear.jpg"),
    ],
)
def test_redirects_in_any_script(web: Web, location: bytes, path: str) -> None:
    def on(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n")

    web.pages["/on"] = on
    web.pages[path] = lambda handler: send(handler, 200, b"bear")
    assert get(web.url("/on")) == b"bear"


def test_redirects_to_hosts_in_any_script(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, {"xn--br-via.example": [["127.0.0.1"]]})

    def on(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(f"HTTP/1.0 302 Found\r\nLocation: {web.url('/a.jpg', 'bär.example')}\r\n\r\n".encode())

    web.pages["/on"] = on
    assert get(web.url("/on")) == b"12345"


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "deflate", "GZIP"])
def test_compressed_content_is_decompressed(web: Web, name: str) -> None:
    packed = zlib.compress(b"12345") if name == "deflate" else gzip.compress(b"12345")
    web.pages["/packed"] = lambda handler: send(handler, 200, packed, **{"Content-Encoding": name})
    assert get(web.url("/packed")) == b"12345"
    assert web.headers[0]["Accept-Encoding"] == "identity"


def test_decompression_is_bounded(web: Web) -> None:
    bomb = gzip.compress(bytes(40 * 2**20))  # 40 KB
    web.pages["/bomb"] = lambda handler: send(handler, 200, bomb, **{"Content-Encoding": "gzip"})
    tracemalloc.start()
    with pytest.raises(InvalidImage, match="larger than 32 MiB"):
        get(web.url("/bomb"))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100 * 2**20


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("br", b"12345", "comes packed as br, though"),
        ("gzip, gzip" * 1000, b"12345", "comes packed as gzip, gzip.*, though"),
        ("gzip", b"12345", "incorrect header check"),
        ("gzip", gzip.compress(b"12345")[:-9], "its gzip is cut short"),
    ],
    ids=["another", "many", "none", "cut"],
)
def test_content_that_cannot_be_decompressed(web: Web, name: str, body: bytes, words: str) -> None:
    web.pages["/packed"] = lambda handler: send(handler, 200, body, **{"Content-Encoding": name})
    with pytest.raises(InvalidImage, match=words) as caught:
        get(web.url("/packed"))
    assert len(str(caught.value)) < 250


PASSWORD = "us%65r:pass%2Fword@"  # noqa: S105
SENT = "Basic " + b64encode(b"user:pass/word").decode()


def test_a_password_in_a_url_goes_to_its_host_only(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, {name: [["127.0.0.1"]] for name in ("here.example", "there.example")})
    web.pages["/1"] = redirect("/2")
    web.pages["/2"] = redirect(web.url("/3", "here.example"))
    web.pages["/3"] = redirect(web.url("/4", "there.example"))
    web.pages["/4"] = redirect(web.url("/5", "here.example"))
    web.pages["/5"] = lambda handler: send(handler, 200, b"12345")
    assert get(web.url("/1", f"{PASSWORD}here.example")) == b"12345"
    assert [each.get("Authorization") for each in web.headers] == [SENT, SENT, SENT, None, SENT]


@pytest.mark.parametrize(
    "url",
    [
        f"http://{PASSWORD}127.0.0.1:PORT/nowhere",
        f"http://{PASSWORD}127.0.0.1:PORT/elsewhere",
        f"http://{PASSWORD}no-such-host.invalid/",
        f"http://{PASSWORD}[::1/",
        "http://user:pass/word@127.0.0.1:PORT/a.jpg",
        "http://user:p@ss:pass/word@127.0.0.1:PORT/a.jpg",
    ],
)
def test_no_message_has_the_password(web: Web, url: str) -> None:
    web.pages["/elsewhere"] = redirect(f"gopher://{PASSWORD}a/b")
    with pytest.raises(InvalidImage) as caught:
        get(url.replace("PORT", str(web.port)))
    report = "".join(traceback.format_exception(caught.value))
    report = report.replace(url.replace("PORT", str(web.port)), "")  # the line of the caller's code
    assert not re.search("us%65r|pass%2Fword|word@|pass/", report)


def test_cookies_travel_to_their_own_host_for_one_fetch(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many image hosts set a cookie, and redirect to the same address until the cookie comes back."""
    resolve(monkeypatch, {name: [["127.0.0.1"]] for name in ("here.example", "there.example")})

    def gate(handler: BaseHTTPRequestHandler) -> None:
        if "seen=yes" in handler.headers.get("Cookie", ""):
            send(handler, 302, Location=web.url("/a.jpg", "there.example"))
        else:
            send(handler, 302, Location=handler.path, **{"Set-Cookie": "seen=yes; Path=/; HttpOnly"})

    web.pages["/gate"] = gate
    for _ in range(2):
        web.headers.clear()
        assert get(web.url("/gate", "here.example")) == b"12345"
        assert [each.get("Cookie") for each in web.headers] == [None, "seen=yes", None]


def test_a_cookie_of_any_bytes_travels_back(web: Web) -> None:
    def gate(handler: BaseHTTPRequestHandler) -> None:
        if "bär" in handler.headers.get("Cookie", "").encode("latin-1").decode():
            send(handler, 200, b"bear")
        else:
            handler.wfile.write("HTTP/1.0 302 Found\r\nLocation: /gate\r\nSet-Cookie: a=bär\r\n\r\n".encode())

    web.pages["/gate"] = gate
    assert get(web.url("/gate")) == b"bear"


def test_content_that_is_too_large(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fetch, "MAX_BYTES", 2**20)

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(2**16))

    web.pages["/endless"] = endless
    with pytest.raises(InvalidImage, match="larger than 1 MiB"):
        get(web.url("/endless"))


@pytest.mark.parametrize("where", ["headers", "body", "nothing"])
def test_content_that_comes_too_slowly(web: Web, where: str) -> None:
    """A byte now and then keeps each wait short. The whole fetch still ends in time."""

    def drip(handler: BaseHTTPRequestHandler) -> None:
        if where == "body":
            handler.send_response(200)
            handler.end_headers()
        elif where == "headers":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(100):
            if where != "nothing":
                handler.wfile.write(b"a")
            time.sleep(0.1)

    web.pages["/slow"] = drip
    with pytest.raises(InvalidImage, match=r"took more than 0\.5 s"):
        get(web.url("/slow"), seconds=0.5)


def test_a_name_that_takes_long_to_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(60))
    with pytest.raises(InvalidImage, match=r"took more than 0\.5 s"):
        get("http://slow.example/a.jpg", seconds=0.5)
    assert not answered.is_set()
    answered.set()


def test_closing_ends_fetches(web: Web, tiny: TinyTriton, kind: str) -> None:
    asked, closed = threading.Event(), threading.Event()

    def wait(handler: BaseHTTPRequestHandler) -> None:
        asked.set()
        closed.wait(60)
        send(handler, 200, b"12345")

    web.pages["/slow"] = wait

    async def close() -> object:
        async with AsyncClient(tiny.url("grpc"), allow_private_urls=True) as client:
            asking = asyncio.create_task(client.caption(web.url("/slow")))
            await asyncio.to_thread(asked.wait, 60)
        (error,) = await asyncio.gather(asking, return_exceptions=True)
        return error

    if kind == "async":
        error = asyncio.run(close())
    else:
        with ThreadPoolExecutor(1) as threads, Client(tiny.url("grpc"), allow_private_urls=True) as client:
            asking = threads.submit(client.caption, web.url("/slow"))
            assert asked.wait(60)
            client.close()
            error = asking.exception()
    assert isinstance(error, RequestCancelled)
    closed.set()


def test_a_tls_handshake_that_never_ends(silent_port: int) -> None:
    with pytest.raises(InvalidImage, match=r"took more than 0\.5 s"):
        get(f"https://127.0.0.1:{silent_port}/a.jpg", seconds=0.5)
