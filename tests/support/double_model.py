# SPDX-License-Identifier: Apache-2.0
"""A model that doubles numbers, on the real tritonserver, and what its server leaves."""

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

from blipstream.server import proc
from blipstream.server.triton import TritonServer

CONFIG = """
name: "NAME"
backend: "python"
max_batch_size: 4
input [{ name: "x" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [-1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""
DOUBLE = """
import triton_python_backend_utils as pb
import blipstream.errors
import PIL.Image  # the environment's packages are there

class TritonPythonModel:
    def execute(self, requests):
        x = [pb.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb.InferenceResponse([pb.Tensor("y", 2 * value)]) for value in x]
"""
ANY: dict[str, Any] = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}


def write_model(repository: Path, name: str, code: str) -> None:
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(code)
    (folder / "config.pbtxt").write_text(CONFIG.replace("NAME", name))


def leftovers() -> list[Any]:
    mine = f"blipstream-{os.getpid()}-"
    commands = [(p, p.read_bytes()) for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
    return [*Path("/dev/shm").glob(f"{mine}*"), *(c for c in commands if mine.encode() in c[1])]  # noqa: S108


def infer(server: TritonServer, values: list[float]) -> list[float]:
    tensor = {"name": "x", "shape": [1, len(values)], "datatype": "FP32", "data": values}
    url = f"{server.http_url}/v2/models/double/infer"
    with urllib.request.urlopen(url, json.dumps({"inputs": [tensor]}).encode()) as response:
        data: list[float] = json.load(response)["outputs"][0]["data"]
        return data


def running_stubs(server: TritonServer) -> list[int]:
    return [pid for pid in proc.running(server.pid) if proc.stub_model(pid)]
