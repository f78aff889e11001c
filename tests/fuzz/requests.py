# SPDX-License-Identifier: Apache-2.0
"""Broken requests: right requests for every model, in which one to three parts are made wrong."""

import json
import math
import struct
from base64 import b64encode
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from blipstream_client._tensors import from_raw
from tests.fuzz.images import CORPUS

SIDE, PATCHES, WIDTH = 192, 145, 192  # of the demo checkpoint
IMAGE = CORPUS["png palette"]
LARGEST = 1 << 25  # bytes of a tensor, since several mutations could make it 65 times as large again and again
OPTIONS: dict[str, tuple[str, list[Any]]] = {
    "prompt": ("BYTES", [b"", b"two", b"\xff\xfe", b"\0", b"a " * 600, "\u202e𝔘".encode(), b"[DEC][SEP]"]),
    "include_prompt": ("BOOL", [0, 1, 2, 255]),
    "adapter": ("BYTES", [b"", b"fr", b"../../artifact", b".", b"\0", b"\xff", b"x" * 10_000, "\u202e𝔘".encode()]),
    "max_tokens": ("INT32", [1, 2, 0, -1, 10**6, 2**31 - 1, -(2**31)]),
    "min_tokens": ("INT32", [0, 1, -1, 31, 2**31 - 1]),
    "num_captions": ("INT32", [1, 2, 10, 0, -5, 11]),
    "repetition_penalty": ("FP32", [1, 1.5, 0, -1, float("nan"), float("inf"), 1e-45, 3e38]),
    "no_repeat_ngram_size": ("INT32", [0, 1, 2, -1, 2**31 - 1]),
    "num_beams": ("INT32", [1, 3, 10, 0, -1, 11]),
    "length_penalty": ("FP32", [0, 1, -10, float("nan"), float("-inf")]),
    "early_stopping": ("BOOL", [0, 1]),
    "do_sample": ("BOOL", [1, 0]),
    "temperature": ("FP32", [0.01, 1, 100, 0, -1, float("nan"), float("inf")]),
    "top_k": ("INT32", [0, 1, 500, 2**31 - 1, -1]),
    "top_p": ("FP32", [1, 0.5, 0, 1e-45, -1, float("nan")]),
    "seed": ("INT64", [0, 1, -(2**63), 2**63 - 1]),
    "resize_mode": ("BYTES", [b"letterbox", b"center_crop", b"", b"\xff", b"x" * 5000]),
}
EXPLAIN: dict[str, tuple[str, list[Any]]] = {
    "given_caption": ("BYTES", [b"a dog", b"", b" ", b"\xff", b"a " * 600, b"x" * 5000, b"[SEP]", "猫".encode()]),
    "caption_index": ("INT32", [0, 1, -1, 9, 10, 2**31 - 1]),
    "layer": ("INT32", [0, 2, -1, -2, 3, 2**31 - 1, -(2**31)]),
    "head": ("INT32", [0, 3, -1, -2, 4]),
    "method": ("BYTES", [b"attention", b"rollout", b"gradient", b"", b"\xff", b"x" * 5000]),
}
TEXTS: tuple[list[bytes], ...] = (
    [b"two whales"],
    [b"two whales", b"a dog above a door", b"a"],
    [b"a dog"] * 1000,
    [b"a dog"] * 1001,
    [],
    [b""],
    [b"a", b" "],
    [b"\xff\xfe"],
    [b"\0"],
    [b"a " * 600],
    [b"x" * 5000],
    [b"[CLS][SEP][PAD]"],
    ["\u202e𝔘 猫".encode()],
)
RERANK: dict[str, tuple[str, list[Any]]] = {
    "rerank": ("INT32", [1, 2, 10, 0, -1, 11, 2**31 - 1]),
    "min_match": ("FP32", [0, 0.5, 1, 2, -1, float("nan"), float("inf")]),
}
TRUNCATE: dict[str, tuple[str, list[Any]]] = {"truncate": ("BOOL", [0, 1, 2, 255])}
ALL_OPTIONS = OPTIONS | EXPLAIN | RERANK | TRUNCATE
PIXEL_OPTIONS = [name for name in OPTIONS if name != "resize_mode"]
OPTIONS_OF = {
    "caption": [*OPTIONS],
    "caption_stream": [*OPTIONS],
    "caption_pixels": PIXEL_OPTIONS,
    "explain": [*OPTIONS, *EXPLAIN],
    "rerank": [*OPTIONS, *RERANK],
    "decoder": [*PIXEL_OPTIONS, *EXPLAIN],
    "attention": ["adapter", "layer", "head", "method"],
    "adapters": [],
    "preprocess": ["resize_mode", "adapter", *EXPLAIN],
    "encoder": [],
    "match": ["resize_mode", "truncate"],
    "explain_match": ["resize_mode", "layer", "head"],
    "embed_image": ["resize_mode"],
    "embed_text": ["truncate"],
    "matcher": ["truncate", "layer", "head"],
    "match_encoder": [],
}
WITH_IMAGE = ("match", "explain_match", "embed_image")  # models of matching
DTYPES = {"BOOL": np.uint8, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32}
ENTRIES = (
    "caption",
    "caption",
    "caption_pixels",
    "caption_stream",
    "explain",
    "rerank",
    "attention",
    "adapters",
    "decoder",
    "encoder",
    "preprocess",
    "match",
    "match",
    "explain_match",
    "embed_image",
    "embed_text",
    "matcher",
    "match_encoder",
)
TYPES = (
    "BYTES",
    "BOOL",
    "UINT8",
    "INT8",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "",
    "STRING",
    "fp32",
    "\U0001f4a5",
)
SHAPES: tuple[list[int], ...] = (
    [],
    [0],
    [1],
    [1, 0],
    [0, 1],
    [-1, 1],
    [1, -1],
    [2, 1],
    [65, 1],
    [1, 1, 1],
    [2**62, 4],
    [2**63 - 1, 2],
    [2**31, 2**31],
)


def pack(words: list[bytes]) -> bytes:
    return b"".join(len(word).to_bytes(4, "little") + word for word in words)


def right_request(model: str, random: Random) -> Any:
    """A request that the model can answer, unless an option's value is out of range."""
    request = service_pb2.ModelInferRequest(model_name=model)

    def add(name: str, datatype: str, shape: list[int], raw: bytes) -> None:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)

    def add_texts(texts: list[bytes]) -> None:
        add("text", "BYTES", [1, len(texts)], pack(texts))

    if model in ("caption", "caption_stream", "explain", "rerank", "preprocess", *WITH_IMAGE):
        add("image", "BYTES", [1, 1], pack([IMAGE]))
    elif model == "embed_text":
        add_texts(random.choice([texts for texts in TEXTS if len(texts) == 1]))
    elif model in ("decoder", "attention", "matcher"):
        embeds = np.random.default_rng(random.randrange(9)).normal(size=(PATCHES, WIDTH)).astype(np.float16)
        if random.random() < 0.3:
            embeds.flat[random.randrange(embeds.size)] = random.choice((np.nan, np.inf, -np.inf, 65504))
        if random.random() < 0.1:
            embeds[:] = random.choice((np.nan, np.inf, 65504))
        add("image_embeds", "FP16", [1, PATCHES, WIDTH], embeds.tobytes())
    elif model == "adapters":
        add("adapter", "BYTES", [1, 1], pack([random.choice(OPTIONS["adapter"][1])]))
    else:
        add("pixels", "UINT8", [1, SIDE, SIDE, 3], bytes(SIDE * SIDE * 3))
    if model == "attention":
        add("caption", "BYTES", [1, 1], pack([random.choice(EXPLAIN["given_caption"][1])]))
    if model == "explain_match":
        add("text", "BYTES", [1, 1], pack([random.choice(EXPLAIN["given_caption"][1])]))
    if model == "matcher" and random.random() < 0.3:
        add("explained_text", "BYTES", [1, 1], pack([random.choice(EXPLAIN["given_caption"][1])]))
    elif model in ("match", "matcher"):
        add_texts(random.choice(TEXTS))
    names = OPTIONS_OF[model]
    for name in random.sample(names, min(len(names), random.choice((0, 1, 1, 2, 4)))):
        datatype, values = ALL_OPTIONS[name]
        value: Any = random.choice(values)
        raw = pack([value]) if datatype == "BYTES" else np.array([value]).astype(DTYPES[datatype]).tobytes()
        add(name, datatype, [1, 1], raw)
    return request


def rename(request: Any, random: Random) -> None:
    random.choice(request.inputs).name = random.choice(
        ("image", "pixels", "prompt", "", "x" * 5000, "caption", "../image", "text", "image_embeds")
    )


def retype(request: Any, random: Random) -> None:
    random.choice(request.inputs).datatype = random.choice(TYPES)


def reshape(request: Any, random: Random) -> None:
    shape = random.choice(request.inputs).shape
    new = random.choice(SHAPES) if random.random() < 0.7 or not shape else [*shape]
    if new and random.random() < 0.3:
        new = [*new]
        new[random.randrange(len(new))] = random.choice((0, -1, 2, 3, 64, 65, 2**31, 2**40, 2**63 - 1))
    shape[:] = new


def resize(request: Any, random: Random) -> None:
    """Make contents too short or too long for their shape."""
    raw = request.raw_input_contents
    at = random.randrange(len(raw))
    raw[at] = random.choice((raw[at][:-1], raw[at] + b"\0", b"", raw[at] * 2, raw[at][:3], raw[at] + pack([b"more"])))


def lie_of_length(request: Any, random: Random) -> None:
    """BYTES that are said to be longer or shorter than they are."""
    raw = request.raw_input_contents
    at = random.randrange(len(raw))
    length = random.choice((0, 1, len(raw[at]), 2**31 - 1, 2**31, 2**32 - 1))
    raw[at] = length.to_bytes(4, "little") + raw[at][4:]


def miscount(request: Any, random: Random) -> None:
    raw = request.raw_input_contents
    if random.random() < 0.5:
        del raw[random.randrange(len(raw))]
    else:
        raw.append(random.choice((b"", b"\0", pack([IMAGE]))))


def batch(request: Any, random: Random) -> None:
    """Several images at once, with options for some of them; 65 are too many.

    Not 64: with many such requests under way Triton 2.51 was seen to put more than 64 images into one batch.
    """
    count = random.choice((2, 3, 65))
    for number, tensor in enumerate(request.inputs[: len(request.raw_input_contents)]):
        raw = request.raw_input_contents[number]
        if tensor.shape and len(raw) * count < LARGEST and random.random() < 0.8:
            tensor.shape[0] = count
            request.raw_input_contents[number] = raw * count


def double(request: Any, random: Random) -> None:
    """Send an input twice."""
    at = random.randrange(len(request.inputs))
    request.inputs.add().CopyFrom(request.inputs[at])
    request.raw_input_contents.append(request.raw_input_contents[at] if at < len(request.raw_input_contents) else b"")


def leave_out(request: Any, random: Random) -> None:
    at = random.randrange(len(request.inputs))
    del request.inputs[at]
    del request.raw_input_contents[at : at + 1]


def type_contents(request: Any, random: Random) -> None:
    """Send typed contents, instead of raw ones or beside them."""
    tensor = random.choice(request.inputs)
    kind = random.choice(("bytes", "int", "int64", "uint", "fp32", "fp64", "bool"))
    value: Any = IMAGE if kind == "bytes" else random.choice((0, 1))
    getattr(tensor.contents, f"{kind}_contents").extend([value] * random.choice((1, 2, 100)))
    if random.random() < 0.7:
        del request.raw_input_contents[:]


def address_otherwise(request: Any, random: Random) -> None:
    request.model_version = random.choice(("1", "0", "2", "-1", "x", "1.0", "99999999999999999999"))
    if random.random() < 0.3:
        request.model_name = random.choice(("", "nothing", "caption/1", "../caption", "x" * 5000))


def want_outputs(request: Any, random: Random) -> None:
    """Ask for outputs, but without the parameter `classification`: on words, Triton 2.51 divides by their size, 0."""
    for _ in range(random.choice((1, 2, 50))):
        request.outputs.add(name=random.choice(("caption", "score", "pixels", "nothing", "", "match", "embedding")))


def set_parameters(request: Any, random: Random) -> None:
    """Set parameters of Triton, also those for shared memory, to values that make no sense."""
    tensor = random.choice(request.inputs)
    match random.randrange(5):
        case 0:
            tensor.parameters["shared_memory_region"].string_param = random.choice(("nowhere", "", "/etc/passwd"))
            tensor.parameters["shared_memory_byte_size"].int64_param = random.choice((0, -1, 1, 2**62))
            tensor.parameters["shared_memory_offset"].int64_param = random.choice((0, -1, 2**62))
        case 1:
            request.parameters["timeout"].int64_param = random.choice((-1, 0, 1, 2**63 - 1))
        case 2:
            request.parameters["priority"].uint64_param = random.choice((0, 1, 2**64 - 1))
        case 3:
            request.parameters["sequence_id"].int64_param = random.choice((1, -1, 2**63 - 1))
            request.parameters["sequence_start"].bool_param = True
        case _:
            request.parameters[random.choice(("x", "", "triton_x", "headers"))].string_param = "x" * 100
            request.parameters["timeout"].string_param = "soon"


MUTATIONS: tuple[Callable[[Any, Random], None], ...] = (
    rename, retype, reshape, reshape, resize, resize, lie_of_length, miscount, batch, double, leave_out, type_contents,
    address_otherwise, want_outputs, set_parameters,
)  # fmt: skip


def broken_request(seed: int, number: int) -> Any:
    """A request with its damage, the same each time. Some requests are right."""
    random = Random(f"request {seed} {number}")
    request = right_request(random.choice(ENTRIES), random)
    for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
        if request.inputs and request.raw_input_contents:
            random.choice(MUTATIONS)(request, random)
    return request


def garble(data: bytes, random: Random) -> bytes:
    """Damage the bytes of a message, so that it may not even be one."""
    broken = bytearray(data)
    for _ in range(random.choice((1, 1, 4))):
        if broken:
            broken[random.randrange(min(len(broken), 200))] = random.randrange(256)
    return bytes(broken[: random.randrange(len(broken) + 1)]) if random.random() < 0.2 else bytes(broken)


def as_http(request: Any, random: Random) -> tuple[str, bytes, dict[str, str]]:
    """The same request over HTTP: path, body and headers. Contents are in the JSON, or behind it."""
    inputs, tail = [], b""
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=False):
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if random.random() < 0.6 or math.prod(tensor.shape) > 2**24:  # as JSON, it would end Triton 2.51
            entry["parameters"] = {"binary_data_size": len(raw) + random.choice((0, 0, 0, 0, 1, -1, 2**40))}
            tail += raw
        else:
            entry["data"] = _as_json(tensor, raw, random)
        inputs.append(entry)
    head = json.dumps(
        {"inputs": inputs} | random.choice(({}, {}, {"outputs": []}, {"parameters": {"timeout": -1}}))
    ).encode()
    if random.random() < 0.15:
        head = garble(head, random)
    length = len(head) + random.choice((0, 0, 0, 0, 0, 0, 1, -1, 10**6, -(10**9)))
    headers = {"Inference-Header-Content-Length": str(length)} if tail or random.random() < 0.1 else {}
    # If a path comes in two reads, Triton 2.51 takes it for two paths: it answers the first, or closes the connection
    name = request.model_name[:1000] if request.model_name.isidentifier() else "caption"
    return f"/v2/models/{name}/infer", head + tail, headers


def _as_json(tensor: Any, raw: bytes, random: Random) -> Any:
    if random.random() < 0.2:
        return random.choice((None, {}, "text", [[]], [None], [[[1]]], [1e400], [True, "x"], -1))
    try:
        values = from_raw(tensor.datatype, list(tensor.shape), raw)
    except (ValueError, LookupError, TypeError, struct.error):
        return [0]
    flat: list[Any] = values.reshape(-1)[:2000].tolist()
    return [value.decode("latin-1") if isinstance(value, bytes) else value for value in flat]


GENERATE = (
    ("caption_stream", "generate_stream"),
    *(
        (model, "generate")
        for model in ("caption_stream", "caption", "explain", "rerank", *WITH_IMAGE, "embed_text", "adapters")
    ),
)


def broken_generate(seed: int, number: int) -> tuple[str, bytes, dict[str, str]]:
    """A request for `generate_stream` or `generate`: path, body and headers."""
    random = Random(f"generate {seed} {number}")
    model, way = random.choice(GENERATE)
    body: dict[str, Any] = {"image": f"data:image/png;base64,{b64encode(IMAGE).decode()}"}
    if model in ("match", "explain_match", "embed_text"):
        texts = [text.decode("latin-1") for text in random.choice(TEXTS)]
        body["text"] = texts[0] if len(texts) == 1 else texts
    if model == "adapters":
        body["adapter"] = random.choice(OPTIONS["adapter"][1]).decode("latin-1")
    if model in ("embed_text", "adapters"):
        del body["image"]
    names = OPTIONS_OF[model]
    for name in random.sample(names, min(len(names), random.choice((0, 1, 2, 3)))):
        value = random.choice(ALL_OPTIONS[name][1])
        body[name] = value.decode("latin-1") if isinstance(value, bytes) else value
    if random.random() < 0.5:
        body[random.choice((*OPTIONS, "image", "text", "nothing", "id", "parameters"))] = random.choice(
            (None, [], {}, [[1]], "x", -1, 1e308, True, "data:,x", 2**70)
        )
    data = json.dumps(body).encode()
    return f"/v2/models/{model}/{way}", garble(data, random) if random.random() < 0.3 else data, {}
