"""Classify 10,000 rows by their 200 nearest among 50,000 rows of 512: our vote beside lightly's.

lightly holds the scores of a whole batch against the whole bank, so it is given batches of 500, as its
own benchmarks do; ours is given all queries and walks in blocks of its own. Both take unit rows and
return a class for each query. Most of either's time is the matrix product: lightly's product alone,
timed in the same turns, says how much there is to win.
"""

import statistics
from typing import Any

import torch
from cost_against_n import HighestMemory, anonymous_mb
from lightly.utils.benchmarking import knn_predict as lightly_predict
from timing import Row, in_turns, median_ratio
from torch import Tensor
from torch.nn import functional as F

from querykey.evaluation.knn import knn_predict

QUERIES, KEYS, WIDTH, CLASSES, K, TEMPERATURE = 10_000, 50_000, 512, 10, 200, 0.1
BATCH, REPEATS = 500, 2
LEAST, LEAST_ALIKE, MOST_MEMORY_MB = 2.0, 0.999, 400.0
PEER, PRODUCT = "lightly", "lightly's product alone"


def rows_and_labels() -> tuple[Tensor, Tensor]:
    """Unit rows around a centre for each class, their spread falling from direction to direction."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (KEYS + QUERIES,), generator=draw)
    spread = torch.logspace(0, -1.5, WIDTH)
    centres = torch.randn(CLASSES, WIDTH, generator=draw) + 2 * torch.rand(WIDTH, generator=draw)
    rows = (centres[labels] + 3 * torch.randn(KEYS + QUERIES, WIDTH, generator=draw)) * spread
    return F.normalize(rows, dim=1), labels


def measure() -> list[Row]:
    """Seconds of lightly by ours, how often the two agree, and the memory of each."""
    rows, labels = rows_and_labels()
    bank, queries, bank_labels = rows[:KEYS], rows[KEYS:], labels[:KEYS]
    theirs_bank = bank.T.contiguous()
    found: dict[str, Tensor] = {}
    memory: dict[str, float] = {}

    def watched(name: str, run: Any) -> Any:
        def again() -> None:
            before = anonymous_mb()
            with HighestMemory() as highest:
                found[name] = run()
            memory[name] = max(memory.get(name, 0.0), highest.mb - before)

        return again

    def ours() -> Tensor:
        return knn_predict(bank, bank_labels, queries, k=K, temperature=TEMPERATURE)

    def theirs() -> Tensor:
        batches = [
            lightly_predict(some, theirs_bank, bank_labels, CLASSES, K, TEMPERATURE)[:, 0]
            for some in queries.split(BATCH)
        ]
        return torch.cat(batches)

    def product() -> Tensor:
        for some in queries.split(BATCH):
            torch.mm(some, theirs_bank)
        return bank_labels

    contenders = {"ours": ours, PEER: theirs, PRODUCT: product}
    seconds = in_turns({name: watched(name, run) for name, run in contenders.items()}, REPEATS)
    ratio = median_ratio(seconds[PEER], seconds["ours"])
    bound = median_ratio(seconds[PEER], seconds[PRODUCT])
    took = {f"{name}_s": round(statistics.median(taken), 2) for name, taken in seconds.items()}
    alike = float((found["ours"] == found[PEER]).double().mean())
    megabytes = {f"{name}_mb": round(memory[name]) for name in ("ours", PEER)}
    right = float((found["ours"] == labels[KEYS:]).double().mean())
    return [
        Row("kNN, lightly's seconds by ours", ratio, f"at least {LEAST:g}", ratio >= LEAST, took),
        Row("kNN, lightly's seconds by its own matrix product's", bound, "", None, took),
        Row(
            "kNN, share of queries where both give one class",
            alike,
            f"at least {LEAST_ALIKE:g}",
            alike >= LEAST_ALIKE,
            {"right": round(right, 4)},
        ),
        Row(
            "kNN, MB above the rows",
            memory["ours"],
            f"at most {MOST_MEMORY_MB:g}",
            memory["ours"] <= MOST_MEMORY_MB,
            megabytes,
        ),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in measure():
        print(row)
