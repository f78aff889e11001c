# SPDX-License-Identifier: Apache-2.0
"""Adapters in a real server: on every route, listed, and added and removed while it runs."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from PIL import Image
from tritonclient.grpc import InferenceServerClient

from blipstream.adapters import FOLDER_NAME, AdapterConfig
from blipstream.server.triton import TritonServer
from blipstream_client import Client, InvalidRequest
from tests.conftest import SAMPLES
from tests.reference import Reference
from tests.support.adapters import AdaptedReference
from tests.support.triton_requests import infer, post, refusal, words

FILE = SAMPLES / "a-dog-above-a-door.jpg"
THERE = "there are fr, ja, old"


@pytest.fixture(scope="module")
def client(demo_server: TritonServer) -> Iterator[Client]:
    with Client(demo_server.grpc_url, timeout=300) as client:
        yield client


@pytest.fixture(scope="module")
def triton(demo_server: TritonServer) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(demo_server.grpc_url.removeprefix("grpc://")) as client:
        yield client


@pytest.fixture(scope="module")
def folder(demo_artifacts: Path) -> Path:
    return demo_artifacts / "decoder/1" / FOLDER_NAME


def caption(reference: Reference, file: Path = FILE) -> str:
    """transformers' caption, with PEFT's adapter."""
    with Image.open(file) as image:
        return reference.generate(reference.embed([image.convert("RGB")]).half())[0].text


@pytest.mark.parametrize("name", ["fr", "ja"])
def test_every_route(
    client: Client, triton: InferenceServerClient, adapters: dict[str, AdaptedReference], name: str
) -> None:
    expected = caption(adapters[name])
    assert expected != client.caption(FILE).text == "a dog above a door on a brown background"
    assert client.caption(FILE, adapter=name).text == expected
    assert client.caption(FILE, adapter=name, rerank=3, num_beams=3, num_captions=3).match is not None
    assert "".join(piece.text for piece in client.stream(FILE, adapter=name)) == expected
    explained = client.explain(FILE, adapter=name)
    assert explained.caption.text == expected
    given = client.explain(FILE, explained.caption, adapter=name)
    assert given.words == explained.words
    assert given.caption.score > client.explain(FILE, explained.caption).caption.score  # than by the base

    adapter = {"adapter": words(name.encode())}
    pixels = infer(triton, "preprocess", image=words(FILE.read_bytes())).as_numpy("pixels")
    embeds = infer(triton, "encoder", pixels=pixels).as_numpy("image_embeds")
    for model, inputs in (("caption_pixels", {"pixels": pixels}), ("decoder", {"image_embeds": embeds})):
        assert infer(triton, model, **inputs, **adapter).as_numpy("caption")[0, 0].decode() == expected
    shown = infer(triton, "attention", image_embeds=embeds, caption=words(expected.encode()), **adapter)
    assert tuple(word.decode() for word in shown.as_numpy("words")[0]) == explained.words


def test_adapters_are_listed(client: Client, demo_server: TritonServer, folder: Path) -> None:
    info = client.info()
    assert [each.name for each in info.adapters] == ["fr", "ja"]  # not the one of another base
    french = info.adapters[0]
    assert french.base == info.checkpoint
    assert (french.language, french.revision, french.num_words, dict(french.metrics)) == ("fr", "1", 3, {"exact": 0.97})
    status, body = post(demo_server, "adapters/generate", {"adapter": "ja"})
    assert (status, json.loads(body)["name"]) == (200, "ja")
    status, body = post(demo_server, "adapters/generate", {"adapter": "jp"})
    assert status == 400
    assert f"there is no adapter 'jp': {THERE}" in body
    assert AdapterConfig.load(folder / "fr").language == "fr"


@pytest.mark.parametrize("model", ["caption", "caption_stream", "explain", "rerank", "decoder"])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("frr", f"there is no adapter 'frr' (did you mean fr?): {THERE}"),
        ("../../artifact", f"there is no adapter '../../artifact': {THERE}"),
        ("\0", f"there is no adapter '\\x00': {THERE}"),
        ("x" * 10_000, f"there is no adapter '{'x' * 40}...': {THERE}"),
        ("old", "adapter old was made for "),
    ],
    ids=["misspelt", "path", "nul", "long", "other base"],
)
@pytest.mark.usefixtures("adapters")
def test_an_unknown_adapter_is_refused(
    client: Client, triton: InferenceServerClient, model: str, name: str, told: str
) -> None:
    if model == "caption_stream":
        with pytest.raises(InvalidRequest) as caught:
            list(client.stream(FILE, adapter=name))
        assert told in str(caught.value)
        return
    inputs = {"image": words(FILE.read_bytes())}
    if model == "decoder":
        pixels = infer(triton, "preprocess", **inputs).as_numpy("pixels")
        inputs = {"image_embeds": infer(triton, "encoder", pixels=pixels).as_numpy("image_embeds")}
    assert told in refusal(triton, model, **inputs, adapter=words(name.encode()))


def test_adapters_come_and_go_while_requests_run(
    client: Client, adapters: dict[str, AdaptedReference], folder: Path, samples: dict[str, str]
) -> None:
    """No request fails, and each has the adapter that is there when it begins."""
    done, files = Event(), [SAMPLES / name for name in samples][:2]

    def ask(adapter: str) -> list[str]:
        found = []
        while not done.is_set():
            found += [str(result) for result in client.caption_many(files, adapter=adapter)]
        return found

    with ThreadPoolExecutor() as threads:
        others = {name: threads.submit(ask, name) for name in ("", "fr")}
        try:
            for name in ("fr", "ja"):
                place(folder / name, folder / "new")
                assert client.caption(FILE, adapter="new").text == caption(adapters[name])
            (folder / "new").rename(folder / ".gone")
            with pytest.raises(InvalidRequest, match="there is no adapter 'new'"):
                client.caption(FILE, adapter="new")
        finally:
            done.set()
    right = {
        "": {file.name: samples[file.name] for file in files},
        "fr": {file.name: caption(adapters["fr"], file) for file in files},
    }
    for name, found in others.items():
        assert set(found.result()) == set(right[name].values())


def place(source: Path, target: Path) -> None:
    """Put a copy of an adapter in the place of another one, under a revision of its own."""
    copy = target.with_name(f".{target.name}")
    copy.mkdir()
    for file in source.iterdir():
        (copy / file.name).hardlink_to(file)
    (copy / "config.json").unlink()
    replace(AdapterConfig.load(source), revision=source.name).save(copy)
    if target.exists():
        target.rename(target.with_name(f".old-{target.name}"))
    copy.rename(target)
