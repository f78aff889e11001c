# SPDX-License-Identifier: Apache-2.0
"""The output's rows and their columns."""

from collections.abc import Mapping
from typing import Any, TypeAlias

Row: TypeAlias = Mapping[str, Any]  # a value for each column. What is unknown is None
Columns: TypeAlias = Mapping[str, str]  # the kind of each column

TEXT, INT, FLOAT = "string", "int32", "float32"  # as pyarrow calls them
# of any length: pyarrow writes lists of a fixed length beside nulls, but up to version 25 does not read them
# (https://github.com/apache/arrow/issues/35692)
VECTOR = "list of float32"


def as_utf8(text: str) -> str:
    r"""The text without characters that UTF-8 cannot hold: the byte ff of a file's name becomes \udcff in letters."""
    return text.encode(errors="backslashreplace").decode()
