"""Search time at each size and precision: exact search, and HNSW and IVF-PQ of faiss."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from querykey.adapter.estimator import Adapter
from querykey.distributed.process_group import in_default_torch_state
from querykey.errors import DataError
from querykey.features.features import Features
from querykey.io.records import json_tables, versions
from querykey.lookup.nearest import nearest
from querykey.runs.neighbours import sample_indices
from querykey.runtime.codes import Code, search_codes

__all__ = ["FORMAT", "search_times", "times_in"]

FORMAT = "querykey search times"
QUERIES, K, REPEATS = 100, 10, 3
LINKS, VISITED = 32, 64
"""HNSW: links per vector (twice as many in the lowest layer), and candidates of a search (efSearch)."""
PROBED = 8
"""Cells of IVF-PQ that a search probes (nprobe)."""
FEWEST = 1_000
"""Minimum number of rows to fit the cells and codebooks of IVF-PQ."""

Rows = NDArray[np.float32]
Search = Callable[[], NDArray[np.int64]]


STORED = {8: "int8", 1: "1 bit"}


class _Index(NamedTuple):
    name: str
    dim: int
    stored: str
    bytes: int
    search: Search


@in_default_torch_state
def search_times(adapter: Adapter, features: Features, *, on: str) -> dict[str, Any]:
    """Time the search for the ten nearest rows, and measure its recall against exact search.

    All queries are searched in one call; the time is the median of three calls after a warm-up. Features
    without queries are split at random into queries and documents.

    Args:
        adapter: The adapter, with its sizes and codes.
        features: The features to search.
        on: Name of the features, for messages.

    Returns:
        The record: "times" has for each index its name, dim, the stored precision (float, int8, 1 bit or PQ),
        bytes per vector, milliseconds per query, and "found", the fraction of the ten nearest neighbours of
        the largest float rows that it finds.

    Raises:
        DataError: If there are fewer than 20 rows.
    """
    documents, given = features.vectors, features.queries
    if len(documents) < 2 * K:
        raise DataError(f"{on}: {len(documents)} rows are too few to time a search; {2 * K} are needed")
    if given is None:
        picked = sample_indices(len(documents), min(QUERIES, len(documents) - K))
        rest = torch.ones(len(documents), dtype=torch.bool)
        rest[picked] = False
        queries, documents = documents[picked], documents[rest]
    else:
        queries = given.vectors[sample_indices(len(given.vectors), QUERIES)]
    wanted, times = None, []
    for index in _indexes(adapter, documents, queries):
        seconds, found = _timed(index.search)
        wanted = found if wanted is None else wanted
        hits = [len({*a} & {*b}) for a, b in zip(found.tolist(), wanted.tolist(), strict=True)]
        recall = float(np.mean(hits)) / K
        about = {"index": index.name, "dim": index.dim, "stored": index.stored, "bytes": index.bytes}
        speed = {"milliseconds": round(1000 * seconds / len(queries), 4), "found": round(recall, 4)}
        times.append(about | speed)
    return {
        "format": FORMAT, "version": 1, "on": on, "rows": len(documents), "queries": len(queries), "k": K,
        "threads": torch.get_num_threads(), "versions": versions("faiss-cpu"), "times": times,
    }  # fmt: skip


def times_in(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of search times in a folder.

    Args:
        folder: Of a run.

    Returns:
        File name to record; other JSON files are skipped.
    """
    return {name: table for name, table in json_tables(folder).items() if table.get("format") == FORMAT}


def _indexes(adapter: Adapter, documents: torch.Tensor, queries: torch.Tensor) -> Iterator[_Index]:
    """Each size at each precision by exact search, the largest float rows first; then faiss's indexes."""
    sizes = adapter.settings_.sizes
    stored: dict[int, tuple[Rows, Rows]] = {}
    for size in sizes:
        rows = np.asarray(adapter.transform_documents(documents, dim=size), dtype=np.float32)
        projected = np.asarray(adapter.transform(queries, dim=size), dtype=np.float32)
        stored[size] = rows, projected
        yield _Index("exact", size, "float", 4 * size, _exact(projected, rows))
        for bits in sorted((bits for dim, bits in adapter.codes_ if dim == size), reverse=True):
            code = adapter.code(dim=size, bits=bits)
            codes = adapter.quantize(documents, dim=size, bits=bits)
            yield _Index("exact", size, STORED[bits], code.bytes, _coded(code, projected, codes))
    try:
        faiss: Any = import_module("faiss")
    except ImportError:
        return
    faiss.omp_set_num_threads(torch.get_num_threads())
    for size, (rows, projected) in stored.items():
        graph = faiss.IndexHNSWFlat(size, LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efSearch = VISITED
        graph.add(rows)
        yield _Index("faiss HNSW", size, "float", 4 * size + 8 * LINKS, _of_faiss(graph, projected))
    for size, (rows, projected) in stored.items() if len(documents) >= FEWEST else ():
        cells, parts = _ivf_pq(faiss, rows)
        yield _Index("faiss IVF-PQ", size, "PQ", parts + 8, _of_faiss(cells, projected))


def _exact(queries: Rows, rows: Rows) -> Search:
    keys, searched = torch.from_numpy(rows), torch.from_numpy(queries)

    def search() -> NDArray[np.int64]:
        return nearest(searched, keys, K, score="dot")[1].numpy()

    return search


def _coded(code: Code, queries: Rows, codes: Any) -> Search:
    return lambda: search_codes(code, queries, codes, K, threads=torch.get_num_threads())[1]


def _of_faiss(index: Any, queries: Rows) -> Search:
    return lambda: index.search(queries, K)[1]


def _ivf_pq(faiss: Any, rows: Rows) -> tuple[Any, int]:
    """An index of 4 sqrt(rows) cells and one byte per four numbers; its bytes per vector without the id."""
    size = rows.shape[1]
    parts = next(parts for parts in range(max(1, size // 4), 0, -1) if size % parts == 0)
    # faiss recommends 4 to 16 sqrt(rows) cells, and at least 39 rows for each
    cells = min(4 * math.isqrt(len(rows)), len(rows) // 39)
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(size), size, cells, parts, 8, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1  # it warns on stderr
    index.nprobe = PROBED
    index.train(rows)
    index.add(rows)
    return index, parts


def _timed(search: Search) -> tuple[float, NDArray[np.int64]]:
    found, seconds = search(), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        search()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), found
