"""The exact top 10 of 10,000 rows among 50,000: our own walk beside faiss's flat index."""

import statistics

import faiss
import numpy as np
import torch
from timing import Row, in_turns, median_ratio
from torch.nn import functional as F

from querykey.lookup.nearest import nearest

QUERIES, KEYS, WIDTH, K, REPEATS = 10_000, 50_000, 384, 10, 3
MOST = 1.0


def measure() -> list[Row]:
    """Our seconds by faiss's, on the same threads and the same unit rows."""
    draw = torch.Generator().manual_seed(0)
    keys = F.normalize(torch.randn(KEYS, WIDTH, generator=draw), dim=1)
    queries = F.normalize(torch.randn(QUERIES, WIDTH, generator=draw), dim=1)
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(WIDTH)
    index.add(keys.numpy())
    found: dict[str, np.ndarray] = {}

    def ours() -> None:
        found["ours"] = nearest(queries, keys, K, score="dot")[1].numpy()

    def theirs() -> None:
        found["faiss"] = index.search(queries.numpy(), K)[1]

    seconds = in_turns({"ours": ours, "faiss": theirs}, REPEATS)
    ratio = median_ratio(seconds["ours"], seconds["faiss"])
    figures = {f"{name}_s": round(statistics.median(taken), 3) for name, taken in seconds.items()}
    figures["same_list"] = round(float((found["ours"] == found["faiss"]).all(axis=1).mean()), 5)
    return [Row("exact top 10, seconds by faiss's", ratio, f"at most {MOST:g}", ratio <= MOST, figures)]


if __name__ == "__main__":
    for row in measure():
        print(row)
