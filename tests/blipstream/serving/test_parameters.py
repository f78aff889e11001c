# SPDX-License-Identifier: Apache-2.0
"""Names that no model reads are refused, with a hint at what was meant."""

from dataclasses import dataclass

import pytest

from blipstream.errors import InvalidInput
from blipstream.options import INPUT_NAMES
from blipstream.serving.parameters import refuse_parameters


@dataclass
class TritonRequest:
    """A request of Triton's, of which only the parameters are read."""

    json: bytes

    def parameters(self) -> str:
        return self.json.decode()


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (b'{"max_new_tokens":5}', "there is no input 'max_new_tokens': did you mean max_tokens?"),
        (b'{"num_return_sequences":5}', "there is no input 'num_return_sequences': did you mean num_captions?"),
        (b'{"id":"a","num_beam":5}', "there is no input 'num_beam': did you mean num_beams?"),
        (b'{"Temprature":5}', "there is no input 'Temprature': did you mean temperature?"),
        (b'{"reranc":5}', "there is no input 'reranc': did you mean rerank?"),
        (b'{"rerank":5}', "rerank must be an input of the model rerank: send it there, as a tensor"),
        (b'{"min_match":0.5}', "min_match must be an input of the model rerank: send it there, as a tensor"),
        (b'{"layer":5}', "layer must be an input of the model explain: send it there, as a tensor"),
        (b'{"truncat":true}', "there is no input 'truncat': did you mean truncate?"),
        (b'{"metod":"rollout"}', "there is no input 'metod': did you mean method?"),
        (b'{"truncate":true}', "truncate must be an input of the model match: send it there, as a tensor"),
        (b'{"top_k":5}', "top_k must be an input of the request, and not one of its parameters: send a tensor"),
        (b'{"timeout":5}', f"there is no input 'timeout': there are {', '.join(INPUT_NAMES)}"),
        (b'{"%s":5}' % (b"x" * 9999), f"there is no input '{'x' * 40}': there are {', '.join(INPUT_NAMES)}"),
        (b'{"top_\xffk":5}', "there is no input 'top_\ufffdk': did you mean top_k?"),
    ],
)
def test_a_name_that_no_model_reads_is_refused(parameters: bytes, sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        refuse_parameters(TritonRequest(parameters))
    assert str(caught.value) == sentence


def test_a_model_names_its_own_inputs() -> None:
    with pytest.raises(InvalidInput, match="there is no input 'max_new_tokens': there are pixels"):
        refuse_parameters(TritonRequest(b'{"max_new_tokens":5}'), ("pixels",))


@pytest.mark.parametrize("parameters", [b"", b"{}", b'{"id":"mine"}', b'{"id":"\xff"}'])
def test_what_triton_leaves_there_is_not_a_parameter(parameters: bytes) -> None:
    refuse_parameters(TritonRequest(parameters))
