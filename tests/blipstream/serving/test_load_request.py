# SPDX-License-Identifier: Apache-2.0
"""What preprocess reads from a request, and what it refuses on the decoder's behalf."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from blipstream.config import TextConfig
from blipstream.deadline import Deadline
from blipstream.errors import InvalidInput
from blipstream.options import INPUT_NAMES, OptionDefaults
from blipstream.serving.load_request import MATCH_IMAGE, asked_inputs, load_request

TEXT = TextConfig(
    vocab_size=100,
    hidden_size=8,
    encoder_hidden_size=8,
    intermediate_size=8,
    num_layers=3,
    num_heads=4,
    max_positions=64,
    layer_norm_eps=1e-12,
    start_token_id=1,
    end_token_id=2,
)
PIXELS = np.zeros((1, 64, 64, 3), np.uint8)


@pytest.mark.parametrize("picture", [{"image": np.array([[b"no image"]], np.object_)}, {"pixels": PIXELS}])
def test_options_that_the_decoder_would_refuse_are_refused_at_once(picture: dict[str, npt.NDArray[Any]]) -> None:
    deadline = Deadline(0, lambda: False)
    request = load_request(picture | {"num_beams": np.array([[10]], np.int32)}, deadline, TEXT)
    assert request.deadline is deadline
    assert load_request(picture | {"max_tokens": np.array([[64]], np.int32)}, deadline, TEXT)
    sentence = "must fit 64 positions, but the prompt takes at least 1 and max_tokens is 65: shorten one of them"
    with pytest.raises(InvalidInput, match=sentence):
        load_request(picture | {"max_tokens": np.array([[65]], np.int32)}, deadline, TEXT)
    with pytest.raises(InvalidInput, match="num_beams must be between 1 and 10, not 99"):
        load_request(picture | {"num_beams": np.array([[99]], np.int32)}, deadline, TEXT)
    with pytest.raises(InvalidInput, match="num_beams must have a row for each image, 1, not 2"):
        load_request(picture | {"num_beams": np.array([[9], [9]], np.int32)}, deadline, TEXT)


def test_defaults() -> None:
    """A default needs no check. What is fixed is refused here, before any work."""
    deadline, image = Deadline(0, lambda: False), {"image": np.array([[b"1"], [b"2"]], np.object_)}
    letterbox, stretch = ({"resize_mode": np.array([[mode]] * 2, np.object_)} for mode in (b"letterbox", b"stretch"))
    defaults = OptionDefaults({"num_beams": 3, "max_tokens": 20}, frozenset({"max_tokens"}), "letterbox")
    assert load_request(image, deadline, TEXT, defaults).modes == ["letterbox", "letterbox"]
    assert load_request(image | stretch, deadline, TEXT, defaults).modes == ["stretch", "stretch"]
    assert load_request({"pixels": PIXELS}, deadline, TEXT, defaults).modes == []
    tokens = {"max_tokens": np.array([[9]] * 2, np.int32)}
    with pytest.raises(InvalidInput, match="max_tokens is fixed at 20 on this server: leave it out"):
        load_request(image | tokens, deadline, TEXT, defaults)
    fixed = OptionDefaults(fixed=frozenset({"resize_mode"}), resize_mode="letterbox")
    assert load_request(image | letterbox, deadline, TEXT, fixed).modes == ["letterbox", "letterbox"]
    with pytest.raises(InvalidInput, match="resize_mode is fixed at 'letterbox' on this server: leave it out"):
        load_request(image | stretch, deadline, TEXT, fixed)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("layer", np.array([[3]], np.int32), "layer must be between 0 and 2"),
        ("head", np.array([[4]], np.int32), "head must be between 0 and 3"),
        ("method", np.array([[b"guess"]], np.object_), "method must be one of attention, rollout, gradient"),
        ("caption_index", np.array([[1]], np.int32), "caption_index must be below num_captions"),
        ("given_caption", np.array([[b""]], np.object_), "a given caption must have a word"),
    ],
)
def test_explanations_that_the_decoder_would_refuse(name: str, value: npt.NDArray[Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        load_request({"pixels": PIXELS, name: value}, Deadline(0, lambda: False), TEXT)


def test_gradients_of_too_many_captions() -> None:
    many = {"pixels": np.repeat(PIXELS, 17, 0), "method": np.array([[b"gradient"]] * 17, np.object_)}
    with pytest.raises(InvalidInput, match="480 tokens in all captions, and this one may have 510: send several"):
        load_request(many, Deadline(0, lambda: False), TEXT)


def test_defaults_are_not_for_given_captions() -> None:
    """They say how to find one."""
    given = {"pixels": PIXELS, "given_caption": np.array([[b"a cat"]], np.object_)}
    assert load_request(given, Deadline(0, lambda: False), TEXT, OptionDefaults({"num_beams": 3}))


def test_reranking_that_would_be_refused_later() -> None:
    deadline, one = Deadline(0, lambda: False), np.array([[1]], np.int32)
    with pytest.raises(InvalidInput, match="rerank must be at most num_beams, which is 1, not 8: raise num_beams, or"):
        load_request({"pixels": PIXELS, "rerank": 8 * one}, deadline, TEXT)
    with pytest.raises(InvalidInput, match=r"min_match must be between 0 and 1, not 1\.5"):
        load_request({"pixels": PIXELS, "min_match": np.array([[1.5]], np.float32)}, deadline, TEXT)


def test_what_matching_sends() -> None:
    """Its image has a name of its own, so that an error can name the inputs of the model that was asked."""
    image = np.array([[b"1"], [b"2"]], np.object_)
    assert load_request({MATCH_IMAGE: image}, Deadline(0, lambda: False), TEXT).images == [b"1", b"2"]
    assert asked_inputs({MATCH_IMAGE, "text"}) == ("image", "resize_mode", "text", "truncate")
    assert asked_inputs({MATCH_IMAGE}) == ("image", "resize_mode")
    assert asked_inputs({"image"}) == INPUT_NAMES


def test_an_adapter_is_looked_for_at_once() -> None:
    """Each that a request names, or that is the default; with a given caption, too."""

    def check(name: str) -> None:
        if name != "fr":
            raise InvalidInput(f"no {name}")

    deadline = Deadline(0, lambda: False)
    pixels, names = PIXELS.repeat(2, 0), np.array([[b"fr"], [b"ja"]], np.object_)
    request = {"pixels": pixels, "adapter": names}
    assert load_request(request, deadline, TEXT)  # who does not see the decoder's leaves it to the decoder
    with pytest.raises(InvalidInput, match="no ja"):
        load_request(request, deadline, TEXT, check_adapter=check)
    assert load_request(request | {"adapter": names[[0, 0]]}, deadline, TEXT, check_adapter=check)
    given = {"pixels": pixels, "given_caption": np.array([[b"un chat"], [b"un chien"]], np.object_)}
    with pytest.raises(InvalidInput, match="no ja"):
        load_request(request | given, deadline, TEXT, check_adapter=check)
    defaults = OptionDefaults({"adapter": "de", "num_beams": 3})
    with pytest.raises(InvalidInput, match="no de"):
        load_request(given, deadline, TEXT, defaults, check)
