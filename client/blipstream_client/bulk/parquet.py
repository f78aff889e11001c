# SPDX-License-Identifier: Apache-2.0
"""The images in a column of a Parquet file, and the texts in another."""

from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn, TypeAlias
from urllib.parse import unquote_to_bytes

from blipstream_client._exceptions import InvalidImage, InvalidRequest
from blipstream_client._fetch import is_url
from blipstream_client._files import MAX_BYTES, TOO_LARGE, open_regular
from blipstream_client._text import excerpt
from blipstream_client.bulk.errors import translated
from blipstream_client.bulk.extras import pyarrow
from blipstream_client.bulk.items import SIGNATURE_BYTES, Item, is_image
from blipstream_client.bulk.rows import as_utf8

COLUMNS = ("image", "jpg", "bytes", "url", "image_url", "path")  # the first one that a file has counts
TEXT_COLUMNS = ("caption", "text")  # the same for texts
FIELDS = ("bytes", "path")  # of a struct, as `datasets` writes it
TEXT = ("string", "large_string", "string_view")  # pyarrow's types
BINARY = ("binary", "large_binary", "fixed_size_binary", "binary_view", "null")
MAX_CELL = MAX_BYTES * 3 // 2  # bytes: base64 is a third longer, and has line breaks
READ_BYTES = 1 << 20  # at once

Reader: TypeAlias = Callable[[bool], bytes | str]  # takes whether local paths are allowed


def parquet_items(path: str, column: str | None, allow_local_paths: bool) -> Iterator[Item]:
    """An item for each row. Raises InvalidRequest if the file cannot be read."""
    with opened_parquet(path) as file:
        yield from _rows(path, file, [_column(path, file, column)], allow_local_paths)


def parquet_pairs(
    path: str, column: str | None, text_column: str | None, allow_local_paths: bool, flag: str
) -> Iterator[Item]:
    """The same with the text or the list of texts in the row; `flag` names the column that has them."""
    with opened_parquet(path) as file:
        columns = [_column(path, file, column), _text_column(path, file, text_column, flag)]
        yield from _rows(path, file, columns, allow_local_paths)


def parquet_rows(path: str) -> int:
    """The number of rows. Raises InvalidRequest if the file cannot be read."""
    with opened_parquet(path) as file:
        return int(file.metadata.num_rows)


def check_parquet(path: str, column: str | None) -> None:
    """Raise InvalidRequest if the file has no column of images."""
    with opened_parquet(path) as file:
        _column(path, file, column)


def has_text_in_each_row(path: str, column: str | None, text_column: str | None, flag: str) -> bool:
    """Whether rows have a text, and not a list. Raises InvalidRequest if the file lacks a column."""
    with opened_parquet(path) as file:
        _column(path, file, column)
        return not _is_list(file.schema_arrow.field(_text_column(path, file, text_column, flag)).type)


@contextmanager
def opened_parquet(path: str) -> Iterator[Any]:
    """The file, which is read piece by piece. Raises InvalidRequest if it cannot be read, then or in the block."""
    shown = excerpt(as_utf8(path))
    parquet = pyarrow(f"Reading {shown}").parquet
    with (
        translated(f"Cannot read {shown}"),
        open_regular(path) as file,  # not by pyarrow, which takes only names in UTF-8
        parquet.ParquetFile(file, buffer_size=READ_BYTES) as opened,
    ):
        yield opened


def _column(path: str, file: Any, column: str | None) -> str:  # noqa: ANN401
    """The name of the column with images. Raises InvalidRequest."""
    schema = file.schema_arrow
    found = column or next((each for each in COLUMNS if each in schema.names), "")
    if found not in schema.names:
        raise InvalidRequest(
            f"Expected a column {column or ' or '.join(COLUMNS)} in {excerpt(as_utf8(path))},"
            f" got {excerpt(', '.join(schema.names))}: name it with --column"
        )
    kind = schema.field(found).type
    if not _can_hold_images(kind):
        raise InvalidRequest(
            f"Expected images, URLs, base64 or paths in the column {excerpt(found)} of {excerpt(as_utf8(path))},"
            f" got {excerpt(str(kind))}: name another with --column, or store each image's file as bytes"
        )
    return found


def _text_column(path: str, file: Any, column: str | None, flag: str) -> str:  # noqa: ANN401
    """The name of the column with texts. Raises InvalidRequest."""
    schema = file.schema_arrow
    found = column or next((each for each in TEXT_COLUMNS if each in schema.names), "")
    if found not in schema.names or not _can_hold_texts(schema.field(found).type):
        got = f"{found} of {schema.field(found).type}" if found in schema.names else ", ".join(schema.names)
        raise InvalidRequest(
            f"Expected texts in a column {column or ' or '.join(TEXT_COLUMNS)} of {excerpt(as_utf8(path))},"
            f" got {excerpt(got)}: name it with {flag}"
        )
    return found


def _can_hold_texts(kind: Any) -> bool:  # noqa: ANN401
    types = pyarrow("Reading Parquet").types
    if types.is_dictionary(kind) or _is_list(kind):
        return _can_hold_texts(kind.value_type)
    return _is_text(kind)


def _is_list(kind: Any) -> bool:  # noqa: ANN401
    types = pyarrow("Reading Parquet").types
    return any(getattr(types, f"is_{each}")(kind) for each in ("list", "large_list", "fixed_size_list"))


def _can_hold_images(kind: Any) -> bool:  # noqa: ANN401
    types = pyarrow("Reading Parquet").types
    if types.is_dictionary(kind):
        return _can_hold_images(kind.value_type)
    if types.is_struct(kind):
        return any(field.name in FIELDS and _can_hold_images(field.type) for field in kind)
    return _is_text(kind) or any(getattr(types, f"is_{each}")(kind) for each in BINARY)


def _is_text(kind: Any) -> bool:  # noqa: ANN401
    return any(getattr(pyarrow("Reading Parquet").types, f"is_{each}")(kind) for each in TEXT)


def _rows(path: str, file: Any, columns: Sequence[str], allow_local_paths: bool) -> Iterator[Item]:  # noqa: ANN401
    rows = (row for group in range(file.num_row_groups) for row in _group(file, group, columns))
    for number, (read, texts) in enumerate(rows):
        yield Item(f"{path}#{number}", partial(read, allow_local_paths), texts)


def _group(file: Any, group: int, columns: Sequence[str]) -> Iterator[tuple[Reader, tuple[str, ...]]]:  # noqa: ANN401
    """A reader for each row of a row group, and the texts of the second column."""
    metadata = file.metadata.row_group(group)
    chunks = [metadata.column(index) for index in range(metadata.num_columns)]
    size = sum(each.total_uncompressed_size for each in chunks if each.path_in_schema.split(".")[0] == columns[0])
    if size > MAX_CELL * metadata.num_rows:  # the average cell is too large, and reading one puts it in memory
        yield from [(_refuse, ())] * metadata.num_rows
        return
    for batch in file.iter_batches(1, row_groups=[group], columns=[*columns]):  # as fast as 64 rows, with less memory
        image, *texts = (batch.column(name)[0] for name in columns)
        yield partial(_read, image), tuple(text for cell in texts for text in _texts(cell))


def _texts(cell: Any) -> Iterator[str]:  # noqa: ANN401
    """The texts of a cell, which may be a list."""
    if not cell.is_valid:
        return
    if hasattr(cell, "dictionary"):
        yield from _texts(cell.value)
    elif hasattr(cell, "values"):
        for each in cell.values:
            yield from _texts(each)
    else:
        yield cell.as_buffer().to_pybytes().decode(errors="replace")


def _refuse(_allow_local_paths: bool) -> NoReturn:
    raise InvalidImage(f"Cannot read the cell: {TOO_LARGE}")


def _read(cell: Any, allow_local_paths: bool) -> bytes | str:  # noqa: ANN401
    """The image of a cell, or its path or URL. Raises InvalidImage."""
    content, is_text = _content(cell)
    if is_image(content[:SIGNATURE_BYTES]):
        return content
    try:
        decoded = _decoded(content)
        place = content.decode() if is_text else ""
    except ValueError as exc:
        raise InvalidImage(f"Cannot read the cell, which begins with {_shown(content)}: {exc}") from exc
    if decoded is not None or not place:
        return content if decoded is None else decoded
    if not (is_url(place) or allow_local_paths):
        raise InvalidImage(
            f"Expected an image, a URL, a data URL or base64 in the cell, got {_shown(content)}:"
            " if that is a path on this machine, --allow-local-paths permits it"
        )
    return place


def _content(cell: Any) -> tuple[bytes, bool]:  # noqa: ANN401
    """The bytes of a cell, and whether they are text. Raises InvalidImage."""
    arrow = pyarrow("Reading Parquet")
    if isinstance(cell, arrow.StructScalar):
        fields = [cell[name] for name in FIELDS if name in cell] if cell.is_valid else []
        return next((found for found in map(_content, fields) if found[0]), (b"", False))
    while isinstance(cell, arrow.DictionaryScalar) and cell.is_valid:
        cell = cell.value
    if not cell.is_valid:
        return b"", False
    content = cell.as_buffer()
    if content.size > MAX_CELL:
        _refuse(False)
    return content.to_pybytes(), _is_text(cell.type)


def _decoded(content: bytes) -> bytes | None:
    """The bytes in a data URL or base64. None if it is neither. Raises ValueError."""
    if content[:5].lower() == b"data:":
        head, _, body = content.partition(b",")
        return _from_base64(body) if head.lower().endswith(b";base64") else unquote_to_bytes(body)
    try:
        begins_as_image = is_image(_from_base64(b"".join(content[:64].split())[: SIGNATURE_BYTES * 4 // 3 & ~3]))
    except ValueError:
        return None
    return _from_base64(content) if begins_as_image else None


def _from_base64(content: bytes) -> bytes:
    """Decode base64 in either alphabet, with or without line breaks and padding. Raises ValueError."""
    digits = b"".join(content.split()).rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    return b64decode(digits + b"=" * (-len(digits) % 4), validate=True)


def _shown(content: bytes) -> str:
    return repr(excerpt(content[:1000].decode(errors="replace")))
