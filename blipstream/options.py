# SPDX-License-Identifier: Apache-2.0
"""What a request may ask of the decoder, with the defaults, which stand nowhere else."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from blipstream.errors import InvalidInput


@dataclass(frozen=True)
class DecodingOptions:
    """How one caption is made. Raises InvalidInput where the options contradict each other."""

    prompt: str = ""  # the caption begins with it
    max_tokens: int = 30  # tokens to generate at most, the end token included, the prompt not
    min_tokens: int = 0  # tokens to generate before the caption may end

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InvalidInput(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise InvalidInput(
                f"min_tokens must be between 0 and max_tokens, which is {self.max_tokens}, not {self.min_tokens}"
            )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> "DecodingOptions":
        """From a request's option tensors, each numpy [1]; words are bytes. Absent ones keep their default."""
        return cls(**{name: _scalar(name, tensor) for name, tensor in tensors.items()})


OPTION_NAMES = tuple(field.name for field in fields(DecodingOptions))


def _scalar(name: str, tensor: Any) -> Any:  # noqa: ANN401
    value = tensor.reshape(-1)[0]
    if not isinstance(value, bytes):
        return value.item()
    try:
        return value.decode()
    except UnicodeDecodeError as exc:
        raise InvalidInput(f"{name} must be UTF-8 text: {exc.reason} at byte {exc.start}") from exc
