"""What a step and a whole fit cost as the rows grow and the memory does not.

A process for each N fits an adapter to the first N rows of a memory-mapped file, and then takes
labelled steps over a memory of 5,000 rows that is filled first in, first out. Anonymous memory is the
highest that was seen from the first read of the file to the end of the fit; file pages are not counted,
the system takes them back. N = 0 imports the same and does nothing.
"""

import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from timing import Row

from querykey.adapter.closed_forms import principal_components
from querykey.adapter.fit import fit_adapter
from querykey.adapter.sampling import plan_of_items
from querykey.adapter.settings import AdapterSettings, resolve
from querykey.adapter.training import layer_at
from querykey.evaluation.moments import moments

SIZES = (10_000, 100_000, 1_000_000)
WIDTH, CAPACITY, CLASSES, FIT_STEPS = 384, 5_000, 50, 2
STEPS, REPEATS = 10, 7
MOST_TIME, MOST_MEMORY_MB = 1.3, 1000.0


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


def serve(path: str, rows: int) -> None:
    """Fit, report the memory, and take steps each time a line comes in."""
    if rows == 0:
        report(mb=anonymous_mb())
        return
    with HighestMemory() as highest:
        vectors = torch.from_numpy(np.load(path, mmap_mode="c")[:rows])
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
        start = principal_components(moments(vectors, torch.arange(CAPACITY)), 64, centred=False)
        fc = layer_at(start, settings)
        plan = plan_of_items(fc, settings, vectors, torch.arange(rows), labels)
        numbers = itertools.count()
        for _ in range(STEPS):
            plan.take(next(numbers))
    report(mb=highest.mb, fit_s=seconds, capacity=len(plan.memory))
    for _ in sys.stdin:
        began = time.perf_counter()
        for _ in range(STEPS):
            plan.take(next(numbers))
        report(step_ms=1000 * (time.perf_counter() - began) / STEPS)


def write_rows(path: Path) -> None:
    """Random rows, written block by block."""
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(max(SIZES), WIDTH))
    draw, block = np.random.default_rng(0), 50_000
    for start in range(0, len(rows), block):
        rows[start : start + block] = draw.standard_normal((block, WIDTH), dtype=np.float32)
    rows.flush()


class Process:
    """One N in a process of its own."""

    def __init__(self, path: Path, rows: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(path), str(rows)],
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
    """The slowest N's step by the fastest's, and the most memory above the process that does nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        write_rows(path)
        empty = Process(path, 0)
        empty.end()
        processes = {rows: Process(path, rows) for rows in SIZES}
        taken: dict[int, list[float]] = {rows: [] for rows in SIZES}
        for _ in range(REPEATS):
            for rows, process in processes.items():
                taken[rows].append(process.steps())
        for process in processes.values():
            process.end()
    step = {rows: statistics.median(times) for rows, times in taken.items()}
    ratio = max(step.values()) / min(step.values())
    above = {rows: process.start["mb"] - empty.start["mb"] for rows, process in processes.items()}
    most = max(above.values())
    figures = {str(rows): {"step_ms": round(step[rows], 2)} for rows in SIZES}
    memory = {
        str(rows): {"anonymous_mb_above_empty": round(above[rows]), "fit_s": round(process.start["fit_s"], 2)}
        for rows, process in processes.items()
    }
    return [
        Row(
            "step at 10k, 100k, 1M rows: the slowest by the fastest",
            ratio,
            f"at most {MOST_TIME:g}",
            ratio <= MOST_TIME,
            figures,
        ),
        Row(
            "anonymous memory of a fit above an empty process, GB",
            most / 1000,
            f"at most {MOST_MEMORY_MB / 1000:g}",
            most <= MOST_MEMORY_MB,
            memory,
        ),
    ]


if __name__ == "__main__":
    if len(sys.argv) == 3:
        serve(sys.argv[1], int(sys.argv[2]))
    else:
        for row in measure():
            print(row)
