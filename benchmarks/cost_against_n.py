"""What a step and whole commands cost as the rows grow.

Each number of rows has a process for each kind of work, which maps the first rows of one file. `fit` is a
short fit of an adapter with a memory of 5,000 rows, then labelled steps that are timed in turns with those of
the other sizes. `transform`, `evaluate` (100 queries) and `embed` (by a layer of 384 -> 64) are run once.
Anonymous memory is the highest that was seen from the first read of the file to the end; file pages are not
counted, the system takes them back. N = 0 imports the same and does nothing.

QUERYKEY_MOST_ROWS lowers the largest size, whose file takes 1.5 kB a row.
"""

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from timing import Row
from torch import Tensor, nn

from querykey import Adapter
from querykey.adapter.closed_forms import principal_components
from querykey.adapter.fit import fit_adapter
from querykey.adapter.sampling import plan_of_items
from querykey.adapter.settings import AdapterSettings, resolve
from querykey.adapter.training import layer_at
from querykey.data.items import RowNumbers, Source
from querykey.encoders.frozen.encoder import FrozenEncoder
from querykey.encoders.frozen.model import TorchModel
from querykey.evaluation.moments import moments
from querykey.evaluation.protocol import evaluate_embeddings
from querykey.evaluation.task import Embedded, Maker, Protocol, Task
from querykey.features.embed import embed
from querykey.reports.charts.spec import Line, Lines
from querykey.reports.charts.svg import as_svg
from querykey.runs.evaluate_adapter import rows_of
from querykey.runtime import load

MOST_ROWS = int(os.environ.get("QUERYKEY_MOST_ROWS", "5000000"))
SIZES = tuple(rows for rows in (10_000, 100_000, 1_000_000, 5_000_000) if rows <= MOST_ROWS)
WIDTH, DIM, CAPACITY, CLASSES, FIT_STEPS = 384, 64, 5_000, 50, 2
STEPS, REPEATS, QUERIES = 10, 7, 100
MOST_TIME, MOST_MEMORY_MB = 1.3, 1000.0
FIGURES = Path(__file__).parent.parent / "docs" / "figures"
KINDS = ("fit", "transform", "evaluate", "embed")


def anonymous_mb() -> float:
    """RssAnon of this process."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1000


class HighestMemory:
    """Looks at the anonymous memory every few milliseconds and keeps the highest."""

    def __enter__(self) -> Self:
        self.mb, self._over = anonymous_mb(), threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.mb = max(self.mb, anonymous_mb())


def report(**figures: Any) -> None:
    """A line of JSON for the process that asked."""
    print(json.dumps(figures), flush=True)


def mapped(path: str, rows: int) -> Tensor:
    """The first rows of the file."""
    return torch.from_numpy(np.load(path, mmap_mode="c")[:rows])


def serve(path: str, rows: int) -> None:
    """Fit, report the memory, and take steps each time a line comes in."""
    with HighestMemory() as highest:
        vectors = mapped(path, rows)
        labels = torch.arange(rows) % CLASSES
        settings = AdapterSettings.from_parameters(
            loss="info_nce",
            capacity=CAPACITY,
            negatives=8,
            sampled=0,
            positives=0,
            steps=FIT_STEPS,
            learning_rate=1e-3,
        )
        began = time.perf_counter()
        fit_adapter(vectors, settings, labels=labels)
        seconds = time.perf_counter() - began
        settings = resolve(settings, task="labels", items=rows, width=WIDTH)
        start = principal_components(moments(vectors, torch.arange(CAPACITY)), DIM, centred=False)
        fc = layer_at(start, settings)
        plan = plan_of_items(fc, settings, vectors, torch.arange(rows), labels)
        numbers = itertools.count()
        for _ in range(STEPS):
            plan.take(next(numbers))
    report(mb=highest.mb, seconds=seconds, cpu_s=time.process_time(), capacity=len(plan.memory))
    for _ in sys.stdin:
        began = time.perf_counter()
        for _ in range(STEPS):
            plan.take(next(numbers))
        report(step_ms=1000 * (time.perf_counter() - began) / STEPS)


def transform(path: str, rows: int) -> None:
    """Write the adapted rows as `querykey transform` does."""
    adapter = load(Path(path).parent / "run")
    blocks = adapter.transform_blocks(np.load(path, mmap_mode="r")[:rows])
    with Path(f"{path}-{rows}-z").open("wb") as stream:
        stream.writelines(block.data for block in blocks)


def evaluate(path: str, rows: int) -> None:
    """Frozen rows beside adapted ones, by class."""
    vectors, adapter = mapped(path, rows), Adapter.load(Path(path).parent / "run")
    task = Task(test=vectors, test_labels=torch.arange(rows) % CLASSES)
    methods: dict[str, Maker] = {"frozen": Embedded(test=vectors), "adapter": lambda: rows_of(adapter, task)}
    evaluate_embeddings(task, methods, protocol=Protocol(max_queries=QUERIES))


def embed_rows(path: str, rows: int) -> None:
    """Features of the rows by one layer."""
    layer = nn.Linear(WIDTH, DIM)
    model = TorchModel(
        layer,
        kind="vector",
        prepare=torch.as_tensor,
        blank=lambda: np.ones(WIDTH, np.float32),
        identity="a layer",
        device=torch.device("cpu"),
    )
    items = np.load(path, mmap_mode="c")[:rows]
    source = Source("rows", "vector", items, RowNumbers(rows), None, (), f"{rows} rows")
    embed(source, FrozenEncoder(model, spec="module:layer"), f"{path}-{rows}-features", shard_size=8192)


WORK: dict[str, Callable[[str, int], None]] = {
    "transform": transform, "evaluate": evaluate, "embed": embed_rows
}  # fmt: skip


def once(path: str, rows: int, kind: str) -> None:
    """Some work, and what it took."""
    with HighestMemory() as highest:
        began, cpu = time.perf_counter(), time.process_time()
        WORK[kind](path, rows)
    report(mb=highest.mb, seconds=time.perf_counter() - began, cpu_s=time.process_time() - cpu)


def write_rows(path: Path) -> None:
    """Random rows, written block by block, and an adapter that is fitted to some of them."""
    draw, block = np.random.default_rng(0), 50_000
    header = {"descr": "<f4", "fortran_order": False, "shape": (max(SIZES), WIDTH)}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        some = draw.standard_normal((block, WIDTH), dtype=np.float32)
        for start in range(0, max(SIZES), block):  # each block is the first, shifted: drawing takes longer
            some += 0.1 * draw.standard_normal(WIDTH, dtype=np.float32)
            stream.write(some[: max(SIZES) - start].data)
    Adapter(dim=DIM, steps=0).fit(some[:CAPACITY], np.arange(CAPACITY) % CLASSES).save(path.parent / "run")


class Process:
    """One N in a process of its own."""

    def __init__(self, path: Path, rows: int, kind: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(path), str(rows), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.start = self._read()

    def steps(self) -> float:
        """Milliseconds of a step, just now."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._read()["step_ms"])

    def end(self) -> None:
        """No more steps."""
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with code {self._process.wait()}")
        read: dict[str, Any] = json.loads(line)
        return read


def measure() -> list[Row]:
    """The slowest N's step by the fastest's, the most memory of a fit, and what the commands take."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        write_rows(path)
        empty = Process(path, 0, "nothing")
        empty.end()
        found: dict[str, dict[int, dict[str, float]]] = {kind: {} for kind in KINDS}
        for kind in KINDS[1:]:
            for rows in SIZES:
                process = Process(path, rows, kind)
                process.end()
                found[kind][rows] = process.start
        processes = {rows: Process(path, rows, "fit") for rows in SIZES}
        taken: dict[int, list[float]] = {rows: [] for rows in SIZES}
        for _ in range(REPEATS):
            for rows, process in processes.items():
                taken[rows].append(process.steps())
        for rows, process in processes.items():
            process.end()
            found["fit"][rows] = process.start
    step = {rows: statistics.median(times) for rows, times in taken.items()}
    above = {
        kind: {rows: one["mb"] - empty.start["mb"] for rows, one in sizes.items()}
        for kind, sizes in found.items()
    }
    return _rows(step, found, above)


def _rows(
    step: dict[int, float], found: dict[str, dict[int, dict[str, float]]], above: dict[str, dict[int, float]]
) -> list[Row]:
    ratio, most = max(step.values()) / min(step.values()), max(above["fit"].values())
    rows = [
        Row(
            f"step at {SIZES[0]:,} to {SIZES[-1]:,} rows: the slowest by the fastest",
            ratio,
            f"at most {MOST_TIME:g}",
            ratio <= MOST_TIME,
            {str(rows): {"step_ms": round(step[rows], 2)} for rows in SIZES},
        ),
        Row(
            "anonymous memory of a fit above an empty process, GB",
            most / 1000,
            f"at most {MOST_MEMORY_MB / 1000:g}",
            most <= MOST_MEMORY_MB,
            _figures("fit", found, above),
        ),
    ]
    rows += [
        Row(
            f"anonymous memory of {kind}, {SIZES[-1]:,} rows by {SIZES[0]:,}",
            max(above[kind][SIZES[-1]], 1.0) / max(above[kind][SIZES[0]], 1.0),
            "",
            None,
            _figures(kind, found, above),
        )
        for kind in KINDS[1:]
    ]
    return rows


def _figures(
    kind: str, found: dict[str, dict[int, dict[str, float]]], above: dict[str, dict[int, float]]
) -> dict[str, dict[str, float]]:
    return {
        str(rows): {
            "anonymous_mb_above_empty": round(above[kind][rows]),
            "s": round(one["seconds"], 2),
            "cpu_s": round(one["cpu_s"], 2),
        }
        for rows, one in found[kind].items()
    }


def draw(rows: list[Row]) -> None:
    """docs/figures/cost-seconds.svg and cost-memory.svg, of the processor's seconds and of the memory."""
    figures = dict(zip(KINDS, [row.figures for row in rows[1:]], strict=True))
    for name, number, words in (
        ("seconds", "cpu_s", "seconds of a processor"),
        ("memory", "anonymous_mb_above_empty", "anonymous memory, MB"),
    ):
        lines = [
            Line(kind, [float(size) for size in sizes], [float(one[number]) for one in sizes.values()])
            for kind, sizes in figures.items()
        ]
        chart = Lines(
            title=f"{words} by rows of {WIDTH} numbers", x="rows", y=words, lines=lines, log_x=True,
            from_zero=True,
        )  # fmt: skip
        (FIGURES / f"cost-{name}.svg").write_text(as_svg(chart, is_file=True), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[2] == "0":
        report(mb=anonymous_mb())
    elif len(sys.argv) == 4 and sys.argv[3] == "fit":
        serve(sys.argv[1], int(sys.argv[2]))
    elif len(sys.argv) == 4:
        once(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    else:
        measured = measure()
        for row in measured:
            print(row)
        draw(measured)
