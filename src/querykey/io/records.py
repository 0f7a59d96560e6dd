"""Append-only JSON-lines files of records."""

import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from querykey.errors import MissingPathError, OutputError, StoreError

__all__ = ["Record", "Records", "dotted", "installed_versions", "json_tables", "read", "versions"]


def dotted(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Flatten nested tables to dotted names.

    Args:
        settings: Name to a value or to a table; an empty table is a value.
        above: Prefix of every name.

    Returns:
        Dotted name to value, in the same order.

    Example:
        >>> dotted({"dim": 8, "loss": {"kind": "nca"}, "options": {}})
        {'dim': 8, 'loss.kind': 'nca', 'options': {}}
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        is_table = isinstance(value, Mapping) and len(value) > 0
        flat |= dotted(value, f"{above}{name}.") if is_table else {f"{above}{name}": value}
    return flat


def json_tables(folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON files of a folder that hold a table.

    Args:
        folder: A folder; not below it.

    Returns:
        File name to table, sorted; files that cannot be read or hold something else are skipped.
    """
    found = {}
    for file in sorted(folder.glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            found[file.name] = content
    return found


Record = dict[str, Any]


class Records:
    """An append-only file of records.

    A record that exists already is not written again, so a killed run that repeats its last steps leaves
    each of them once. A record should therefore contain its key (step, seed, cell).

    Args:
        path: The file; it and its folder are made at the first append.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     metrics = Records(Path(folder) / "metrics.jsonl")
        ...     metrics.append("step", step=1, loss=0.5)
        ...     metrics.append("step", step=1, loss=0.5)
        ...     read(metrics.path)
        [{'kind': 'step', 'step': 1, 'loss': 0.5}]
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._written: set[bytes] | None = None

    def append(self, kind: str, /, **fields: Any) -> None:
        """Append one record, unless the same record exists.

        Args:
            kind: The kind of record: "run", "step", "score" and so on.
            **fields: Its content. Numbers of numpy and torch become plain numbers; NaN and infinity, which
                JSON lacks, become null.

        Raises:
            OutputError: If it cannot be written, for example on a full disk.
            StoreError: If a line before the last is no record.
        """
        line = json.dumps(_plain({"kind": kind, **fields}), ensure_ascii=False, allow_nan=False).encode()
        if self._written is None:
            self._written = self._repair()
        if line in self._written:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                _write_whole(file.fileno(), line + b"\n")
        except OSError as error:
            # the line may be incomplete: read the file again before the next one
            self._written = None
            raise OutputError(f"{self.path}: cannot write a record: {error.strerror}") from error
        self._written.add(line)

    def read(self) -> list[Record]:
        """All records in the order in which they were written; none if the file does not exist.

        Returns:
            One dict per record.

        Raises:
            StoreError: If a line before the last is no record.
        """
        return read(self.path) if self.path.exists() else []

    def _repair(self) -> set[bytes]:
        """The complete lines, after removing an incomplete last line."""
        if not self.path.exists():
            return set()
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.truncate(self.path, end)
        return set(content[:end].splitlines())


def read(path: str | Path) -> list[Record]:
    """Read the records of a file, without an incomplete last line.

    Args:
        path: A file written by `Records`.

    Returns:
        One dict per record, in the order in which they were written; each has its "kind".

    Raises:
        MissingPathError: If there is no such file.
        StoreError: If a line before the last is no record.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingPathError(f"{path}: no such file of records")
    content = path.read_bytes()
    records: list[Record] = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or "kind" not in record:
            raise StoreError(f"{path}: line {number} is no record; the file was damaged or edited")
        records.append(record)
    return records


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and packages, to store with results.

    Args:
        packages: In addition to querykey, torch and numpy; those that are not installed are left out.

    Returns:
        Name to version.
    """
    # the metadata of an editable installation may be those of an older version
    found = {"python": platform.python_version(), "querykey": sys.modules["querykey"].__version__}
    return found | installed_versions("torch", "numpy", *packages)


def installed_versions(*packages: str) -> dict[str, str]:
    """Versions of packages; those that are not installed are left out.

    Args:
        packages: Names as in the package index.

    Returns:
        Name to version.
    """
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _write_whole(file: int, content: bytes) -> None:
    """Write with one call if the system allows, so that a killed process truncates at most this line."""
    while content:
        content = content[os.write(file, content) :]


def _plain(value: Any) -> Any:
    """The value with the types of JSON."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case Path():
            return str(value)
        case _ if hasattr(value, "tolist"):  # arrays and scalars of numpy and torch
            return _plain(value.tolist())
        case _:
            raise TypeError(f"a record cannot contain a {type(value).__name__}: {value!r}")
