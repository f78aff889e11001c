# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol over HTTP with curl: JSON, and binary data for what JSON cannot hold."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from blipstream.server.triton import TritonServer
from tests.conftest import SAMPLES

BOOK = SAMPLES / "a-book.jpg"
CAPTION = "a book on a purple background"


def curl(url: str, *options: str, body: bytes | None = None) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("there is no curl here: apt-get install curl")
    data = ["--data-binary", "@-"] if body is not None else []
    done = subprocess.run(
        [program, "--silent", "--show-error", "--write-out", "\n%{http_code}", *options, *data, url],
        input=body,
        capture_output=True,
        check=True,
        timeout=120,
    )
    content, _, status = done.stdout.rpartition(b"\n")
    return int(status), json.loads(content) if content else None


def infer(server: TritonServer, inputs: list[dict[str, Any]], binary: bytes = b"", **request: Any) -> tuple[int, Any]:
    header = json.dumps({"inputs": inputs, **request}).encode()
    lengths = ["--header", f"Inference-Header-Content-Length: {len(header)}"] if binary else []
    return curl(f"{server.http_url}/v2/models/caption/infer", *lengths, body=header + binary)


def image_input(image: Path) -> tuple[dict[str, Any], bytes]:
    """An input, and its bytes, which follow the JSON."""
    element = image.stat().st_size.to_bytes(4, "little") + image.read_bytes()
    described = {"name": "image", "shape": [1, 1], "datatype": "BYTES"}
    return {**described, "parameters": {"binary_data_size": len(element)}}, element


def option(name: str, datatype: str, value: object) -> dict[str, Any]:
    return {"name": name, "shape": [1, 1], "datatype": datatype, "data": [value]}


def outputs(answer: Any) -> dict[str, Any]:
    return {output["name"]: output["data"] for output in answer["outputs"]}


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/v2/models/caption/ready"])
def test_health(server: TritonServer, path: str) -> None:
    assert curl(server.http_url + path)[0] == 200


def test_server_metadata(server: TritonServer) -> None:
    status, answer = curl(f"{server.http_url}/v2")
    assert status == 200
    assert answer["name"].startswith("emoji-demo@")
    assert {"statistics", "binary_tensor_data"} <= set(answer["extensions"])


def test_model_metadata(server: TritonServer) -> None:
    status, answer = curl(f"{server.http_url}/v2/models/caption")
    assert status == 200
    inputs = {each["name"]: (each["datatype"], each["shape"]) for each in answer["inputs"]}
    assert inputs["image"] == ("BYTES", [-1, 1])
    assert inputs["num_beams"] == ("INT32", [-1, 1])
    assert {each["name"]: each["datatype"] for each in answer["outputs"]} == {
        "caption": "BYTES",
        "score": "FP32",
        "num_tokens": "INT32",
        "token_scores": "FP32",
    }


def test_image_as_binary_and_answer_as_json(server: TritonServer) -> None:
    described, element = image_input(BOOK)
    status, answer = infer(server, [described], element, id="my-own")
    assert status == 200
    assert answer["id"] == "my-own"
    assert outputs(answer)["caption"] == [CAPTION]


def test_options_as_json_beside_a_binary_image(server: TritonServer) -> None:
    described, element = image_input(BOOK)
    options = [
        option("num_beams", "INT32", 3),
        option("num_captions", "INT32", 2),
        option("early_stopping", "BOOL", True),
        option("length_penalty", "FP32", 1.5),
        option("prompt", "BYTES", "a"),
    ]
    status, answer = infer(server, [described, *options], element)
    assert status == 200, answer
    assert len(outputs(answer)["caption"]) == 2
    assert outputs(answer)["caption"][0] == CAPTION


def test_chosen_outputs(server: TritonServer) -> None:
    described, element = image_input(SAMPLES / "a-unicorn.jpg")
    status, answer = infer(server, [described], element, outputs=[{"name": "num_tokens"}])
    assert status == 200
    assert list(outputs(answer)) == ["num_tokens"]


def test_all_outputs_after_another_chose_one(server: TritonServer) -> None:
    described, element = image_input(SAMPLES / "two-whales.jpg")
    infer(server, [described, option("max_tokens", "INT32", 21)], element, outputs=[{"name": "num_tokens"}])
    _, answer = infer(server, [described, option("max_tokens", "INT32", 21)], element)
    assert outputs(answer).get("caption") == ["two whales on a purple background"]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([option("image", "BYTES", "an image")], "image must be a JPEG"),
        ([option("image", "BYTES", "/9j/4AAQSkZJRg==")], "image must be a whole JPEG file"),
        ([option("picture", "BYTES", "x")], "unexpected inference input 'picture'"),
        ([], "image"),
    ],
)
def test_refused(server: TritonServer, inputs: list[dict[str, Any]], sentence: str) -> None:
    """In JSON an image is base64, since JSON has no bytes."""
    status, answer = infer(server, inputs)
    assert status == 400
    assert sentence in answer["error"]
    assert "Traceback" not in answer["error"]


def test_no_such_model(server: TritonServer) -> None:
    status, answer = curl(f"{server.http_url}/v2/models/absent/infer", body=b"{}")
    assert status in (400, 404)
    assert "absent" in answer["error"]
