"""Tables in files: Parquet, read a row group at a time, and CSV, TSV and JSON lines."""

import csv
import io
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from querykey.data.items import Fingerprint, Items, Source
from querykey.data.readers.columns import ArrowTable, class_names_of, types_of
from querykey.data.readers.grammar import Wanted, choose_split
from querykey.data.readers.table_source import source_of_table
from querykey.errors import QuerykeyError, SourceError

__all__ = [
    "TABLE_SUFFIXES",
    "Dialect",
    "ParquetTable",
    "compression_of",
    "find_dialect",
    "is_table",
    "parse_delimiter",
    "read_table_files",
    "table_of_text",
]

_CACHED_BYTES = 1 << 25

DELIMITERS = (",", ";", "\t", "|")
ONE_COLUMN = "\x1f"
"""The delimiter of a table with one column: a character that does not occur in texts."""
_RECORDS = 1000
_COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_NAMES = {"\t": "tab", ONE_COLUMN: "none"}
_BYTE_ORDER_MARKS = {b"\xff\xfe\x00\x00": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclass(frozen=True)
class Dialect:
    """The format of a delimited file.

    Args:
        delimiter: Between two fields; `ONE_COLUMN` if each record is one field.
        encoding: Of the text.
        note: An assumption that may be wrong, or "".
    """

    delimiter: str
    encoding: str
    note: str = ""


def compression_of(name: str) -> str | None:
    """The codec of a file by its extension, in any case; None if it is not compressed.

    Example:
        >>> compression_of("train.CSV.GZ"), compression_of("train.csv")
        ('gzip', None)
    """
    return _COMPRESSED.get(Path(name.lower()).suffix)


def parse_delimiter(given: str) -> str:
    r"""The delimiter for a value that the user gave.

    Args:
        given: One character, "tab", or "none" for a table with one column.

    Raises:
        SourceError: If it is none of these.

    Example:
        >>> parse_delimiter(";"), parse_delimiter("tab")
        (';', '\t')
    """
    named = {"tab": "\t", "\\t": "\t", "none": ONE_COLUMN}.get(given.lower(), given)
    if len(named) != 1 or named in '"\r\n':
        raise SourceError(f"the delimiter is one character, tab, or none for one column; got {given!r}")
    return named


def find_dialect(path: Path, *, is_tsv: bool, delimiter: str | None) -> Dialect:
    """Detect the format of a delimited file from its header and its first 1,000 records.

    A delimiter fits if the header has at least two fields with it, and each of these records has as many.
    If the header has one field with every delimiter, the table has one column.

    Args:
        path: The file, possibly compressed.
        is_tsv: Whether its extension is .tsv.
        delimiter: Given by the user; None to detect it.

    Raises:
        SourceError: If the header is not text, or not exactly one delimiter fits.
    """
    with pa.input_stream(str(path), compression=compression_of(path.name)) as stream:
        start = stream.read(4)
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8")
    if delimiter is not None:
        return Dialect(parse_delimiter(delimiter), encoding)
    lines = _first_lines(path, encoding)
    preferred = "\t" if is_tsv else ","
    if not lines:
        return Dialect(preferred, encoding)
    fields = {one: _fields(lines, one) for one in DELIMITERS}
    split = [one for one in DELIMITERS if fields[one] and fields[one][0] > 1]
    fitting = [one for one in split if set(fields[one]) == {fields[one][0]}]
    if preferred in fitting or len(fitting) == 1:
        return Dialect(preferred if preferred in fitting else fitting[0], encoding)
    if fitting or split:
        raise SourceError(f"{path} cannot be read: {_unclear(fitting, split, fields)}")
    is_plain = not any(one in line for line in lines for one in DELIMITERS)
    note = f"{path} is read as one column: its header {lines[0].strip()[:40]!r} has no delimiter"
    return Dialect(ONE_COLUMN, encoding, "" if is_plain else note)


def _unclear(fitting: list[str], split: list[str], fields: dict[str, list[int]]) -> str:
    if fitting:
        named = " and ".join(_NAMES.get(one, one) for one in fitting)
        return f"its columns may be separated by {named}; give one as delimiter"
    widest = max(split, key=lambda one: fields[one][0])
    expected = fields[widest][0]
    place, found = next((at, count) for at, count in enumerate(fields[widest]) if count != expected)
    return (
        f"Expected {expected} columns, got {found} in record {place} with the delimiter "
        f"{_NAMES.get(widest, widest)}; repair the file, or give the delimiter (none: one column)"
    )


def _first_lines(path: Path, encoding: str) -> list[str]:
    """The lines of the first records; only the header is checked for UTF-8 here."""
    with pa.input_stream(str(path), compression=compression_of(path.name)) as stream:
        codec = ("utf-8-sig", "surrogateescape") if encoding == "utf-8" else (encoding, "strict")
        text = io.TextIOWrapper(stream, *codec, newline="")
        # limited: a file without line ends is one line
        lines = list(islice(iter(lambda: text.readline(1 << 24), ""), _RECORDS + 1))
    header = lines[0] if lines else ""
    try:
        header.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SourceError(
            f"{path}: its header {header.strip()[:40]!a} is not UTF-8 text; save the file as UTF-8"
        ) from error
    if "\0" in header:
        raise SourceError(f"{path}: its header holds null characters, so it is not text; save it as UTF-8")
    return lines


def _fields(lines: list[str], delimiter: str) -> list[int]:
    """The number of fields of each record, without an incomplete last one."""
    counts: list[int] = []
    reader: Any = csv.reader(lines, delimiter=delimiter)
    with suppress(csv.Error):  # a field too long for this reader, which Arrow may read
        counts.extend(len(record) for record in reader if record)
    is_cut = len(lines) > _RECORDS
    return counts[:-1] if is_cut and len(counts) > 1 else counts


class ParquetTable:
    """Parquet files with the same columns, one after the other.

    A cell is read with its row group; the last row groups are cached, up to 32 MB or one.

    Raises:
        SourceError: If a file is damaged, or the files differ in their columns.
    """

    def __init__(self, what: str, paths: Sequence[Path]) -> None:
        self.what = what
        self._paths = list(paths)
        self._files = [_open_parquet(path) for path in paths]
        schema = self._files[0].schema_arrow
        self.types: Mapping[str, Any] = types_of(what, schema)
        self.class_names: Mapping[str, Sequence[str]] = class_names_of(schema)
        for path, file in zip(paths, self._files, strict=True):
            if types_of(str(path), file.schema_arrow) != self.types:
                raise SourceError(
                    f"{path} has other columns than {paths[0]}; files of one table must have the same"
                )

    def __len__(self) -> int:
        return sum(int(file.metadata.num_rows) for file in self._files)

    def cells(self, column: str) -> Items:
        return _ParquetCells(self._paths, self._files, column)

    def chunks(self, column: str) -> Iterator[Any]:
        for file in self._files:
            for group in range(file.num_row_groups):
                yield from _read_group(file, group, column).chunks

    def may_lack(self, column: str, field: str) -> bool:
        for file in self._files:
            for group in range(file.num_row_groups):
                row_group = file.metadata.row_group(group)
                for leaf in map(row_group.column, range(row_group.num_columns)):
                    if leaf.path_in_schema == f"{column}.{field}" and (
                        leaf.statistics is None or leaf.statistics.null_count != 0
                    ):
                        return True
        return False


class _ParquetCells(Items):
    def __init__(self, paths: Sequence[Path], files: Sequence[Any], column: str) -> None:
        self._paths = paths
        self._column = column
        self._groups = [(file, group) for file in files for group in range(file.num_row_groups)]
        sizes = [file.metadata.row_group(group).num_rows for file, group in self._groups]
        self._starts = [0, *accumulate(sizes)]
        self._rows = int(self._starts[-1])
        self._cached: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        # another process opens the files again
        return _open_cells, (self._paths, self._column)

    def __len__(self) -> int:
        return self._rows

    def _read(self, row: int) -> Any:
        group = bisect_right(self._starts, row) - 1
        # images may be decoded on several threads; one of them reads, the others wait for it
        with self._lock:
            if group not in self._cached:
                self._cached[group] = _read_group(*self._groups[group], self._column)
                while (
                    len(self._cached) > 1
                    and sum(each.nbytes for each in self._cached.values()) > _CACHED_BYTES
                ):
                    self._cached.popitem(last=False)
            self._cached.move_to_end(group)
            values = self._cached[group]
        return values[row - self._starts[group]].as_py()


def _open_cells(paths: Sequence[Path], column: str) -> "_ParquetCells":
    return _ParquetCells(paths, [_open_parquet(path) for path in paths], column)


def _open_parquet(path: Path) -> Any:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{path} is not a complete parquet file ({_first_line(error)}); copy it again"
        ) from error


def _read_group(file: Any, group: int, column: str) -> Any:
    try:
        return file.read_row_group(group, columns=[column]).column(column)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"row group {group} of a parquet file cannot be read ({_first_line(error)}); copy the file again"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).split("\n", maxsplit=1)[0]


TABLE_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")

# The reader has a few such blocks in memory. Where a record is larger than one, up to the second.
_BLOCK_BYTES, _LARGEST_BLOCK = 1 << 24, 1 << 30


def is_table(name: str) -> bool:
    """Whether the name is that of a table, also with .gz, .bz2 or .zst; hidden files are not."""
    return _suffix(name) in TABLE_SUFFIXES and not name.startswith(".")


def _suffix(name: str) -> str:
    plain = Path(name.lower())
    packed = compression_of(name) is not None and plain.stem.endswith(TABLE_SUFFIXES[1:])
    return Path(plain.stem).suffix if packed else plain.suffix


def read_table_files(
    paths: Sequence[Path], splits: Sequence[str | None], *, name: str, what: str, wanted: Wanted
) -> Source:
    """Read the files of one table, those of one split.

    Args:
        paths: The files, of one format.
        splits: The split of each; None if its name contains none.
        name: How the user named them.
        what: Their name in messages.
        wanted: Columns and split; see `choose_columns`.

    Raises:
        SourceError: If a file cannot be read, or the choice of column or split is ambiguous.
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
    dialects = [
        _dialect(path, suffixes[0], wanted.delimiter) if suffixes[0] in (".csv", ".tsv") else None
        for path in used
    ]
    if wanted.delimiter is not None:
        digest.text("delimiter", wanted.delimiter)

    def read(as_text: Sequence[str] = ()) -> ArrowTable:
        return table_of_text(used, what, as_text, dialects)

    is_json, folder = dialects[0] is None, used[0].parent
    source = source_of_table(
        read(), name=name, digest=digest, folder=folder, wanted=wanted, reread=read, is_json=is_json
    )
    return replace(source, notes=tuple(each.note for each in dialects if each is not None and each.note))


def table_of_text(
    paths: Sequence[Path], what: str, as_text: Sequence[str] = (), dialects: Sequence[Dialect | None] = ()
) -> ArrowTable:
    """Read csv, tsv or jsonl files; the types of the columns are inferred from all rows.

    Empty text stays empty, and "NA" stays "NA".

    Args:
        paths: The files.
        what: Their name in messages.
        as_text: Columns that are read as text.
        dialects: How each csv or tsv file is written; none for jsonl files.

    Raises:
        SourceError: If a line cannot be read.
    """
    tables = []
    for path, dialect in zip(paths, dialects or [None] * len(paths), strict=True):
        try:
            tables.append(_read_in_blocks(path, as_text, dialect))
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = str(error).split("\n", maxsplit=1)[0]
            raise SourceError(f"{path} cannot be read: {reason}; repair the file") from error
    try:
        table = pa.concat_tables(tables, promote_options="permissive") if len(tables) > 1 else tables[0]
    except (pa.ArrowException, ValueError) as error:
        raise SourceError(f"{what}: the files differ in their columns ({error}); name one file") from error
    for field in table.schema:
        if pa.types.is_binary(field.type):
            raise SourceError(f"{what}: the column {field.name!r} is not UTF-8 text; save the file as UTF-8")
    return ArrowTable(what, table)


def _dialect(path: Path, suffix: str, delimiter: str | None) -> Dialect:
    try:
        return find_dialect(path, is_tsv=suffix == ".tsv", delimiter=delimiter)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, QuerykeyError):
            raise
        raise SourceError(f"{path} cannot be read: {_first_line(error)}; repair the file") from error


def _read_in_blocks(path: Path, as_text: Sequence[str], dialect: Dialect | None) -> Any:
    """Read with larger blocks while a row does not fit in one."""
    size = _BLOCK_BYTES
    while True:
        try:
            return _read_text_table(path, as_text, dialect, size)
        except pa.ArrowInvalid as error:
            if "straddl" not in str(error) or size >= _LARGEST_BLOCK:
                raise
        size = min(8 * size, _LARGEST_BLOCK)


def _read_text_table(path: Path, as_text: Sequence[str], dialect: Dialect | None, block_size: int) -> Any:
    types = {name: pa.string() for name in as_text}
    # by the extension in any case; Arrow itself accepts lower case only
    stream = pa.input_stream(str(path), compression=compression_of(path.name))
    if dialect is not None:
        from pyarrow import csv as arrow_csv

        return arrow_csv.read_csv(
            stream,
            read_options=arrow_csv.ReadOptions(block_size=block_size, encoding=dialect.encoding),
            parse_options=arrow_csv.ParseOptions(delimiter=dialect.delimiter, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(column_types=types, strings_can_be_null=False),
        )
    from pyarrow import json as arrow_json

    return arrow_json.read_json(
        stream,
        read_options=arrow_json.ReadOptions(block_size=block_size),
        parse_options=arrow_json.ParseOptions(explicit_schema=pa.schema(types) if types else None),
    )
