"""How a text table is written: its delimiter, its encoding and its compression."""

import csv
import io
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from querykey.errors import SourceError

__all__ = ["Dialect", "compression_of", "find_dialect", "parse_delimiter"]

DELIMITERS = (",", ";", "\t", "|")
ONE_COLUMN = "\x1f"
"""The delimiter of a table with one column: a character that texts do not hold."""
_RECORDS = 1000
_COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_NAMES = {"\t": "tab", ONE_COLUMN: "none"}
_BYTE_ORDER_MARKS = {b"\xff\xfe\x00\x00": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclass(frozen=True)
class Dialect:
    """How a delimited file is written.

    Args:
        delimiter: Between two fields; `ONE_COLUMN` where each record is one field.
        encoding: Of the text.
        note: What was assumed and may be wrong; "" where nothing was.
    """

    delimiter: str
    encoding: str
    note: str = ""


def compression_of(name: str) -> str | None:
    """The codec that the ending of a file names, in any case; None for a plain file.

    Example:
        >>> compression_of("train.CSV.GZ"), compression_of("train.csv")
        ('gzip', None)
    """
    return _COMPRESSED.get(Path(name.lower()).suffix)


def parse_delimiter(given: str) -> str:
    r"""The delimiter that a user names.

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
    """How a delimited file is written, from its header and its first 1,000 records.

    A delimiter is taken only if the header has at least two fields with it and each of these records has
    as many. Where the header has one field with every delimiter, the table has one column.

    Args:
        path: The file, maybe compressed.
        is_tsv: Whether its ending names the tab.
        delimiter: What the user says; None to find it.

    Raises:
        SourceError: If the header is not text, or no delimiter fits or several do.
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
        return f"its columns may be separated by {named}; say which with the option delimiter"
    widest = max(split, key=lambda one: fields[one][0])
    expected = fields[widest][0]
    place, found = next((at, count) for at, count in enumerate(fields[widest]) if count != expected)
    return (
        f"Expected {expected} columns, got {found} in record {place} with the delimiter "
        f"{_NAMES.get(widest, widest)}; mend the file, or say the option delimiter (none: one column)"
    )


def _first_lines(path: Path, encoding: str) -> list[str]:
    """The lines of the first records; cells that are not text are found later, by their column."""
    with pa.input_stream(str(path), compression=compression_of(path.name)) as stream:
        codec = ("utf-8-sig", "surrogateescape") if encoding == "utf-8" else (encoding, "strict")
        text = io.TextIOWrapper(stream, *codec, newline="")
        # a line of a file without line ends could be all of it
        lines = list(islice(iter(lambda: text.readline(1 << 24), ""), _RECORDS + 1))
    header = lines[0] if lines else ""
    try:
        header.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SourceError(
            f"{path}: its header {header.strip()[:40]!a} is no UTF-8 text; save the file as UTF-8"
        ) from error
    if "\0" in header:
        raise SourceError(f"{path}: its header holds null characters, so it is no text; save it as UTF-8")
    return lines


def _fields(lines: list[str], delimiter: str) -> list[int]:
    """The number of fields of each record; a record that the lines cut off does not count."""
    counts: list[int] = []
    reader: Any = csv.reader(lines, delimiter=delimiter)
    with suppress(csv.Error):  # a field too long for this reader, which arrow may read
        counts.extend(len(record) for record in reader if record)
    is_cut = len(lines) > _RECORDS
    return counts[:-1] if is_cut and len(counts) > 1 else counts
