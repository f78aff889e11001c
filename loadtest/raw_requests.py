# SPDX-License-Identifier: Apache-2.0
"""Requests for captions as they travel, for clients that do with them what ours would not."""

import gzip
import json
import struct
from typing import Any

from tritonclient.grpc import service_pb2

INFER_PATH = "/v2/models/caption/infer"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}  # as curl sends any body unless told otherwise


def caption_request(image: bytes, rows: int = 1, **options: int) -> Any:  # noqa: ANN401
    """A gRPC request to caption one image `rows` times, with options that are INT32 tensors."""
    request = service_pb2.ModelInferRequest(model_name="caption")
    tensors = {"image": ("BYTES", struct.pack("<I", len(image)) + image)}
    tensors |= {name: ("INT32", struct.pack("<i", value)) for name, value in options.items()}
    for name, (datatype, raw) in tensors.items():
        request.inputs.add(name=name, datatype=datatype, shape=[rows, 1])
        request.raw_input_contents.append(raw * rows)
    return request


def caption_body(image: bytes, *, compress: bool = False) -> tuple[bytes, dict[str, str]]:
    """The body of an HTTP request to caption one image, and its headers without a Content-Type."""
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES"}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 4 + len(image)}}]}).encode()
    body = head + struct.pack("<I", len(image)) + image
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return (gzip.compress(body), headers | {"Content-Encoding": "gzip"}) if compress else (body, headers)
