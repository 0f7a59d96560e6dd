"""Which columns of a table are the items, the classes and the queries."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from querykey.data.columns import Table
from querykey.data.grammar import nearest_words
from querykey.data.items import Kind
from querykey.errors import SourceError

__all__ = ["ID_COLUMNS", "LABEL_COLUMNS", "Columns", "can_be_classes", "choose_columns", "kind_of"]

LABEL_COLUMNS = ("label", "labels", "category", "class", "target", "intent", "y")
"""A column of one of these names holds the classes where none is named."""

ID_COLUMNS = ("_id", "id")
"""A column of one of these names holds the ids, and is no item unless named."""


@dataclass(frozen=True)
class Columns:
    """The columns chosen: the items and their kind, their classes, the queries."""

    item: str
    kind: Kind
    label: str | None
    pair: str | None


def kind_of(type_: Any) -> Kind | None:
    """What a column of this arrow type holds; None for nothing that can be embedded.

    Example:
        >>> kind_of(pa.string()), kind_of(pa.list_(pa.float32())), kind_of(pa.int64())
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
    """Whether a column of this arrow type may hold classes or ids: text, whole numbers, yes or no."""
    types = pa.types
    return bool(types.is_integer(type_) or types.is_boolean(type_) or kind_of(type_) == "text")


def choose_columns(
    table: Table, *, column: str | None, label_column: str | None, pair_column: str | None, is_typed: bool
) -> Columns:
    """Take the columns that were named, and guess the others where only one will do.

    Args:
        table: The table.
        column: The items.
        label_column: The classes.
        pair_column: The queries.
        is_typed: False for csv and jsonl, where a column of numbers or dates may be text.

    Raises:
        SourceError: If a column is not there or of another kind, or several would do.
    """
    for asked in (column, label_column, pair_column):
        if asked is not None and asked not in table.types:
            raise SourceError(
                f"{table.what} has no column {asked!r}{nearest_words(asked, table.types)}; {_listed(table)}"
            )
    if label_column is None and pair_column is None:
        label_column = _guess_classes(table.types, column)
    if column is None:
        column = _guess_items(table, label_column, pair_column)
    if column in (label_column, pair_column):
        raise SourceError(f"{table.what}: the column {column!r} cannot be two things; {_listed(table)}")
    kind = _kind_as_asked(table.types[column], is_typed=is_typed)
    if kind is None:
        raise SourceError(
            f"{table.what}: the column {column!r} holds {table.types[column]}; "
            f"items are images, text or lists of numbers; {_listed(table)}"
        )
    if pair_column is not None:
        other = _kind_as_asked(table.types[pair_column], is_typed=is_typed)
        if kind != "text" or other != "text":
            raise SourceError(f"{table.what}: pairs need two columns of text; {_listed(table)}")
    return Columns(column, kind, label_column, pair_column)


def _listed(table: Table) -> str:
    return "its columns: " + ", ".join(f"{name} ({type_})" for name, type_ in table.types.items())


def _guess_classes(types: Mapping[str, Any], column: str | None) -> str | None:
    able = [name for name, type_ in types.items()
            if name.lower() in LABEL_COLUMNS and name != column and can_be_classes(type_)]  # fmt: skip
    return able[0] if len(able) == 1 else None


def _guess_items(table: Table, label_column: str | None, pair_column: str | None) -> str:
    able = [name for name, type_ in table.types.items()
            if kind_of(type_) and name not in (label_column, pair_column)
            and name.lower() not in ID_COLUMNS]  # fmt: skip
    if len(able) == 1:
        return able[0]
    fault = "several columns that can be the items" if able else "no column of images, text or vectors"
    raise SourceError(f"{table.what} has {fault}; say which with --column; {_listed(table)}")


def _kind_as_asked(type_: Any, *, is_typed: bool) -> Kind | None:
    kind = kind_of(type_)
    if kind is None and not is_typed and not (pa.types.is_nested(type_) or pa.types.is_null(type_)):
        return "text"
    return kind
