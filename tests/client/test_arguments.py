# SPDX-License-Identifier: Apache-2.0
"""Arguments that make no sense: whatever comes, the error is one sentence that helps."""

import asyncio
import gzip
import inspect
import io
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from blipstream_client import AsyncClient, BlipstreamError, Client, InvalidCertificate, InvalidImage, InvalidRequest
from blipstream_client._matches import Matches
from tests.support.tiny_triton import TinyTriton

Ask = Callable[..., Any]


@pytest.fixture
def ask(tiny: TinyTriton, kind: str) -> Ask:
    """Calls a method of either client, and goes through what it gives."""

    async def ask_async(method: str, *arguments: Any, **options: Any) -> Any:
        async with AsyncClient(tiny.url("grpc"), timeout=5, retries=0) as client:
            found = getattr(client, method)(*arguments, **options)
            return [each async for each in found] if isinstance(found, AsyncIterator) else await found

    def ask(method: str, *arguments: Any, **options: Any) -> Any:
        if kind == "async":
            return asyncio.run(ask_async(method, *arguments, **options))
        with Client(tiny.url("grpc"), timeout=5, retries=0) as client:
            found = getattr(client, method)(*arguments, **options)
            return [*found] if isinstance(found, Iterator) else found

    return ask


@pytest.mark.parametrize(
    ("method", "arguments", "name", "sentence"),
    [
        ("match", [b"", ["a"]], "num_beams", "'num_beams'; the options are truncate, resize_mode, timeout"),
        ("match", [b""], "text", "'text': did you mean texts?"),
        ("embed_image", [b""], "truncat", "'truncat'; the options are resize_mode, timeout"),
        ("embed_image", [b""], "time_out", "'time_out': did you mean timeout?"),
        ("embed_text", ["a"], "foo", "'foo'; the options are truncate, timeout"),
        ("info", [], "timeout", "'timeout'"),
        ("is_ready", [], "timeout", "'timeout'"),
        ("caption", [b""], "timout", "'timout': did you mean timeout?"),
        ("caption", [b""], "num_beam", "'num_beam': did you mean num_beams?"),
        ("explain", [b""], "captions", "'captions': did you mean caption?"),
        ("stream", [b""], "max_length", "'max_length': did you mean max_tokens?"),
        ("caption_many", [[b""]], "max_inflight", "'max_inflight': did you mean max_in_flight?"),
    ],
)
def test_an_argument_that_does_not_exist(ask: Ask, method: str, arguments: list[Any], name: str, sentence: str) -> None:
    with pytest.raises(TypeError) as caught:
        ask(method, *arguments, **{name: 3})
    assert str(caught.value) == f"There is no option {sentence}"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_argument_that_no_client_has(kind: type[Any]) -> None:
    with pytest.raises(TypeError, match=r"^There is no option 'time_out': did you mean timeout\?$"):
        kind(time_out=3)
    with pytest.raises(TypeError, match=r"^There is no option 'foo'; the options are model, timeout, .*_private_urls$"):
        kind(foo=3)


def test_methods_are_what_they_were() -> None:
    assert inspect.iscoroutinefunction(AsyncClient.match)
    assert [*inspect.signature(Client.match).parameters] == [
        "self", "image", "texts", "truncate", "resize_mode", "timeout",
    ]  # fmt: skip


class Unreadable:
    """A file that fails in its own way."""

    def read(self, _size: int) -> bytes:
        raise AttributeError("it is gone")


class NotAFile:
    read = 5


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (None, "Expected a path, bytes, a binary file, a PIL image or a numpy array, got NoneType"),
        (NotAFile(), "Expected a path, bytes, a binary file, a PIL image or a numpy array, got NotAFile"),
        (Unreadable(), "Cannot read the image from the file object: it is gone"),
        (
            gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(b"image")[:-9])),
            "Cannot read the image from the file object: Compressed file ended before",
        ),
    ],
)
@pytest.mark.parametrize(("method", "more"), [("caption", []), ("match", [["a"]]), ("embed_image", []), ("stream", [])])
def test_images_that_are_none(ask: Ask, method: str, more: list[Any], image: Any, sentence: str) -> None:
    if isinstance(image, gzip.GzipFile):
        image.seek(0)
    with pytest.raises(InvalidImage) as caught:
        ask(method, image, *more)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("images", [None, 5, np.int64(5), np.array(5), object()])
def test_what_is_not_several_images(ask: Ask, images: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^images must be several, such as a list, got "):
        ask("caption_many", images)


async def _later(text: str = "a cat") -> AsyncIterator[str]:
    yield text


def test_the_blocking_client_waits_for_nothing(tiny: TinyTriton) -> None:
    with Client(tiny.url("grpc")) as client:
        with pytest.raises(InvalidRequest, match=r"or let AsyncClient have it$"):
            client.caption_many(_later())  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match=r"^texts must be a list of texts, got <async_generator"):
            client.match(b"", _later())  # type: ignore[arg-type]


@pytest.mark.parametrize("texts", [None, 5, "a cat", b"a cat", {"a": 1}, np.array("a"), np.array([["a"]])])
def test_what_is_no_list_of_texts(ask: Ask, texts: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^texts must be a list of texts, got "):
        ask("match", b"", texts)


@pytest.mark.parametrize(
    ("method", "arguments", "sentence"),
    [
        ("match", [b"", ["a cat", "a d\udcffg"]], "A text must be one that UTF-8 can hold, without '\\udcff'"),
        ("embed_text", ["a d\udcffg"], "A text must be one that UTF-8 can hold, without '\\udcff'"),
        ("explain", [b"", "a d\udcffg"], "caption must be text that UTF-8 can hold, without '\\udcff'"),
    ],
)
def test_what_utf_8_cannot_hold(ask: Ask, method: str, arguments: list[Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ask(method, *arguments)
    assert str(caught.value) == f"{sentence} as its character 4"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"url": "grpcs://a", "ca_file": "a\0"}, InvalidCertificate),
        ({"url": "grpcs://a", "cert_file": "\ud800"}, InvalidCertificate),
        ({"model": "\ud800"}, InvalidRequest),
    ],
)
def test_a_client_that_cannot_be(arguments: dict[str, Any], error: type[BlipstreamError]) -> None:
    with pytest.raises(error):
        Client(**arguments)


def test_no_matches_have_no_best() -> None:
    with pytest.raises(InvalidRequest, match=r"^There are no texts, so none is the best$"):
        _ = Matches().best
