"""How long a search takes at each size and precision: exact search, and faiss's HNSW and IVF-PQ."""

import json
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
from querykey.io.records import versions
from querykey.lookup.nearest import nearest
from querykey.runs.neighbours import sample_indices
from querykey.runtime.codes import Code, search_codes

__all__ = ["FORMAT", "search_times", "times_in"]

FORMAT = "querykey search times"
QUERIES, K, REPEATS = 100, 10, 3
LINKS, VISITED = 32, 64
"""Of HNSW: links of a vector, of which the lowest layer has twice as many; candidates of a search."""
PROBED = 8
"""Cells of IVF-PQ that a search looks into."""
FEWEST = 1_000
"""Rows without which the cells and codebooks of IVF-PQ cannot be fitted."""

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
    """Time the search for the ten nearest rows, and compare what is found with exact search.

    All queries are searched for in one call; the time is the median of three calls after one that does not
    count. Without queries of their own, rows are drawn as queries, and are no documents.

    Args:
        adapter: With its sizes and codes.
        features: What is searched.
        on: How the user named the features.

    Returns:
        The record: "times" has for each index its name, dim, what is stored (float, int8, 1 bit or PQ), bytes
        a vector, milliseconds a query, and found, the share of the ten nearest of the largest float rows that
        it finds.

    Raises:
        DataError: If there are fewer than 20 rows.
    """
    documents, asked = features.vectors, features.queries
    if len(documents) < 2 * K:
        raise DataError(f"{on}: {len(documents)} rows are too few to time a search; {2 * K} are needed")
    if asked is None:
        picked = sample_indices(len(documents), min(QUERIES, len(documents) - K))
        rest = torch.ones(len(documents), dtype=torch.bool)
        rest[picked] = False
        queries, documents = documents[picked], documents[rest]
    else:
        queries = asked.vectors[sample_indices(len(asked.vectors), QUERIES)]
    wanted, times = None, []
    for index in _indexes(adapter, documents, queries):
        seconds, found = _timed(index.search)
        wanted = found if wanted is None else wanted
        share = np.mean([len({*a} & {*b}) for a, b in zip(found.tolist(), wanted.tolist(), strict=True)]) / K
        about = {"index": index.name, "dim": index.dim, "stored": index.stored, "bytes": index.bytes}
        speed = {"milliseconds": round(1000 * seconds / len(queries), 4), "found": round(float(share), 4)}
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
    found = {}
    for file in sorted(folder.glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict) and content.get("format") == FORMAT:
            found[file.name] = content
    return found


def _indexes(adapter: Adapter, documents: torch.Tensor, queries: torch.Tensor) -> Iterator[_Index]:
    """Each size at each precision by exact search, the largest float rows first; then faiss's indexes."""
    sizes = adapter.settings_.sizes
    stored: dict[int, tuple[Rows, Rows]] = {}
    for size in sizes:
        rows = np.asarray(adapter.transform_documents(documents, dim=size), dtype=np.float32)
        asked = np.asarray(adapter.transform(queries, dim=size), dtype=np.float32)
        stored[size] = rows, asked
        yield _Index("exact", size, "float", 4 * size, _exact(asked, rows))
        for bits in sorted((bits for dim, bits in adapter.codes_ if dim == size), reverse=True):
            code = adapter.code(dim=size, bits=bits)
            codes = adapter.quantize(documents, dim=size, bits=bits)
            yield _Index("exact", size, STORED[bits], code.bytes, _coded(code, asked, codes))
    try:
        faiss: Any = import_module("faiss")
    except ImportError:
        return
    faiss.omp_set_num_threads(torch.get_num_threads())
    for size, (rows, asked) in stored.items():
        graph = faiss.IndexHNSWFlat(size, LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efSearch = VISITED
        graph.add(rows)
        yield _Index("faiss HNSW", size, "float", 4 * size + 8 * LINKS, _of_faiss(graph, asked))
    for size, (rows, asked) in stored.items() if len(documents) >= FEWEST else ():
        cells, parts = _ivf_pq(faiss, rows)
        yield _Index("faiss IVF-PQ", size, "PQ", parts + 8, _of_faiss(cells, asked))


def _exact(asked: Rows, rows: Rows) -> Search:
    keys, queries = torch.from_numpy(rows), torch.from_numpy(asked)

    def search() -> NDArray[np.int64]:
        return nearest(queries, keys, K, score="dot")[1].numpy()

    return search


def _coded(code: Code, asked: Rows, codes: Any) -> Search:
    return lambda: search_codes(code, asked, codes, K)[1]


def _of_faiss(index: Any, asked: Rows) -> Search:
    return lambda: index.search(asked, K)[1]


def _ivf_pq(faiss: Any, rows: Rows) -> tuple[Any, int]:
    """An index of 4 sqrt(rows) cells and a byte for four numbers, and its bytes a vector without the id."""
    size = rows.shape[1]
    parts = next(parts for parts in range(max(1, size // 4), 0, -1) if size % parts == 0)
    # faiss's advice: 4 to 16 sqrt(rows) cells, and at least 39 rows to fit each to
    cells = min(4 * math.isqrt(len(rows)), len(rows) // 39)
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(size), size, cells, parts, 8, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1  # it warns on stderr
    index.nprobe = PROBED
    index.train(rows)
    index.add(rows)
    return index, parts


def _timed(search: Search) -> tuple[float, NDArray[np.int64]]:
    found, taken = search(), []
    for _ in range(REPEATS):
        began = time.perf_counter()
        search()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken), found
