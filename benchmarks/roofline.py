"""How near the work on a CPU comes to what the machine can do at all: its products and its memory.

Floating-point operations are counted by PyTorch's counter while the work runs, and are those of matrix
products alone; bytes are those of the arguments, read once. The bound is the larger of operations by the rate
of a large product of the same dtype and bytes by the rate of a large copy. Product and copy run in turns with
the work. What is left to win above the bound is selection, softmax, gathers, optimiser and calls.
"""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from adapter_step import BOTH, DIM, OURS, WIDTH, our_steps, rows_and_labels
from timing import Row, in_turns
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from querykey.evaluation.knn import knn_predict
from querykey.lookup.nearest import nearest
from querykey.losses import nt_xent

SIDE, COPIED, REPEATS = 2048, 2**26, 5
PRODUCT, COPY = "product", "copy"


class Work(NamedTuple):
    """Work with the bytes that it must read at least."""

    run: Callable[[], Any]
    bytes: int


def work() -> dict[str, Work]:
    """What is measured, by name."""
    rows, labels = rows_and_labels()
    draw = torch.Generator().manual_seed(0)
    keys = F.normalize(torch.randn(50_000, 384, generator=draw), dim=1)
    queries = F.normalize(torch.randn(2_000, 384, generator=draw), dim=1)
    key_labels = torch.randint(0, 10, (len(keys),), generator=draw)
    views = [torch.randn(4_096, 128, generator=draw).requires_grad_() for _ in range(2)]
    matrix = torch.randn(DIM, WIDTH, generator=draw)
    steps = 10 * rows.nbytes  # each of the ten steps scores the whole memory
    plans = {
        f"ten steps of an adapter: {name}": Work(our_steps(rows, labels, OURS[name][0]), steps)
        for name in (f"info_nce, k = 8, {BOTH}", "the defaults for these classes: nca, 2,048 sampled")
    }
    searched = keys.nbytes + queries.nbytes

    def found() -> tuple[Tensor, Tensor]:
        return nearest(queries, keys, 10, score="dot")

    def voted() -> Tensor:
        return knn_predict(keys, key_labels, queries, k=200, temperature=0.1)

    def lost() -> None:
        nt_xent(*views, temperature=0.1, form="chunked").mean().backward()  # type: ignore[no-untyped-call]

    return plans | {
        "exact top 10 of 2,000 x 50,000 x 384": Work(found, searched),
        "kNN of 2,000 x 50,000 x 384, k = 200": Work(voted, searched),
        "NT-Xent of 2 x 4,096 x 128 views, blocks": Work(lost, 3 * 2 * views[0].nbytes),
        f"{len(rows):,} rows, {WIDTH} to {DIM}, scaled to length 1": Work(
            lambda: F.normalize(rows @ matrix.T, dim=1), rows.nbytes
        ),
    }


def operations(run: Callable[[], Any]) -> int:
    """Floating-point operations of its matrix products."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def rates() -> dict[str, Callable[[], Tensor]]:
    """A large product and a large copy."""
    square = torch.randn(SIDE, SIDE)
    source, out = torch.zeros(COPIED), torch.zeros(COPIED)
    return {PRODUCT: lambda: square @ square, COPY: lambda: out.copy_(source)}


def measure() -> list[Row]:
    """The bound by the seconds of each piece of work."""
    table = []
    bare = rates()
    for name, (run, least) in work().items():
        flops = operations(run)
        seconds = in_turns({name: run, **bare}, REPEATS)
        took, product, copy = (statistics.median(seconds[one]) for one in (name, PRODUCT, COPY))
        by_product, by_memory = flops * product / (2 * SIDE**3), least * copy / (2 * 4 * COPIED)
        figures = {
            "ms": round(1000 * took, 2),
            "products_ms": round(1000 * by_product, 2),
            "memory_ms": round(1000 * by_memory, 2),
            "gflop": round(flops / 1e9, 2),
            "mb": round(least / 1e6, 1),
            "gflop_per_s": round(2 * SIDE**3 / product / 1e9, 1),
            "gb_per_s": round(2 * 4 * COPIED / copy / 1e9, 1),
        }
        table.append(Row(f"bound by time: {name}", max(by_product, by_memory) / took, "", None, figures))
    return table


if __name__ == "__main__":
    for row in measure():
        print(row)
