"""Chooses the columns of a table that are the items, the classes and the queries."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from querykey.data.items import Items, Kind
from querykey.data.readers.grammar import Wanted, nearest_words
from querykey.errors import DamagedItemError, DataError, ShapeError, SourceError

__all__ = [
    "ID_COLUMNS",
    "LABEL_COLUMNS",
    "ArrowTable",
    "ColumnTable",
    "Columns",
    "TextCells",
    "can_be_classes",
    "choose_columns",
    "class_names_of",
    "item_kind",
    "types_of",
    "vectors_of",
]


@runtime_checkable
class ColumnTable(Protocol):
    """Rows of named columns, read on access."""

    what: str
    types: Mapping[str, Any]
    class_names: Mapping[str, Sequence[str]]

    def __len__(self) -> int: ...

    def cells(self, column: str) -> Items:
        """The column's values one at a time, as Python objects."""
        ...

    def chunks(self, column: str) -> Iterator[Any]:
        """The column as arrow arrays, in order."""
        ...

    def may_lack(self, column: str, field: str) -> bool:
        """Whether the field of a struct column may be null somewhere."""
        ...


class _ArrowCells(Items):
    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def _read(self, row: int) -> Any:
        return self._column[row].as_py()


class ArrowTable:
    """An Arrow table, in memory or memory-mapped.

    Args:
        what: Its name in messages.
        table: The `pyarrow.Table`.
        class_names: Names of the classes of columns that have them.
    """

    def __init__(self, what: str, table: Any, class_names: Mapping[str, Sequence[str]] | None = None) -> None:
        self.what = what
        self.types: Mapping[str, Any] = types_of(what, table.schema)
        self.class_names: Mapping[str, Sequence[str]] = (
            class_names if class_names is not None else class_names_of(table.schema)
        )
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def cells(self, column: str) -> Items:
        return _ArrowCells(self._table.column(column))

    def chunks(self, column: str) -> Iterator[Any]:
        yield from self._table.column(column).chunks

    def may_lack(self, column: str, field: str) -> bool:
        return any(chunk.null_count or chunk.field(field).null_count for chunk in self.chunks(column))


class TextCells(Items):
    """The strings of a column; a missing one is empty."""

    def __init__(self, cells: Items, what: str) -> None:
        self._cells = cells
        self._what = what

    def __len__(self) -> int:
        return len(self._cells)

    def _read(self, row: int) -> str:
        try:
            value = self._cells[row]
        except UnicodeDecodeError as error:
            raise DamagedItemError(f"{self._what}: row {row} is not UTF-8 text: {error}") from error
        return "" if value is None else str(value)


def class_names_of(schema: Any) -> dict[str, tuple[str, ...]]:
    """The class names that Hugging Face `datasets` writes into a schema, by column."""
    note = (schema.metadata or {}).get(b"huggingface")
    if note is None:
        return {}
    try:
        features = json.loads(note)["info"]["features"]
        return {
            column: tuple(map(str, feature["names"]))
            for column, feature in features.items()
            if feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        # metadata that cannot be read gives no class names; the numbers are still there
        return {}


def vectors_of(table: ColumnTable, column: str) -> NDArray[Any]:
    """A column of lists as one array [n, dim]; float16 is kept, everything else becomes float32.

    A missing number inside a row becomes NaN, for `require_finite_rows` to find.

    Raises:
        ShapeError: If rows differ in width or are empty.
        DataError: If a row is missing.
    """
    what = f"{table.what}: {column}"
    vectors: NDArray[Any] | None = None
    start = 0
    for chunk in table.chunks(column):
        if not len(chunk):
            continue
        if chunk.null_count:
            row = start + int(np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False))[0])
            raise DataError(f"{what}: row {row} has no vector; fill it in or remove the row")
        widths = pc.list_value_length(chunk).to_numpy(zero_copy_only=False)
        if vectors is None:
            half = pa.types.is_float16(chunk.type.value_type)
            vectors = np.empty((len(table), int(widths[0])), np.float16 if half else np.float32)
        other = np.flatnonzero(widths != vectors.shape[1])
        if len(other) or not vectors.shape[1]:
            row = int(other[0]) if len(other) else 0
            raise ShapeError(
                f"{what}: row 0 has {vectors.shape[1]} numbers and row {start + row} has {widths[row]}; "
                "all vectors must have the same width, 1 or more"
            )
        values = chunk.flatten()
        if vectors.dtype == np.float32:
            values = pc.cast(values, pa.float32(), safe=False)
        vectors[start : start + len(chunk)] = values.to_numpy(zero_copy_only=False).reshape(len(chunk), -1)
        start += len(chunk)
    if vectors is None:
        raise ShapeError(f"{what} has no rows; vectors are [n, dim], n and dim >= 1")
    return vectors


def types_of(what: str, schema: Any) -> dict[str, Any]:
    """The arrow type of each column.

    Raises:
        SourceError: If two columns have the same name.
    """
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise SourceError(f"{what} has several columns named {twice[0]!r}; give each a different name")
    return dict(zip(schema.names, schema.types, strict=True))


LABEL_COLUMNS = ("label", "labels", "category", "class", "target", "intent", "y")
"""Names of columns that hold the classes, if label_column is not given."""

ID_COLUMNS = ("_id", "id")
"""Names of columns that hold the ids; they are not used as items unless column names them."""


@dataclass(frozen=True)
class Columns:
    """The chosen columns: the items and their kind, the classes, the queries."""

    item: str
    kind: Kind
    label: str | None
    pair: str | None


def item_kind(type_: Any) -> Kind | None:
    """The kind of items in a column of this Arrow type; None if they cannot be embedded.

    Example:
        >>> item_kind(pa.string()), item_kind(pa.list_(pa.float32())), item_kind(pa.int64())
        ('text', 'vector', None)
    """
    types = pa.types
    if types.is_dictionary(type_):
        type_ = type_.value_type
    if types.is_string(type_) or types.is_large_string(type_):
        return "text"
    if types.is_binary(type_) or types.is_large_binary(type_):
        return "image"
    if types.is_struct(type_):
        return "image" if {"bytes", "path"} <= {field.name for field in type_} else None
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        inner = type_.value_type
        return "vector" if types.is_floating(inner) or types.is_integer(inner) else None
    return None


def can_be_classes(type_: Any) -> bool:
    """Whether a column of this Arrow type may hold classes or ids: text, integers or booleans."""
    types = pa.types
    return bool(types.is_integer(type_) or types.is_boolean(type_) or item_kind(type_) == "text")


def choose_columns(table: ColumnTable, wanted: Wanted, *, is_typed: bool) -> Columns:
    """Take the columns that the user named, and choose the others where only one is possible.

    Args:
        table: The table.
        wanted: The columns that the user named.
        is_typed: False for csv and jsonl, where a column of numbers or dates may be text.

    Raises:
        SourceError: If a column does not exist or is of another kind, or several are possible.
    """
    column, label_column, pair_column = wanted.column, wanted.label_column, wanted.pair_column
    for name in (column, label_column, pair_column):
        if name is not None and name not in table.types:
            raise SourceError(
                f"{table.what} has no column {name!r}{nearest_words(name, table.types)}; {_listed(table)}"
            )
    if label_column is None and pair_column is None:
        label_column = _guess_classes(table, column, is_typed=is_typed)
    if column is None:
        column = _guess_items(table, label_column, pair_column)
    if column in (label_column, pair_column):
        raise SourceError(f"{table.what}: the column {column!r} is given twice; {_listed(table)}")
    kind = _kind_or_text(table.types[column], is_typed=is_typed)
    if kind is None:
        raise SourceError(
            f"{table.what}: the column {column!r} holds {table.types[column]}; "
            f"items are images, text or lists of numbers; {_listed(table)}"
        )
    if pair_column is not None:
        other = _kind_or_text(table.types[pair_column], is_typed=is_typed)
        if kind != "text" or other != "text":
            raise SourceError(f"{table.what}: pairs need two columns of text; {_listed(table)}")
    return Columns(column, kind, label_column, pair_column)


def _listed(table: ColumnTable) -> str:
    return "its columns: " + ", ".join(f"{name} ({type_})" for name, type_ in table.types.items())


def _guess_classes(table: ColumnTable, column: str | None, *, is_typed: bool) -> str | None:
    named = [name for name in table.types if name.lower() in LABEL_COLUMNS and name != column]
    able = [name for name in named if _holds_classes(table, name, is_typed=is_typed)]
    return able[0] if len(able) == 1 else None


def _holds_classes(table: ColumnTable, name: str, *, is_typed: bool) -> bool:
    kind = table.types[name]
    if pa.types.is_floating(kind):  # integers where some are missing, or +5 and 1.0 in a csv; never 0.5
        numbers = [pc.cast(one, pa.float64()) for one in table.chunks(name)]  # half floats have no floor
        finite = pa.chunked_array([one.filter(pc.is_finite(one)) for one in numbers], type=pa.float64())
        return len(finite) > 0 and bool(pc.all(pc.equal(pc.floor(finite), finite)).as_py())
    # in a format without types, a value that looks like a date may be text
    return can_be_classes(kind) or (not is_typed and pa.types.is_temporal(kind))


def _guess_items(table: ColumnTable, label_column: str | None, pair_column: str | None) -> str:
    free = [name for name in table.types if name not in (label_column, pair_column)]
    able = [name for name in free if item_kind(table.types[name]) and name.lower() not in ID_COLUMNS]
    vectors = [name for name in able if item_kind(table.types[name]) == "vector"]
    if len(able) == 1 or len(vectors) == 1:
        return (vectors or able)[0]
    error = "several columns that can be the items" if able else "no column of images, text or vectors"
    raise SourceError(f"{table.what} has {error}; give one as column; {_listed(table)}")


def _kind_or_text(type_: Any, *, is_typed: bool) -> Kind | None:
    kind = item_kind(type_)
    if kind is None and not is_typed and not (pa.types.is_nested(type_) or pa.types.is_null(type_)):
        return "text"
    return kind
