"""Tables in files: parquet, csv, tsv and jsonl."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from querykey.data.columns import ArrowTable
from querykey.data.fingerprint import Fingerprint
from querykey.data.grammar import Wanted, choose_split
from querykey.data.items import Source
from querykey.data.parquet import ParquetTable
from querykey.data.table_source import source_of_table
from querykey.errors import SourceError

__all__ = ["TABLE_SUFFIXES", "is_table", "read_table_files", "table_of_text"]

TABLE_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")

# A record may be this long; the reader keeps a few such blocks.
_BLOCK_BYTES = 1 << 24


def is_table(name: str) -> bool:
    """Whether a file is a table by its ending; .gz may follow, hidden files are none."""
    return _suffix(name) in TABLE_SUFFIXES and not name.startswith(".")


def _suffix(name: str) -> str:
    plain = Path(name.lower())
    packed = plain.suffix == ".gz" and plain.stem.endswith(TABLE_SUFFIXES[1:])
    return Path(plain.stem).suffix if packed else plain.suffix


def read_table_files(
    paths: Sequence[Path], splits: Sequence[str | None], *, name: str, what: str, wanted: Wanted
) -> Source:
    """Read the files of one table, those of one split.

    Args:
        paths: The files, of one format.
        splits: The split of each, None where it speaks of none.
        name: How the user named them.
        what: What to call them in a message.
        wanted: Columns and split; the items are guessed where only one column can be, the classes
            where one column is called label, category or the like.

    Raises:
        SourceError: If a file cannot be read, or it is not plain which column or split to take.
    """
    chosen = choose_split(wanted.split, splits, what)
    used = [path for path, split in zip(paths, splits, strict=True) if split == chosen]
    if len(used) < len(paths):
        what = f"{what} ({chosen})"
    suffixes = sorted({_suffix(path.name) for path in used})
    if len(suffixes) > 1:
        raise SourceError(f"{what} mixes tables of {' and '.join(suffixes)}; name one file")
    digest = Fingerprint().text("table")
    for path in used:
        digest.file(path)
    if suffixes[0] == ".parquet":
        return source_of_table(
            ParquetTable(what, used), name=name, digest=digest, folder=used[0].parent, wanted=wanted
        )
    return source_of_table(
        table_of_text(used, what), name=name, digest=digest, folder=used[0].parent, wanted=wanted,
        reread=lambda as_text: table_of_text(used, what, as_text),
    )  # fmt: skip


def table_of_text(paths: Sequence[Path], what: str, as_text: Sequence[str] = ()) -> ArrowTable:
    """Read csv, tsv or jsonl files, the types of the columns found by reading all of them.

    Empty text stays empty and "NA" stays "NA": these are words too.

    Args:
        paths: The files.
        what: What to call them in a message.
        as_text: Columns to take letter by letter, whatever they look like.

    Raises:
        SourceError: If a line cannot be read; says which and why.
    """
    tables = []
    for path in paths:
        try:
            tables.append(_read_text_table(path, as_text))
        except (pa.ArrowException, OSError, ValueError) as fault:
            reason = str(fault).split("\n", maxsplit=1)[0]
            raise SourceError(f"{path} cannot be read: {reason}; mend the file") from fault
    try:
        table = pa.concat_tables(tables, promote_options="permissive") if len(tables) > 1 else tables[0]
    except (pa.ArrowException, ValueError) as fault:
        raise SourceError(f"{what}: the files differ in their columns ({fault}); name one file") from fault
    for field in table.schema:
        if pa.types.is_binary(field.type):
            raise SourceError(f"{what}: the column {field.name!r} is no UTF-8 text; save the file as UTF-8")
    return ArrowTable(what, table)


def _read_text_table(path: Path, as_text: Sequence[str]) -> Any:
    suffix = _suffix(path.name)
    types = {name: pa.string() for name in as_text}
    if suffix in (".csv", ".tsv"):
        from pyarrow import csv

        return csv.read_csv(
            path,
            read_options=csv.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=csv.ParseOptions(
                delimiter="\t" if suffix == ".tsv" else ",", newlines_in_values=True
            ),
            convert_options=csv.ConvertOptions(column_types=types, strings_can_be_null=False),
        )
    from pyarrow import json as arrow_json

    return arrow_json.read_json(
        path,
        read_options=arrow_json.ReadOptions(block_size=_BLOCK_BYTES),
        parse_options=arrow_json.ParseOptions(explicit_schema=pa.schema(types) if types else None),
    )
