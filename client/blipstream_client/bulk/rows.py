# SPDX-License-Identifier: Apache-2.0
"""The output's rows and their columns."""

from collections.abc import Mapping
from typing import Any, TypeAlias

Row: TypeAlias = Mapping[str, Any]  # a value for each column. What is unknown is None
Columns: TypeAlias = Mapping[str, str]  # the kind of each column, as pyarrow calls it: of a vector, float32[LENGTH]

TEXT, INT, FLOAT = "string", "int32", "float32"


def as_utf8(text: str) -> str:
    r"""The text without characters that UTF-8 cannot hold: the byte ff of a file's name becomes \udcff in letters."""
    return text.encode(errors="backslashreplace").decode()
