"""Makes a source from the columns of a table: items, labels, ids, or pairs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from querykey.data.items import Chosen, Fingerprint, Items, Kind, RowNumbers, Source
from querykey.data.labels import NO_NAMES, number_labels
from querykey.data.readers.columns import (
    ID_COLUMNS,
    ArrowTable,
    Columns,
    ColumnTable,
    TextCells,
    can_be_classes,
    choose_columns,
    item_kind,
    vectors_of,
)
from querykey.data.readers.grammar import Wanted
from querykey.data.readers.images import EncodedImages
from querykey.errors import DataError, SourceError

__all__ = ["source_of_table"]


def source_of_table(
    table: ColumnTable,
    *,
    name: str,
    digest: Fingerprint,
    folder: Path,
    wanted: Wanted,
    reread: Callable[[Sequence[str]], ColumnTable] | None = None,
    is_json: bool = False,
) -> Source:
    """Make a source from the columns of a table.

    Args:
        table: The table.
        name: How the user named it.
        digest: Of the bytes of the table; the chosen columns are added.
        folder: Base of the paths of images that are stored as a path.
        wanted: The columns that the user named; others are chosen where only one is possible.
        reread: Reads the table again with some columns as text, for formats without types: labels, ids and
            texts stay as they are written.
        is_json: Whether the format has numbers, so that only dates are inferred.

    Raises:
        SourceError: If a column does not exist or cannot be read, or the choice of columns is ambiguous.
        DataError: If a side of a pair is missing.
    """
    if not len(table):
        raise SourceError(f"{table.what} has no rows; at least one is needed")
    if wanted.pair_column is not None and wanted.label_column is not None:
        raise SourceError(f"{table.what}: pairs have no classes; give pair_column or label_column, not both")
    columns = choose_columns(table, wanted, is_typed=reread is None)
    typed = table
    if reread is not None:
        guessed = _guessed(table, columns, is_json=is_json)
        table = reread(guessed) if guessed else table
    digest.text("columns", columns.item, columns.label, columns.pair)
    if columns.pair is not None:
        return _pairs(table, columns.item, columns.pair, name, digest.hex())
    items = _items(table, columns.item, columns.kind, folder)
    _add_files(digest, table, columns.item, folder)
    labels, names = None, NO_NAMES
    if columns.label is not None:
        values = _column(table, columns.label)
        if table is not typed:
            values = _as_written(_column(typed, columns.label), values, f"{table.what}: {columns.label}")
        labels, names = number_labels(
            values, what=f"{table.what}: {columns.label}", names=table.class_names.get(columns.label, ())
        )
    return Source(name, columns.kind, items, _ids(table, columns.item), labels, names, digest.hex())


def _guessed(table: ColumnTable, columns: Columns, *, is_json: bool) -> list[str]:
    """The columns in use whose type was inferred by the reader of the format."""
    texts = [one for one in (columns.item, columns.pair) if one and item_kind(table.types[one]) is None]
    ids = [one for one in ID_COLUMNS if one in table.types]
    for one in [*([columns.label] if columns.label else []), *ids]:
        type_ = table.types[one]
        is_guess = pa.types.is_temporal(type_) if is_json else item_kind(type_) is None
        if is_guess and not (pa.types.is_null(type_) or pa.types.is_nested(type_)):
            texts.append(one)
    return list(dict.fromkeys(texts))


def _as_written(guessed: Any, written: Any, what: str) -> Any:
    """Labels as they are written, for a column that was read as another type than text.

    007, 07 and 7 are three classes. Integers without leading zeros stay integers, with -1 for unlabelled;
    missing values stay missing.

    Raises:
        DataError: If they are decimals.
    """
    if guessed.type == written.type:
        return written
    if pa.types.is_floating(guessed.type):
        numbers = guessed.filter(pc.is_finite(guessed))
        if pc.any(pc.not_equal(pc.floor(numbers), numbers)).as_py():
            number_labels(numbers, what=what)  # raises: decimals are not classes
    elif pa.types.is_integer(guessed.type):
        plain = pc.equal(pc.cast(guessed, pa.string()), written)
        if pc.all(plain, skip_nulls=True).as_py() is not False:
            return guessed
    return pc.if_else(pc.is_valid(guessed), written, pa.scalar(None, written.type))


def _items(table: ColumnTable, column: str, kind: Kind, folder: Path) -> Any:
    match kind:
        case "vector":
            return vectors_of(table, column)
        case "text":
            return TextCells(table.cells(column), table.what)
        case "image":
            return EncodedImages(table.cells(column), _Names(table.what, len(table)), folder)
        case never:
            assert_never(never)


def _column(table: ColumnTable, column: str) -> Any:
    return pa.chunked_array(list(table.chunks(column)), type=table.types[column])


class _Names(Items):
    """The name of each row in messages."""

    def __init__(self, what: str, rows: int) -> None:
        self._what = what
        self._length = rows

    def __len__(self) -> int:
        return self._length

    def _read(self, row: int) -> str:
        return f"{self._what}: row {row}"


def _ids(table: ColumnTable, item: str) -> Sequence[str]:
    for name in ID_COLUMNS:
        if name not in table.types or name == item or not can_be_classes(table.types[name]):
            continue
        values = _column(table, name)
        if values.null_count == 0 and pc.count_distinct(values).as_py() == len(values):
            return [str(value) for value in values.to_pylist()]
        if name == "_id":
            raise DataError(
                f"{table.what}: the column _id has missing or repeated ids; each row needs a unique id"
            )
    return RowNumbers(len(table))


def _add_files(digest: Fingerprint, table: ColumnTable, column: str, folder: Path) -> None:
    """Add the files of images that are stored as a path."""
    if pa.types.is_struct(table.types[column]) and table.may_lack(column, "bytes"):
        for cell in table.cells(column):
            if cell is not None and cell["bytes"] is None and cell["path"] is not None:
                digest.file(folder / cell["path"])


def _pairs(table: ColumnTable, item: str, query: str, name: str, fingerprint: str) -> Source:
    """Each row is a pair; equal texts in a column are one item."""
    queries, documents = _distinct(table, query), _distinct(table, item)
    rows = np.stack([queries.indices.to_numpy(), documents.indices.to_numpy()], axis=1).astype(np.int64)
    _, first = np.unique(rows, axis=0, return_index=True)
    rows = rows[np.sort(first)]

    def side(texts: Any, role: str, **others: Any) -> Source:
        first_rows = np.unique(texts.indices.to_numpy(), return_index=True)[1]
        cells = ArrowTable(table.what, pa.table({"text": texts.dictionary})).cells("text")
        ids, digest = Chosen(RowNumbers(len(table)), first_rows), Fingerprint().text(fingerprint, role)
        return Source(name, "text", TextCells(cells, table.what), ids, None, NO_NAMES, digest.hex(), **others)

    pairs = np.column_stack([rows, np.ones(len(rows), np.int64)])
    return side(documents, "documents", queries=side(queries, "queries"), pairs=pairs)


def _distinct(table: ColumnTable, column: str) -> Any:
    """The column as indices into its distinct texts, in order of first appearance."""
    texts = pc.cast(_column(table, column), pa.large_string()).combine_chunks()
    empty = pc.fill_null(pc.equal(texts, ""), True).to_numpy(zero_copy_only=False)
    if empty.any():
        raise DataError(
            f"{table.what}: {empty.sum()} of {len(table)} rows have no text in {column!r} "
            f"(first: row {empty.argmax()}); a pair needs both sides: fill it in or remove the row"
        )
    return pc.dictionary_encode(texts)
