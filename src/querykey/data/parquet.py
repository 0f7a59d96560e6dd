"""Parquet files, read a row group at a time."""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from querykey.data.columns import class_names_of, types_of
from querykey.data.items import Items
from querykey.errors import SourceError

__all__ = ["ParquetTable"]

_CACHED_BYTES = 1 << 25


class ParquetTable:
    """Parquet files with the same columns, one after the other.

    A cell is read with its row group; the row groups used last are kept, 32 MB of them or one.

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
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        # another process opens the files for itself
        return _open_cells, (self._paths, self._column)

    def __len__(self) -> int:
        return self._rows

    def _read(self, row: int) -> Any:
        group = bisect_right(self._starts, row) - 1
        # images may be decoded on several threads; one of them reads, the others wait for it
        with self._lock:
            if group not in self._kept:
                self._kept[group] = _read_group(*self._groups[group], self._column)
                while (
                    len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > _CACHED_BYTES
                ):
                    self._kept.popitem(last=False)
            self._kept.move_to_end(group)
            values = self._kept[group]
        return values[row - self._starts[group]].as_py()


def _open_cells(paths: Sequence[Path], column: str) -> "_ParquetCells":
    return _ParquetCells(paths, [_open_parquet(path) for path in paths], column)


def _open_parquet(path: Path) -> Any:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as fault:
        raise SourceError(
            f"{path} is not a whole parquet file ({_first_line(fault)}); copy it again"
        ) from fault


def _read_group(file: Any, group: int, column: str) -> Any:
    try:
        return file.read_row_group(group, columns=[column]).column(column)
    except (pa.ArrowException, OSError) as fault:
        raise SourceError(
            f"row group {group} of a parquet file cannot be read ({_first_line(fault)}); copy the file again"
        ) from fault


def _first_line(fault: Exception) -> str:
    return str(fault).split("\n", maxsplit=1)[0]
