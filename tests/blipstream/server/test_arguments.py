# SPDX-License-Identifier: Apache-2.0
"""What tritonserver's arguments close and set."""

import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from blipstream.server import arguments
from blipstream.server.arguments import ADMIN_HEADER
from blipstream.server.triton import TritonServer
from tests.support.double_model import ANY

pytestmark = pytest.mark.usefixtures("nothing_left")


def status(server: TritonServer, path: str, key: str = "") -> int:
    """What the server answers to a POST."""
    request = urllib.request.Request(server.http_url + path, b"", {ADMIN_HEADER: key} if key else {})
    try:
        return int(urllib.request.urlopen(request).status)
    except urllib.error.HTTPError as error:
        return error.code


def grpc_status(server: TritonServer, key: str = "") -> str:
    """What the server answers over gRPC to a request for its list of models."""
    headers = {f"triton-grpc-protocol-{ADMIN_HEADER}": key} if key else {}
    try:
        with InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
            client.get_model_repository_index(headers=headers)
    except InferenceServerException as error:
        return str(error.message())
    return "OK"


def test_administrative_apis_need_the_key(repository: Path) -> None:
    with TritonServer(repository, admin_key="s3cret", **ANY) as server:
        assert "s3cret" not in repr(server)
        assert status(server, "/v2/repository/index") == 403
        assert status(server, "/v2/repository/index", "guess") == 403
        assert status(server, "/v2/repository/index", "s3cret") == 200
        assert "This protocol is restricted" in grpc_status(server)
        assert grpc_status(server, "s3cret") == "OK"
        assert "s3cret" not in (server.log_path or Path()).read_text()


def test_administrative_apis_are_closed_unless_one_gives_a_key(repository: Path) -> None:
    with TritonServer(repository, **ANY) as server:
        assert status(server, "/v2/repository/index") == 403
        assert "This protocol is restricted" in grpc_status(server)


def test_each_gpu_has_a_pool_that_holds_batches(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "count_gpus", lambda: 2)
    with TritonServer(repository, **ANY) as server:  # without a GPU, Triton checks the arguments alone
        given = Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")
    pools = [each for each in given if each.startswith("--cuda-memory-pool-byte-size")]
    assert pools == ["--cuda-memory-pool-byte-size=0:1073741824", "--cuda-memory-pool-byte-size=1:1073741824"]
