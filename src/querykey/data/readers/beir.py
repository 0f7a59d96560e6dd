"""BEIR folders: documents, queries, and graded relevance judgements."""

import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from querykey.data.items import Items, Source, fingerprint_files
from querykey.data.readers.columns import ColumnTable
from querykey.data.readers.grammar import Wanted, choose_split
from querykey.data.readers.tables import table_of_text
from querykey.errors import DataError, DataWarning, SourceError

__all__ = ["read_beir"]


class _Documents(Items):
    """Title and text, separated by a space; a document may be empty."""

    def __init__(self, table: ColumnTable) -> None:
        self._parts = [table.cells(column) for column in ("title", "text") if column in table.types]
        self._length = len(table)

    def __len__(self) -> int:
        return self._length

    def _read(self, row: int) -> str:
        return " ".join(part[row] or "" for part in self._parts).strip()


class _Queries(Items):
    def __init__(self, table: ColumnTable, rows: NDArray[np.int64]) -> None:
        self._texts = table.cells("text")
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def _read(self, row: int) -> str:
        return str(self._texts[int(self._rows[row])] or "")


def read_beir(folder: Path, *, name: str, wanted: Wanted) -> Source:
    """Read a collection of documents, with its queries and judgements if they exist.

    The documents are the items: title and text, including empty ones, so that row numbers are those of
    the corpus. The queries are those with judgements in the split; a grade below 1 (not relevant) makes no
    pair.

    Args:
        folder: With corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.
        name: How the user named it.
        wanted: Which split of the judgements; the only one, or train, if not given.

    Raises:
        SourceError: If a file is damaged or the split does not exist.
        DataError: If ids are missing or repeated, or no judgement matches the documents.
    """
    wanted.allow("split", what=f"{folder}, a BEIR folder,")
    corpus_file, queries_file = folder / "corpus.jsonl", folder / "queries.jsonl"
    judged = {path.stem: path for path in sorted((folder / "qrels").glob("*.tsv"))}
    split = choose_split(wanted.split, list(judged) or [None], f"{folder}/qrels" if judged else str(folder))
    corpus, ids = _read_records(corpus_file)
    used, queries, pairs = [corpus_file], None, None
    if queries_file.is_file():
        table, query_ids = _read_records(queries_file)
        rows = np.arange(len(query_ids))
        used.append(queries_file)
        if split is not None:
            used.append(judged[split])
            rows, pairs = _read_judgements(judged[split], query_ids, ids)
        digest, chosen = fingerprint_files(used[1:], "beir queries"), [query_ids[row] for row in rows]
        queries = Source(name, "text", _Queries(table, rows), chosen, None, (), digest)
    digest = fingerprint_files(used, "beir")
    return Source(name, "text", _Documents(corpus), ids, None, (), digest, queries, pairs)


def _read_records(path: Path) -> tuple[ColumnTable, list[str]]:
    """Records with an _id and a text."""
    table: Any = table_of_text([path], str(path))
    missing = [column for column in ("_id", "text") if column not in table.types]
    if missing or not len(table):
        raise SourceError(
            f"{path} {'has no ' + ' and no '.join(missing) if missing else 'is empty'}; "
            'a BEIR file has lines like {"_id": "1", "text": "..."}'
        )
    # values that look like dates or numbers are text here, and an id stays as it is written
    texts = [column for column in ("title", "text") if column in table.types]
    other = [column for column in texts if not pa.types.is_string(table.types[column])]
    other += ["_id"] if pa.types.is_temporal(table.types["_id"]) else []
    if other:
        table = table_of_text([path], str(path), other)
    ids = [
        None if value is None else str(value) for chunk in table.chunks("_id") for value in chunk.to_pylist()
    ]
    if None in ids or len(set(ids)) < len(ids):
        raise DataError(f"{path} has missing or repeated _id; each record needs a unique one")
    return table, [identity for identity in ids if identity is not None]


def _read_judgements(
    path: Path, query_ids: list[str], document_ids: list[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows of the queries with judgements, pairs of these queries)."""
    query_rows = {identity: row for row, identity in enumerate(query_ids)}
    document_rows = {identity: row for row, identity in enumerate(document_ids)}
    found, unknown = {}, 0
    judged: set[int] = set()
    with path.open(encoding="utf-8", newline="") as stream:
        for number, line in enumerate(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
            if not line or (number == 1 and line[-1] == "score"):
                continue
            try:
                query, document, grade = line[0], line[1], int(float(line[2]))
            except (IndexError, ValueError) as error:
                raise SourceError(
                    f"{path}, line {number}: {line} is not a judgement; "
                    "a line is query-id, corpus-id and score, separated by tabs"
                ) from error
            if query not in query_rows or document not in document_rows:
                unknown += 1
                continue
            judged.add(query_rows[query])
            if grade >= 1:
                found[query_rows[query], document_rows[document]] = grade
    if not found:
        raise DataError(
            f"{path} has no judgement of 1 or above whose query and document exist "
            f"({unknown} have others); the files may be of different collections"
        )
    if unknown:
        warnings.warn(
            f"{path}: {unknown} judgements of a query or document that does not exist are left out",
            DataWarning,
            stacklevel=2,
        )
    rows = np.array(sorted(judged), dtype=np.int64)
    pairs = np.array([(query, document, grade) for (query, document), grade in found.items()], dtype=np.int64)
    pairs[:, 0] = np.searchsorted(rows, pairs[:, 0])
    return rows, pairs
