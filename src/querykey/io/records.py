"""Settings in tables, as one table of dotted names."""

import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from querykey.errors import MissingPathError, OutputError, StoreError

__all__ = [
    "Record",
    "Records",
    "dotted",
    "read",
    "versions",
]


def dotted(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Lay tables in tables flat.

    Args:
        settings: Name to a value or to a table; an empty table is a value.
        above: What every name begins with.

    Returns:
        Dotted name to value, in their order.

    Example:
        >>> dotted({"dim": 8, "loss": {"kind": "nca"}, "options": {}})
        {'dim': 8, 'loss.kind': 'nca', 'options': {}}
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        is_table = isinstance(value, Mapping) and len(value) > 0
        flat |= dotted(value, f"{above}{name}.") if is_table else {f"{above}{name}": value}
    return flat


Record = dict[str, Any]


class Records:
    """A file of records that only grows.

    A record that is there already is not written again: a run that was killed and repeats its last
    steps leaves each of them once. So a record should say what it is of (step, seed, cell).

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
        """Write one record at the end, unless the same one is there.

        Args:
            kind: What the record is: "run", "step", "score" and so on.
            **fields: What it says. Numbers of numpy and torch become plain ones; NaN and infinity,
                which JSON has not, become null.

        Raises:
            OutputError: If it cannot be written, for example on a full disk.
            StoreError: If a line before the last is no record.
        """
        line = json.dumps(_plain({"kind": kind, **fields}), ensure_ascii=False, allow_nan=False).encode()
        if self._written is None:
            self._written = self._mend()
        if line in self._written:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                _write_whole(file.fileno(), line + b"\n")
        except OSError as error:
            # the line may be there in part: look again before the next one
            self._written = None
            raise OutputError(f"{self.path}: cannot write a record: {error.strerror}") from error
        self._written.add(line)

    def read(self) -> list[Record]:
        """All records so far, in the order they were written; none where there is no file yet.

        Returns:
            One dict a record.

        Raises:
            StoreError: If a line before the last is no record.
        """
        return read(self.path) if self.path.exists() else []

    def _mend(self) -> set[bytes]:
        """The lines that are there, after cutting off a half-written one."""
        if not self.path.exists():
            return set()
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        return set(content[:whole].splitlines())


def read(path: str | Path) -> list[Record]:
    """Read the records of a file, without a half-written last line.

    Args:
        path: A file that `Records` wrote.

    Returns:
        One dict a record, in the order they were written; each has its "kind".

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
    """What a number was computed by, to stand beside it.

    Args:
        packages: Installed ones, besides this one, torch and numpy.

    Returns:
        By name; Python's too.
    """
    from importlib.metadata import version

    # the metadata of an editable installation may be of an older version
    own = {"python": platform.python_version(), "querykey": sys.modules["querykey"].__version__}
    return own | {name: version(name) for name in ("torch", "numpy", *packages)}


def _write_whole(file: int, content: bytes) -> None:
    """One write where the system takes it whole, so that a kill cuts at most this line."""
    while content:
        content = content[os.write(file, content) :]


def _plain(value: Any) -> Any:
    """The value in the types of JSON."""
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
            raise TypeError(f"a record cannot hold a {type(value).__name__}: {value!r}")
