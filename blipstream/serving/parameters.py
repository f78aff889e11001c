# SPDX-License-Identifier: Apache-2.0
"""Refuse what Triton would silently ignore.

Triton turns every JSON name that is not an input of the model, such as a misspelt option, into a parameter of the
request. No model of ours reads parameters.
"""

import json
from typing import Any

from blipstream.errors import InvalidInput
from blipstream.options import EXPLAIN_NAMES, INPUT_NAMES, MATCHING_OPTION_NAMES, RERANK_OPTIONS, SHOWN, nearest

OWNERS = {  # models, by their inputs
    **dict.fromkeys(EXPLAIN_NAMES, "explain"),
    **dict.fromkeys(RERANK_OPTIONS, "rerank"),
    **dict.fromkeys(("text", *MATCHING_OPTION_NAMES), "match"),
}


def refuse_parameters(request: Any, names: tuple[str, ...] = INPUT_NAMES) -> None:  # noqa: ANN401
    """Raise InvalidInput if a Triton request has parameters; `names` are the model's inputs."""
    try:
        parameters: str = request.parameters()
    except UnicodeDecodeError as exc:  # HTTP lets through what is not text
        parameters = exc.object.decode(errors="replace")
    for name in json.loads(parameters) if parameters else ():
        if name == "id":  # Triton reads it, and leaves it there
            continue
        if name in OWNERS and name not in names:
            raise InvalidInput(f"{name} must be an input of the model {OWNERS[name]}: send it there, as a tensor")
        if name in names:
            raise InvalidInput(f"{name} must be an input of the request, and not one of its parameters: send a tensor")
        # preprocess is a step of all these models
        near = nearest(name, (*names, *OWNERS) if names == INPUT_NAMES else names)
        remedy = f"did you mean {near}?" if near else f"there are {', '.join(names)}"
        raise InvalidInput(f"there is no input {name[:SHOWN]!r}: {remedy}")
