# SPDX-License-Identifier: Apache-2.0
"""The messages of Triton itself, which client and server know by their words: a real server still says them."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from blipstream.errors import BackendDied, Overloaded, Stopping, TimedOut, parse_error
from blipstream.server.triton import TritonServer
from blipstream_client import (
    AccessDenied,
    BlipstreamError,
    Client,
    ModelNotReady,
    RequestTimeout,
    ServerError,
    ServerOverloaded,
    ServerUnreachable,
)
from blipstream_client._triton_messages import MESSAGES
from tests.support.waiting import wait_until

SECONDS = 120  # to wait for what comes much sooner, unless the machine is busy

CONFIG = """
name: "NAME"
backend: "python"
max_batch_size: 1
input [{ name: "image" data_type: TYPE_STRING dims: [1] }]
output [
  { name: "caption" data_type: TYPE_STRING dims: [-1] },
  { name: "score" data_type: TYPE_FP32 dims: [-1] },
  { name: "num_tokens" data_type: TYPE_INT32 dims: [-1] },
  { name: "token_scores" data_type: TYPE_FP32 dims: [-1, -1] }
]
dynamic_batching {
  default_queue_policy { max_queue_size: 1 default_timeout_microseconds: 300000000 allow_timeout_override: true }
}
instance_group [{ kind: KIND_CPU count: 1 }]
"""

# Images are commands: `wait FILE`, `die` and anything else.
CAPTION = """
import os, signal, time
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.dirname(os.path.realpath(args["model_repository"]))  # the server has a link to it
        while args["model_name"] == "slow" and not os.path.exists(folder + "/slow.may-load"):
            time.sleep(0.01)

    def execute(self, requests):
        return [self.answer(pb.get_input_tensor_by_name(each, "image").as_numpy()[0, 0].decode()) for each in requests]

    def answer(self, image):
        command, _, path = image.partition(" ")
        if command == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if command == "wait":
            open(path + ".begun", "w").close()
            while not os.path.exists(path):
                time.sleep(0.01)
        return pb.InferenceResponse([
            pb.Tensor("caption", np.array([[image]], dtype=object)),
            pb.Tensor("score", np.zeros((1, 1), dtype=np.float32)),
            pb.Tensor("num_tokens", np.full((1, 1), 2, dtype=np.int32)),
            pb.Tensor("token_scores", np.zeros((1, 1, 2), dtype=np.float32)),
        ])
"""

# Calls the model `caption`, or another for `call MODEL IMAGE`, and says what Triton said.
CALLER = """
import numpy as np
import os, time
import triton_python_backend_utils as pb

OUTPUTS = ["caption", "score", "num_tokens", "token_scores"]

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(each) for each in requests]

    def answer(self, request):
        image = pb.get_input_tensor_by_name(request, "image").as_numpy()[0, 0].decode()
        model = "caption"
        if image.startswith("call "):
            _, model, image = image.split(" ", 2)
        if image.startswith("later "):
            path = image.split(" ")[1]
            open(path + ".begun", "w").close()
            while not os.path.exists(path):
                time.sleep(0.01)
        response = pb.InferenceRequest(
            model_name=model,
            inputs=[pb.Tensor("image", np.array([[image]], dtype=object))],
            requested_output_names=OUTPUTS,
            timeout=request.timeout(),
        ).exec()
        if response.has_error():
            return pb.InferenceResponse(error=pb.TritonError(response.error().message()))
        return pb.InferenceResponse(response.output_tensors())
"""

MODELS = dict.fromkeys(("caption", "patient", "mortal", "slow", "unloaded"), CAPTION) | {"caller": CALLER}
PATIENT = "dynamic_batching { preferred_batch_size: 8 max_queue_delay_microseconds: 500000 "


class ExplicitTriton(TritonServer):
    """Loads models when it is told to, as Kubernetes and others have it."""

    def _command_line(self, *arguments: Any) -> list[str]:
        more = ["--model-control-mode=explicit", *(f"--load-model={name}" for name in MODELS if name != "slow")]
        return [each for each in super()._command_line(*arguments) if "model-control-mode" not in each] + more


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("messages") / "models"
    for name, model in MODELS.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.py").write_text(model)
        config = CONFIG.replace("NAME", name)
        if name == "patient":
            config = config.replace("max_batch_size: 1", "max_batch_size: 8").replace("dynamic_batching {", PATIENT)
        (folder / name / "config.pbtxt").write_text(config)
    return folder


def started(repository: Path) -> TritonServer:
    return ExplicitTriton(
        repository, http_port=0, grpc_port=0, metrics_port=0, admin_key="s3cret", exit_timeout=SECONDS
    )


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with started(repository) as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def url(server: TritonServer, request: pytest.FixtureRequest) -> str:
    return str(getattr(server, f"{request.param}_url"))


@contextmanager
def administration(server: TritonServer, key: str = "s3cret") -> Iterator[Callable[..., None]]:
    """Calls to the administrative API."""
    headers = {"triton-grpc-protocol-blipstream-admin": key}
    with InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        yield lambda method, *arguments: getattr(client, method)(*arguments, headers=headers)


def refused(url: str, image: bytes = b"image", model: str = "caption") -> BlipstreamError:
    """The error that the client raises."""
    with Client(url, model=model, retries=0, timeout=SECONDS) as client, pytest.raises(BlipstreamError) as caught:
        client.caption(image)
    return caught.value


def told(server: TritonServer, model: str, image: bytes = b"image", **arguments: Any) -> str:
    """What Triton says to a request that our client does not send. "" if it does as it was asked."""
    tensor = InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image]], np.object_))
    with InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        try:
            client.infer(model, [tensor], **arguments)
        except InferenceServerException as error:
            return str(error.message())
    return ""


@contextmanager
def busy(server: TritonServer, folder: Path) -> Iterator[None]:
    """As long as this lasts, a request keeps the model `caption` busy."""
    done = folder / "done"
    with ThreadPoolExecutor(1) as threads, Client(server.grpc_url, timeout=SECONDS) as client:
        answer = threads.submit(client.caption, f"wait {done}".encode())
        try:
            wait_until(Path(f"{done}.begun").exists, SECONDS)
            yield
        finally:
            done.touch()
            wait([answer], SECONDS)


@contextmanager
def full_queue(server: TritonServer, folder: Path) -> Iterator[BlipstreamError]:
    """As long as this lasts, the queue of `caption` is full. Gives the error that one request too many has met."""
    with (
        busy(server, folder),
        ThreadPoolExecutor(8) as threads,
        Client(server.grpc_url, retries=0, timeout=SECONDS) as client,
    ):
        asked: list[Future[Any]] = [threads.submit(client.caption, b"image") for _ in range(8)]
        finished, _ = wait(asked, SECONDS, FIRST_COMPLETED)
        error = finished.pop().exception()
        assert isinstance(error, BlipstreamError)
        yield error
        (folder / "done").touch()


def words_of(kind: type[Exception], table: dict[str, Any]) -> list[str]:
    return [words for words, meant in table.items() if kind in (meant, getattr(meant, "kind", None))]


def test_a_full_queue(server: TritonServer, url: str, tmp_path: Path) -> None:
    with full_queue(server, tmp_path) as error:
        called = refused(url, model="caller")
        direct = refused(url)
    for each in (error, direct):
        assert (type(each), str(each)) == (ServerOverloaded, "Exceeds maximum queue size")
    assert type(parse_error(str(called))) is Overloaded


@pytest.mark.parametrize("through", ["", "caller"], ids=["direct", "by a model"])
def test_a_timeout_in_the_queue(server: TritonServer, through: str) -> None:
    """The model `patient` waits for a whole batch for longer than the request has time."""
    model, image = (through, b"call patient image") if through else ("patient", b"image")
    message = told(server, model, image, timeout=1000)  # microseconds
    assert "Request timeout expired" in message
    assert type(parse_error(message)) is TimedOut
    assert MESSAGES["Request timeout expired"].kind is RequestTimeout


def test_a_model_that_does_not_exist(url: str) -> None:
    error = refused(url, model="nonesuch")
    assert (type(error), error.transient) == (ModelNotReady, False)
    assert str(error) == "This server has no nonesuch; it has caption"


def test_a_model_that_is_unloaded(server: TritonServer, url: str) -> None:
    with administration(server) as call:
        call("load_model", "unloaded")
        call("unload_model", "unloaded")
    with Client(url, model="unloaded") as client:
        wait_until(lambda: not client.is_ready(), SECONDS)
    error = refused(url, model="unloaded")
    assert (type(error), error.transient) == (ModelNotReady, True)
    assert "has no available versions" in str(error)


def test_a_model_that_is_being_loaded(server: TritonServer, repository: Path, url: str) -> None:
    may_load = repository / "slow.may-load"
    may_load.unlink(missing_ok=True)
    with administration(server) as call:
        loading = threading.Thread(target=call, args=("load_model", "slow"))
        loading.start()
        try:
            wait_until(lambda: refused(url, model="slow").transient, SECONDS)
            error = refused(url, model="slow")
            of_a_version = told(server, "slow", model_version="1")
        finally:
            may_load.touch()
            loading.join()
        call("unload_model", "slow")
    assert type(error) is ModelNotReady
    assert "has no available versions" in str(error)
    assert "is not at ready state" in of_a_version


def test_an_interface_that_wants_a_key(server: TritonServer) -> None:
    with administration(server, "wrong") as call, pytest.raises(InferenceServerException) as caught:
        call("get_model_repository_index")
    message = str(caught.value.message())
    assert [words for words in MESSAGES if words in message] == words_of(AccessDenied, MESSAGES)


def test_a_model_whose_process_has_died(repository: Path) -> None:
    with started(repository) as server:
        refused(server.grpc_url, b"die", model="mortal")
        for url in (server.grpc_url, server.http_url):
            error = refused(url, model="mortal")
            assert (type(error), error.transient) == (ServerError, True)
            called = refused(url, b"call mortal image", model="caller")
            assert type(parse_error(str(called))) is BackendDied


def test_a_server_that_is_stopping(repository: Path, tmp_path: Path) -> None:
    """It ends what it has begun, and says to others that it is stopping."""
    with started(repository) as server:
        later = tmp_path / "later"
        with (
            busy(server, tmp_path),
            ThreadPoolExecutor(1) as threads,
            Client(server.grpc_url, model="caller", retries=0, timeout=SECONDS) as client,
        ):
            called = threads.submit(client.caption, f"later {later}".encode())
            wait_until(Path(f"{later}.begun").exists, SECONDS)
            os.kill(server.pid, signal.SIGTERM)
            error = until_refused(server.grpc_url)
            later.touch()
            assert type(parse_error(str(called.exception(SECONDS)))) is Stopping
    # the first for a moment only, and then the second until all models are unloaded
    assert type(error) in (ServerUnreachable, ModelNotReady)
    assert error.transient
    assert "Server is stopping" in str(error) or "has no available versions" in str(error)


def test_triton_has_a_message_for_the_moment_when_it_stops(server: TritonServer) -> None:
    """That moment cannot be met on purpose, so this looks for the message in Triton's library."""
    maps = Path(f"/proc/{server.pid}/maps").read_text().splitlines()
    libraries = {line.split()[-1] for line in maps if "tritonserver" in line}
    assert any(b"Server is stopping" in Path(library).read_bytes() for library in libraries)


def until_refused(url: str) -> BlipstreamError:
    """Ask for the model `caption`, which is busy, until its queue is closed."""
    with Client(url, retries=0, timeout=SECONDS) as client:
        while True:
            try:
                client.caption(b"image", timeout=1)
            except (RequestTimeout, ServerOverloaded):  # it is in the queue, or the queue is full
                continue
            except BlipstreamError as error:
                return error
