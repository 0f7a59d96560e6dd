"""Sizes and codes: rows and codes of them beside the bare product, a fit of several sizes, Hamming search."""

import statistics
import time

import faiss
import numpy as np
import torch
from timing import Row, in_turns, median_ratio

from querykey import Adapter
from querykey.runtime import LoadedAdapter
from querykey.runtime.codes import Code
from querykey.runtime.hamming import nearest_by_hamming

WIDTH, DIM, BLOCKS, BLOCK, REPEATS = 384, 64, 10, 100_000, 3
MOST_CODES, FIT_ROWS, FIT_SECONDS = 2.0, 100_000, 360.0
SIZES, BITS = (256, 128, 64, 32, 16), (8, 1)
CODES, QUERIES, K = 1_000_000, 50, 10


def measure_codes() -> list[Row]:
    """Seconds of rows and codes by those of the bare product, over blocks of rows as from a file."""
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((DIM, WIDTH), dtype=np.float32)
    scale = np.asarray([0.4 / 127], dtype=np.float32)
    turn = np.linalg.qr(draw.standard_normal((DIM, DIM)))[0].astype(np.float32)
    signs = {"rotation": turn, "threshold": np.zeros(DIM, "f4"), "scale": np.ones(DIM, "f4")}
    adapter = LoadedAdapter(
        {"weight": weight, "bias": np.zeros(DIM, dtype=np.float32)},
        codes={(DIM, 8): Code(DIM, 8, {"scale": scale}), (DIM, 1): Code(DIM, 1, signs)},
    )
    rows = draw.standard_normal((BLOCK, WIDTH), dtype=np.float32)
    contenders = {
        "bare": lambda: [rows @ weight.T for _ in range(BLOCKS)],
        "transform": lambda: [adapter.transform(rows) for _ in range(BLOCKS)],
        "8_bits": lambda: [adapter.quantize(rows, bits=8) for _ in range(BLOCKS)],
        "1_bit": lambda: [adapter.quantize(rows, bits=1) for _ in range(BLOCKS)],
    }
    taken = in_turns(contenders, REPEATS)
    figures = {f"{name}_s": round(statistics.median(seconds), 2) for name, seconds in taken.items()}
    found = []
    for name in ("8_bits", "1_bit"):
        ratio = median_ratio(taken[name], taken["bare"])
        what = f"{BLOCKS * BLOCK:,} rows {WIDTH} -> {DIM} to {name.replace('_', ' ')}, seconds by X @ W.T"
        found.append(Row(what, ratio, f"at most {MOST_CODES:g}", ratio <= MOST_CODES, figures))
    return found


def measure_fit() -> list[Row]:
    """A fit of several sizes and codes without labels, by the seconds that it may take."""
    draw = np.random.default_rng(1)
    rows = draw.standard_normal((FIT_ROWS, WIDTH), dtype=np.float32) * np.linspace(2, 0.2, WIDTH, dtype="f4")
    began = time.perf_counter()
    adapter = Adapter(dims=SIZES, bits=BITS).fit(rows)
    taken = time.perf_counter() - began
    what = f"a fit of {FIT_ROWS:,} x {WIDTH} to {len(SIZES)} sizes by {FIT_SECONDS:g} s"
    figures = {"fit_s": round(taken, 1), "steps": adapter.report_["steps_taken"]}
    return [Row(what, taken / FIT_SECONDS, "at most 1", taken <= FIT_SECONDS, figures)]


def measure_hamming() -> list[Row]:
    """The nearest codes by differing bits: our seconds by those of faiss's flat index."""
    draw = np.random.default_rng(2)
    codes = draw.integers(0, 256, (CODES, WIDTH // 8), dtype=np.uint8)
    queries = draw.integers(0, 256, (QUERIES, WIDTH // 8), dtype=np.uint8)
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexBinaryFlat(WIDTH)
    index.add(codes)
    found: dict[str, np.ndarray] = {}

    def ours() -> None:
        found["ours"] = nearest_by_hamming(queries, codes, K, threads=torch.get_num_threads())[0]

    def theirs() -> None:
        found["faiss"] = index.search(queries, K)[0]

    taken = in_turns({"ours": ours, "faiss": theirs}, REPEATS)
    ratio = median_ratio(taken["ours"], taken["faiss"])
    figures = {f"{name}_s": round(statistics.median(seconds), 3) for name, seconds in taken.items()}
    figures["same_distances"] = round(float((found["ours"] == found["faiss"]).all(axis=1).mean()), 5)
    what = f"top {K} of {QUERIES} queries among {CODES:,} codes of {WIDTH} bits, seconds by faiss's"
    return [Row(what, ratio, "", None, figures)]


def measure() -> list[Row]:
    """All of them."""
    return [*measure_codes(), *measure_hamming(), *measure_fit()]


if __name__ == "__main__":
    for row in measure():
        print(row)
