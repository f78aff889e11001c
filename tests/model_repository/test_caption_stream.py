# SPDX-License-Identifier: Apache-2.0
"""The model `caption_stream` with clients other than ours; tests/client has the rest."""

import json
import urllib.request
from base64 import b64encode

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferResult
from tritonclient.utils import InferenceServerException

from blipstream.server.triton import TritonServer
from tests.support.triton_requests import Options, Streams, inputs, text

STREAMING: list[Options] = [
    {},
    {"prompt": "two"},
    {"prompt": "a dog", "include_prompt": False},
    {"max_tokens": 3},
    {"min_tokens": 25, "no_repeat_ngram_size": 3},
    {"do_sample": True, "temperature": 1.5, "seed": 4},
]
WHOLE: list[Options] = [{"num_beams": 3, "num_captions": 2}, {"do_sample": True, "num_captions": 3, "seed": 1}]


def unary(server: TritonServer, image: bytes, options: Options) -> InferResult:
    with InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        return client.infer("caption", inputs(image, options))


@pytest.mark.parametrize("options", [*STREAMING, *WHOLE], ids=str)
def test_pieces_join_to_the_unary_caption(
    server: TritonServer, streams: Streams, images: list[bytes], options: Options
) -> None:
    streams.ask(images[0], options)
    (pieces,) = streams.gather()
    expected, last = unary(server, images[0], options), pieces[-1]
    assert np.array_equal(last.as_numpy("caption"), expected.as_numpy("caption"))
    assert np.array_equal(last.as_numpy("num_tokens"), expected.as_numpy("num_tokens"))
    assert np.allclose(last.as_numpy("score"), expected.as_numpy("score"), atol=0.1)  # bf16, another batch
    assert text(pieces) == expected.as_numpy("caption")[0, 0].decode()
    count = last.as_numpy("num_tokens")[0, 0]
    assert len(pieces) == (1 if options in WHOLE else count)
    scores = [piece.as_numpy("score")[0, 0] for piece in pieces[:-1]]
    assert np.allclose(scores, last.as_numpy("token_scores")[0, 0, : len(scores)])


def test_one_grpc_stream_carries_several_requests(streams: Streams, images: list[bytes]) -> None:
    for number, image in enumerate(images):
        streams.ask(image, STREAMING[number % 5], number)
    for number, pieces in enumerate(streams.gather(len(images))):
        last = pieces[-1]
        assert text(pieces) == last.as_numpy("caption")[0, 0].decode()
        most = STREAMING[number % 5].get("max_tokens", 30)
        reason = b"length" if last.as_numpy("num_tokens")[0, 0] == most else b"stop"
        assert last.as_numpy("finish_reason")[0, 0] == reason


@pytest.mark.parametrize(
    ("image", "options", "sentence"),
    [
        (b"no image", {}, "image must be a JPEG, PNG, WebP, BMP, GIF or TIFF file"),
        (None, {"num_captions": 2}, "num_captions must be at most num_beams"),
        (None, {"max_tokens": 400}, "prompt and max_tokens together must fit 64 positions"),
        (None, {"resize_mode": "sideways"}, "resize_mode must be one of"),
    ],
)
def test_refusals(streams: Streams, images: list[bytes], image: bytes | None, options: Options, sentence: str) -> None:
    streams.ask(image or images[0], options)
    with pytest.raises(InferenceServerException, match=sentence) as caught:
        streams.answer()
    assert "Traceback" not in str(caught.value.message())


def test_server_sent_events(server: TritonServer, images: list[bytes], samples: dict[str, str]) -> None:
    """Triton's generate_stream takes JSON with the image as a data URL, and sends an event for each piece."""
    body = {"image": "data:image/jpeg;base64," + b64encode(images[0]).decode(), "max_tokens": 20}
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/caption_stream/generate_stream",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        events = [json.loads(line.removeprefix(b"data: ")) for line in answer if line.startswith(b"data: ")]
    assert "".join(event["text"] for event in events) == next(iter(samples.values()))
    assert events[-1]["finish_reason"] == "stop"
    assert len(events) > 3
