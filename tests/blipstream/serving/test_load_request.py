# SPDX-License-Identifier: Apache-2.0
"""What preprocess reads from a request, and what it refuses on the decoder's behalf."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from blipstream.deadline import Deadline
from blipstream.errors import InvalidInput
from blipstream.options import OptionDefaults
from blipstream.serving.load_request import load_request

PIXELS = np.zeros((1, 64, 64, 3), np.uint8)


@pytest.mark.parametrize("picture", [{"image": np.array([[b"no image"]], np.object_)}, {"pixels": PIXELS}])
def test_options_that_the_decoder_would_refuse_are_refused_at_once(picture: dict[str, npt.NDArray[Any]]) -> None:
    deadline = Deadline(0, lambda: False)
    request = load_request(picture | {"num_beams": np.array([[10]], np.int32)}, deadline, 64)
    assert request.deadline is deadline
    assert load_request(picture | {"max_tokens": np.array([[64]], np.int32)}, deadline, 64)
    sentence = "must fit 64 positions, but the prompt takes at least 1 and max_tokens is 65: shorten one of them"
    with pytest.raises(InvalidInput, match=sentence):
        load_request(picture | {"max_tokens": np.array([[65]], np.int32)}, deadline, 64)
    with pytest.raises(InvalidInput, match="num_beams must be between 1 and 10, not 99"):
        load_request(picture | {"num_beams": np.array([[99]], np.int32)}, deadline, 64)
    with pytest.raises(InvalidInput, match="num_beams must have a row for each image, 1, not 2"):
        load_request(picture | {"num_beams": np.array([[9], [9]], np.int32)}, deadline, 64)


def test_defaults() -> None:
    """A default needs no check. What is fixed is refused here, before any work."""
    deadline, image = Deadline(0, lambda: False), {"image": np.array([[b"1"], [b"2"]], np.object_)}
    letterbox, stretch = ({"resize_mode": np.array([[mode]] * 2, np.object_)} for mode in (b"letterbox", b"stretch"))
    defaults = OptionDefaults({"num_beams": 3, "max_tokens": 20}, frozenset({"max_tokens"}), "letterbox")
    assert load_request(image, deadline, 64, defaults).modes == ["letterbox", "letterbox"]
    assert load_request(image | stretch, deadline, 64, defaults).modes == ["stretch", "stretch"]
    assert load_request({"pixels": PIXELS}, deadline, 64, defaults).modes == []
    tokens = {"max_tokens": np.array([[9]] * 2, np.int32)}
    with pytest.raises(InvalidInput, match="max_tokens is fixed at 20 on this server: leave it out"):
        load_request(image | tokens, deadline, 64, defaults)
    fixed = OptionDefaults(fixed=frozenset({"resize_mode"}), resize_mode="letterbox")
    assert load_request(image | letterbox, deadline, 64, fixed).modes == ["letterbox", "letterbox"]
    with pytest.raises(InvalidInput, match="resize_mode is fixed at 'letterbox' on this server: leave it out"):
        load_request(image | stretch, deadline, 64, fixed)
