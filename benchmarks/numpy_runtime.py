"""The NumPy runtime beside the bare product, and its import beside NumPy's."""

import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from timing import Row, in_turns, median_ratio

from querykey.runtime import LoadedAdapter

WIDTH, DIM, ROWS, CALLS, REPEATS, IMPORTS = 384, 64, 8192, 300, 25, 9
MOST_ONE, MOST_MANY, MOST_IMPORT_S = 8.0, 2.0, 0.1


def _imports(module: str) -> Callable[[], Any]:
    return lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)


def measure_products() -> list[Row]:
    """Our seconds by those of the bare product, for one row and for many."""
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((DIM, WIDTH), dtype=np.float32)
    adapter = LoadedAdapter({"weight": weight, "bias": draw.standard_normal(DIM, dtype=np.float32)})
    many = draw.standard_normal((ROWS, WIDTH), dtype=np.float32)
    one = many[0]

    def often(run: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: [run() for _ in range(CALLS)]

    single = in_turns(
        {"ours": often(lambda: adapter.transform(one)), "bare": often(lambda: weight @ one)}, REPEATS
    )
    batch = in_turns({"ours": lambda: adapter.transform(many), "bare": lambda: many @ weight.T}, REPEATS)
    first, second = (median_ratio(taken["ours"], taken["bare"]) for taken in (single, batch))
    return [
        Row(
            f"one row {WIDTH} -> {DIM}, seconds by W @ x", first, f"at most {MOST_ONE:g}", first <= MOST_ONE,
            {f"{name}_us": round(1e6 * statistics.median(t) / CALLS, 2) for name, t in single.items()},
        ),
        Row(
            f"{ROWS:,} rows {WIDTH} -> {DIM}, seconds by X @ W.T", second, f"at most {MOST_MANY:g}",
            second <= MOST_MANY,
            {f"{name}_ms": round(1e3 * statistics.median(t), 2) for name, t in batch.items()},
        ),
    ]  # fmt: skip


def measure() -> list[Row]:
    """The products, and the seconds that the import takes above NumPy's."""
    imports = in_turns({"ours": _imports("querykey.runtime"), "numpy": _imports("numpy")}, IMPORTS)
    more = statistics.median(imports["ours"]) - statistics.median(imports["numpy"])
    ratio = median_ratio(imports["ours"], imports["numpy"])
    return [
        *measure_products(),
        Row(
            "import querykey.runtime by import numpy", ratio, f"at most {MOST_IMPORT_S:g} s more",
            more <= MOST_IMPORT_S, {"more_s": round(more, 3)},
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    for row in measure():
        print(row)
