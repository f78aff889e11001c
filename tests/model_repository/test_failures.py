# SPDX-License-Identifier: Apache-2.0
"""A failure stays with its request and is one sentence, on a real Triton: odd requests, late senders, broken files."""

import http.client
import json
import re
import resource
import shutil
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from blipstream.errors import FAILED, ServerError
from blipstream.server.proc import processes_of_group, stub_model
from blipstream.server.triton import TritonServer
from blipstream.serving.backpressure import Counts
from tests.support.backpressure_file import backpressure_file, without_room, write_counts
from tests.support.triton_requests import Streams, failure, infer, refusal, text, words
from tests.support.waiting import wait_until

PIXELS = np.zeros((1, 192, 192, 3), np.uint8)
NO_WORDS = np.zeros((0, 1), np.object_)
EMBEDS = np.zeros((1, 145, 192), np.float16)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "triton.log"


@pytest.fixture(scope="module")
def server(artifacts: Path, log: Path) -> Iterator[TritonServer]:
    with TritonServer(
        artifacts, config="cpu", http_port=0, grpc_port=0, metrics_port=0, log_requests=True, log_path=log
    ) as server:
        yield server


@pytest.fixture(scope="module")
def triton(server: TritonServer) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        yield client


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        ("preprocess", {"image": NO_WORDS}),
        ("caption", {"image": NO_WORDS}),
        ("encoder", {"pixels": PIXELS[:0]}),
        ("decoder", {"image_embeds": EMBEDS[:0]}),
        ("decoder", {"image_embeds": EMBEDS, "prompt": NO_WORDS}),
    ],
)
def test_no_rows(triton: InferenceServerClient, model: str, inputs: dict[str, npt.NDArray[Any]]) -> None:
    """Triton 2.51 refuses them by itself."""
    assert "expected" in refusal(triton, model, **inputs).lower()


def post(server: TritonServer, path: str, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    try:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_an_id_that_is_no_text(server: TritonServer, images: list[bytes], samples: dict[str, str]) -> None:
    """Triton lets it through although JSON does not allow it."""
    head = b'{"id": "\xff", '
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": ["no image"]}
    status, answer = post(server, "/v2/models/caption/infer", head + json.dumps({"inputs": [tensor]}).encode()[1:])
    assert (status, b"image must be a JPEG" in answer, b".py" in answer) == (400, True, False)
    image = "data:image/jpeg;base64," + b64encode(images[0]).decode()
    body = head + json.dumps({"image": image}).encode()[1:]
    status, answer = post(server, "/v2/models/caption_stream/generate_stream", body)
    assert (status, next(iter(samples.values())).encode() in answer) == (200, True)


def test_a_stream_has_as_much_time_as_its_request(
    server: TritonServer, streams: Streams, images: list[bytes], samples: dict[str, str]
) -> None:
    before = server.metrics().inferences
    with without_room(server):
        streams.ask(images[0], {}, timeout=100_000)  # microseconds
        with pytest.raises(InferenceServerException, match="Request timeout expired"):
            streams.answer()
    after = server.metrics().inferences
    assert all(after[model] == before[model] for model in ("preprocess", "encoder"))
    for timeout in (0, 2**63 - 1, -1):  # Triton reads the last one as the longest
        streams.ask(images[0], {}, timeout=timeout)
        (pieces,) = streams.gather()
        assert text(pieces) == next(iter(samples.values()))


def test_images_of_clients_that_have_gone_are_not_encoded(
    server: TritonServer, streams: Streams, images: list[bytes]
) -> None:
    before = server.metrics().inferences
    leaving = Streams(server)
    with without_room(server):
        leaving.ask(images[0], {})
        wait_until(lambda: server.metrics().pending.get("preprocess", 0) > 0)  # before, only the ensemble has it
        leaving.close(cancel=True)
        streams.ask(images[1], {})  # behind it in every queue
    streams.gather()
    after = server.metrics().inferences
    assert {model: after[model] - before[model] for model in ("preprocess", "encoder")} == {
        "preprocess": 2,
        "encoder": 1,
    }


def test_an_unexpected_error_is_one_sentence(
    server: TritonServer,
    triton: InferenceServerClient,
    streams: Streams,
    images: list[bytes],
    samples: dict[str, str],
    log: Path,
) -> None:
    """The file that the models share is truncated: the log has the traceback, and later requests succeed."""
    backpressure_file(server).write_bytes(b"")
    expected = f"[internal] {FAILED} (error): try again, or see its log"  # struct.error
    assert failure(triton, "decoder", image_embeds=EMBEDS) == expected
    assert failure(triton, "encoder", pixels=PIXELS) == expected
    assert failure(triton, "preprocess", image=words(images[0])) == expected
    streams.ask(images[0], {})
    with pytest.raises(InferenceServerException) as caught:
        streams.answer()
    assert caught.value.message() == expected
    assert log.read_text().count("struct.error: unpack requires") >= 4
    write_counts(backpressure_file(server), Counts())
    streams.ask(images[0], {})
    (pieces,) = streams.gather()
    assert text(pieces) == next(iter(samples.values()))


@contextmanager
def full_disk(server: TritonServer, *models: str) -> Iterator[None]:
    """Writing to a file fails with OSError in these models."""
    processes = [pid for pid in processes_of_group(server.pid) if stub_model(pid) in models]
    for pid in processes:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        for pid in processes:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_full_disk(
    server: TritonServer,
    triton: InferenceServerClient,
    streams: Streams,
    images: list[bytes],
    samples: dict[str, str],
) -> None:
    """Neither the log nor the shared file can be written, and captions come out all the same."""
    with full_disk(server, "preprocess", "encoder", "decoder", "caption_stream"):
        assert "image must be a JPEG" in refusal(triton, image=words(b"no image"))
        assert "image_embeds must be given" in refusal(triton, "decoder", prompt=words(b"two"))
        caption = infer(triton, image=words(images[0])).as_numpy("caption")
        assert caption[0, 0].decode() == next(iter(samples.values()))
        streams.ask(b"no image", {})
        with pytest.raises(InferenceServerException, match="image must be a JPEG"):
            streams.answer()
        streams.ask(images[0], {})
        (pieces,) = streams.gather()
        assert text(pieces) == next(iter(samples.values()))


# appended to an adapter: when the model ends, it counts the errors that only the garbage collector could free
COUNT_GARBAGE = """
import gc
from blipstream.errors import BlipstreamError
gc.collect()
gc.disable()

class TritonPythonModel(TritonPythonModel):
    def finalize(self):
        if hasattr(super(), "finalize"):
            super().finalize()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        print("left behind:", sum(isinstance(each, BlipstreamError) for each in gc.garbage), flush=True)
"""


def test_refused_requests_leave_nothing_for_the_garbage_collector(artifacts: Path, tmp_path: Path) -> None:
    """Otherwise their tensors would stay in memory until a full collection."""
    shutil.copytree(artifacts, tmp_path / "models")
    for model in ("preprocess", "encoder", "decoder", "caption_stream"):
        with (tmp_path / "models" / model / "1/model.py").open("a") as adapter:
            adapter.write(COUNT_GARBAGE)
    log = tmp_path / "log"
    with TritonServer(
        tmp_path / "models", config="cpu", http_port=0, grpc_port=0, metrics_port=0, log_path=log
    ) as server:
        with InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as triton:
            for _ in range(3):
                refusal(triton, "preprocess", image=words(b"no image"))
                refusal(triton, "encoder", pixels=PIXELS[:, :1])
                refusal(triton, "decoder", image_embeds=EMBEDS, prompt=words(b"\xff"))
        streams = Streams(server)
        streams.ask(b"no image", {})
        with pytest.raises(InferenceServerException, match="image must be a JPEG"):
            streams.answer()
        streams.close()
    counts = re.findall(r"left behind: (\d+)", log.read_text())
    assert counts == ["0"] * 5  # one for each process: preprocess has two


def test_models_of_two_checkpoints_are_not_served(artifacts: Path, tmp_path: Path) -> None:
    """For example, somebody copied the decoder of one beside the encoder of another, and their shapes fit."""
    repository, log = tmp_path / "models", tmp_path / "log"
    shutil.copytree(artifacts, repository)
    config = repository / "decoder/1/artifact/config.json"
    values = json.loads(config.read_text())
    revision = values["revision"][:12]
    config.write_text(json.dumps(values | {"checkpoint": "another", "revision": "0123456789abcdef"}))
    sentence = (
        r"was built from [\w-]+@\w{12} and \w+ from [\w-]+@\w{12}, "
        rf"where one checkpoint is expected in {repository}"
    )
    server = TritonServer(repository, config="cpu", http_port=0, grpc_port=0, metrics_port=0, log_path=log)
    with pytest.raises(ServerError, match=sentence), server:
        pass
    said = log.read_text()
    # by caption_stream, too, which loads the decoder's artifact
    assert f"decoder was built from another@0123456789ab and preprocess from emoji-demo@{revision}" in said
    for model in ("preprocess", "encoder", "decoder", "caption_stream"):
        assert f"failed to load '{model}' version 1: Internal: ArtifactError" in said
