# SPDX-License-Identifier: Apache-2.0
"""The client and the real server, with the demo checkpoint's sample images."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blipstream.server.health import Health
from blipstream.server.health_server import HealthServer
from blipstream_client import (
    AsyncClient,
    BlipstreamError,
    Caption,
    Client,
    ImageLike,
    InvalidImage,
    InvalidRequest,
    ModelNotReady,
    Options,
    ServerInfo,
    ServerUnreachable,
)

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "build" / "demo" / "samples"


@pytest.fixture
def url(server: Any, scheme: str) -> str:
    return str(getattr(server, f"{scheme}_url"))


KINDS: dict[str, Callable[[Path], ImageLike]] = {
    "path": lambda path: path,
    "bytes": Path.read_bytes,
    "file": lambda path: path.open("rb"),
    "PIL": Image.open,
    "array": lambda path: np.asarray(Image.open(path)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image(url: str, samples: dict[str, str], kind: str) -> None:
    name, text = next(iter(samples.items()))
    image = KINDS[kind](SAMPLES / name)
    with Client(url) as client:
        caption = client.caption(image)
    if hasattr(image, "close"):
        image.close()
    assert caption.text == text
    assert caption.num_tokens > 0
    assert np.isfinite(caption.score)


def test_is_ready(url: str) -> None:
    with Client(url) as client, Client(url, model="nonesuch") as other:
        assert client.is_ready()
        assert not other.is_ready()


def test_options_reach_the_model(url: str, samples: dict[str, str]) -> None:
    name, text = next(iter(samples.items()))
    with Client(url) as client:
        shorter = client.caption(SAMPLES / name, max_tokens=2)
    assert shorter.text != text
    assert shorter.num_tokens <= 2


def test_many_in_order_with_errors_as_values(url: str, samples: dict[str, str]) -> None:
    images: list[ImageLike] = [SAMPLES / name for name in samples]
    with Client(url) as client:
        one_by_one = [client.caption(image).text for image in images]
        results = list(client.caption_many([b"not an image", *images, "nowhere.jpg"]))
    assert type(results[0]) is InvalidImage
    assert type(results[-1]) is InvalidImage
    assert [result.text for result in results[1:-1] if isinstance(result, Caption)] == one_by_one
    assert len(set(one_by_one)) > 1


def test_the_servers_errors_are_one_plain_sentence(url: str) -> None:
    with Client(url) as client:
        with pytest.raises(InvalidImage) as caught:
            client.caption(b"not an image")
        with pytest.raises(InvalidRequest, match="resize_mode") as asked:
            client.caption(next(SAMPLES.glob("*.jpg")), resize_mode="sideways")
    assert type(asked.value) is InvalidRequest
    for clutter in ("ensemble", "request id", "Traceback", "\n"):
        assert clutter not in str(caught.value)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind_of_fault", ["cut short", "no image", "slow and cut short"])
def test_an_image_at_fault_has_an_error_of_its_own(url: str, kind: str, stream: bool, kind_of_fault: str) -> None:
    whole = next(SAMPLES.glob("*.jpg"))
    large = BytesIO()
    Image.open(whole).resize((3000, 3000)).save(large, "JPEG", progressive=True)  # it is decoded in another process
    image = {
        "cut short": whole.read_bytes()[:-500],
        "no image": b"not an image",
        "slow and cut short": large.getvalue()[:-5000],
    }[kind_of_fault]

    async def ask() -> None:
        async with AsyncClient(url) as client:
            _ = [piece async for piece in client.stream(image)] if stream else await client.caption(image)

    def wait() -> None:
        with Client(url) as client:
            _ = list(client.stream(image)) if stream else client.caption(image)

    with pytest.raises(InvalidImage, match=r"^image must be") as caught:
        asyncio.run(ask()) if kind == "async" else wait()
    assert caught.value.code == "invalid_image"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_port_for_metrics_is_told(server: Any, scheme: str, kind: str, stream: bool) -> None:
    url = f"{scheme}://127.0.0.1:{server.metrics_port}"

    async def ask() -> None:
        async with AsyncClient(url) as client:
            _ = [piece async for piece in client.stream(b"image")] if stream else await client.caption(b"image")

    def wait() -> None:
        with Client(url) as client:
            _ = list(client.stream(b"image")) if stream else client.caption(b"image")

    usual = {"grpc": 8001, "http": 8000}[scheme]
    with pytest.raises(ServerUnreachable, match=f"that is the server's metrics port: .* at port {usual}$"):
        asyncio.run(ask()) if kind == "async" else wait()
    with Client(url) as client, pytest.raises(ServerUnreachable, match="that is the server's metrics port"):
        client.info()


def test_the_port_for_health_is_told(scheme: str) -> None:
    with HealthServer(Health(), "127.0.0.1", 0) as running, Client(f"{scheme}://127.0.0.1:{running.port}") as client:
        with pytest.raises(ServerUnreachable, match="that is the server's health port"):
            client.caption(b"image")
        with pytest.raises(ServerUnreachable, match="that is the server's health port"):
            client.info()


def test_a_model_that_does_not_exist(url: str) -> None:
    with Client(url, model="nonesuch") as client, pytest.raises(ModelNotReady, match="nonesuch"):
        client.caption(b"image")


def test_the_command_line(url: str, samples: dict[str, str], tmp_path: Path) -> None:
    name, text = next(iter(samples.items()))
    wrong = tmp_path / "wrong.jpg"
    wrong.write_bytes(b"not an image")
    command = [sys.executable, "-m", "blipstream_client", "caption", str(SAMPLES / name), str(wrong), "--url", url]

    lines = subprocess.run(command, cwd=ROOT / "client", capture_output=True, text=True, check=False)
    assert (lines.returncode, lines.stdout) == (1, f"{SAMPLES / name}: {text}\n")
    assert lines.stderr.startswith(f"{wrong}: ")
    assert lines.stderr.count("\n") == 1

    objects = subprocess.run([*command, "--json"], cwd=ROOT / "client", capture_output=True, text=True, check=False)
    assert (objects.returncode, objects.stderr) == (1, "")
    good, bad = map(json.loads, objects.stdout.splitlines())
    assert (good["file"], good["caption"]) == (str(SAMPLES / name), text)
    assert set(good) == {"file", "caption", "score", "num_tokens"}
    assert set(bad) == {"file", "error"}


def test_info(url: str, kind: str) -> None:
    async def ask() -> ServerInfo:
        async with AsyncClient(url) as client:
            assert await client.is_ready()
            return await client.info()

    with Client(url) as client:
        info = asyncio.run(ask()) if kind == "async" else client.info()
    assert info.version[0].isdigit()
    assert info.checkpoint
    assert info.checkpoint.startswith("emoji-demo@")
    assert list(info.runtimes) == ["preprocess", "encoder", "decoder"]
    assert info.runtimes["encoder"] == "openvino"
    assert set(info.options) == set(Options.__annotations__)


def test_a_model_that_is_no_ensemble_has_one_step(url: str) -> None:
    with Client(url, model="decoder") as client:
        assert list(client.info().runtimes) == ["decoder"]


def test_the_command_line_prints_info(url: str) -> None:
    command = [sys.executable, "-m", "blipstream_client", "info", "--url", url]
    for_people, for_programs = (
        subprocess.run([*command, *flags], cwd=ROOT / "client", capture_output=True, text=True, check=True).stdout
        for flags in ([], ["--json"])
    )
    found = json.loads(for_programs)
    assert found["runtimes"]["encoder"] == "openvino"
    name, _, revision = found["checkpoint"].partition("@")
    assert f"checkpoint  {name}@{revision[:12]}\n" in for_people
    assert max(map(len, for_people.splitlines())) <= 80


def test_async(url: str, samples: dict[str, str]) -> None:
    images: list[ImageLike] = [SAMPLES / name for name in samples]

    async def ask() -> list[Caption | BlipstreamError]:
        async with AsyncClient(url) as client:
            return [result async for result in client.caption_many([b"not an image", *images])]

    wrong, *results = asyncio.run(ask())
    assert type(wrong) is InvalidImage
    assert [result.text for result in results if isinstance(result, Caption)] == list(samples.values())


def test_smaller_images_get_the_same_captions(url: str, samples: dict[str, str]) -> None:
    """For images well above the model's own size."""
    name, text = next(iter(samples.items()))
    large = Image.open(SAMPLES / name).resize((1600, 1600))
    with Client(url, max_side=800) as client:
        assert client.caption(large).text == text
