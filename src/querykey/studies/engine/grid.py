"""A grid of cells: each is measured once and is a record; a grid that was killed can be resumed."""

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NamedTuple

from querykey.io.records import Records
from querykey.studies.engine.data import StudyFeatures, StudyImages
from querykey.studies.engine.study import Arm

__all__ = ["CELL", "FORMAT", "Cell", "Measure", "Progress", "Work", "compact", "run_grid"]

FORMAT = 1
"""Of a cell's record. It is part of the key: with another format every cell is measured again."""
CELL = "cell"
DECIMALS = 4

Measure = Callable[["Cell"], dict[str, Any]]
Progress = Callable[[int, int, "Cell", dict[str, Any]], None]
"""Called after each cell with (cells measured now, cells to measure now, cell, fields of its record)."""


class Work(NamedTuple):
    """What is needed to measure a cell, in any process.

    Args:
        arm: With its settings as planned.
        data: Training and test data.
        threads: Of torch.
        measures: What its study asks for or draws; None: all that the arm's kind can measure.
        knn: k and temperature of kNN on features.
    """

    arm: Arm
    data: StudyImages | StudyFeatures
    threads: int
    measures: Collection[str] | None = None
    knn: tuple[int, float] = (10, 0.1)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One arm of a study with one seed.

    Args:
        task: Name of the study.
        method: Name of the arm.
        seed: Random seed.
        identity: Everything the numbers depend on, as JSON.
        work: What `Measure` needs; it can be sent to another process.
    """

    task: str
    method: str
    seed: int
    identity: dict[str, Any]
    work: Any = None

    @property
    def key(self) -> str:
        """The sha256 of study, seed and identity; the arm's name is not part of it.

        Example:
            >>> one = Cell(task="t", method="a", seed=0, identity={"dim": 2})
            >>> one.key == Cell(task="t", method="b", seed=0, identity={"dim": 2}).key
            True
        """
        content = {"format": FORMAT, "task": self.task, "seed": self.seed, "identity": self.identity}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def run_grid(
    cells: Sequence[Cell],
    records: Records,
    measure: Measure,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> int:
    """Measure the cells that have no record yet, in their order, and append a record for each.

    Args:
        cells: All cells; two with one key are one cell.
        records: Of the grid.
        measure: Returns the fields of a cell's record; with several jobs, a module-level function.
        jobs: Number of processes, at least 1.
        progress: Called after each cell.

    Returns:
        Number of cells measured now.
    """
    done = {record["key"] for record in records.read() if record["kind"] == CELL}
    missing = [cell for cell in {cell.key: cell for cell in reversed(cells)}.values() if cell.key not in done]
    for count, (cell, fields) in enumerate(_measured(missing[::-1], measure, jobs), start=1):
        records.append(CELL, key=cell.key, task=cell.task, method=cell.method, seed=cell.seed, **fields)
        if progress is not None:
            progress(count, len(missing), cell, fields)
    return len(missing)


def compact(values: Iterable[float]) -> list[float | int | None]:
    """Numbers per query in few characters: four decimals, integers as such, NaN as None.

    Args:
        values: One number per query.

    Returns:
        The same number of values.

    Example:
        >>> compact([1.0, 0.333333, float("nan")])
        [1, 0.3333, None]
    """
    short = [None if value != value else round(float(value), DECIMALS) for value in values]  # noqa: PLR0124
    return [int(value) if value is not None and value.is_integer() else value for value in short]


def _measured(cells: Sequence[Cell], measure: Measure, jobs: int) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Cells with their fields, in order of completion; no more cells are submitted than there are jobs."""
    if jobs == 1 or len(cells) < 2:
        yield from ((cell, measure(cell)) for cell in cells)
        return
    # a forked child would share the locks of the parent's threads
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(cells)), mp_context=context, initializer=_end_with_parent)
    waiting, running = iter(cells), dict[Future[dict[str, Any]], Cell]()
    try:
        while True:
            while len(running) < jobs and (cell := next(waiting, None)) is not None:
                running[pool.submit(measure, cell)] = cell
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End a worker when the grid's process is killed, even in the middle of a cell."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("a worker of a grid has a parent")

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
