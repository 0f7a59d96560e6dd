"""A grid of cells: each is done once, a killed grid goes on, and every cell is a record."""

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from querykey.io.program import say
from querykey.io.records import Records

__all__ = ["CELL", "FORMAT", "Cell", "Measure", "compact", "done_keys", "run_grid", "tell", "write_plan"]

FORMAT = 1
"""Of a cell's record: another format, and every cell is measured again."""
CELL, PLAN = "cell", "plan"
DECIMALS = 4

Measure = Callable[["Cell"], dict[str, Any]]
Told = Callable[[int, int, "Cell", dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one task with one seed.

    Args:
        task: Name of the task.
        method: Name of the method.
        seed: Of the method.
        identity: All that the numbers depend on, as JSON: settings, protocol, keys of the features.
        work: What `Measure` needs besides; it can be sent to another process.
    """

    task: str
    method: str
    seed: int
    identity: dict[str, Any]
    work: Any = None

    @property
    def key(self) -> str:
        """The sha256 of what the cell is, whatever it is called.

        Example:
            >>> one = Cell(task="t", method="a", seed=0, identity={"dim": 2})
            >>> one.key == Cell(task="t", method="b", seed=0, identity={"dim": 2}).key
            True
        """
        what = {"format": FORMAT, "task": self.task, "seed": self.seed, "identity": self.identity}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def run_grid(
    cells: Sequence[Cell], records: Records, measure: Measure, *, jobs: int = 1, told: Told | None = None
) -> int:
    """Measure the cells that have no record yet, in their order, and append a record for each.

    Args:
        cells: What is wanted; two of one key are one cell.
        records: Where they are kept.
        measure: Gives a cell's fields; with several jobs, a function of a module.
        jobs: Processes, at least 1.
        told: Called with (done, in all, cell, fields) after each.

    Returns:
        How many were measured now.
    """
    missing = list({cell.key: cell for cell in reversed(cells)}.values())[::-1]
    there = done_keys(records)
    missing = [cell for cell in missing if cell.key not in there]
    for count, (cell, fields) in enumerate(_measured(missing, measure, jobs), start=1):
        records.append(CELL, key=cell.key, task=cell.task, method=cell.method, seed=cell.seed, **fields)
        if told is not None:
            told(count, len(missing), cell, fields)
    return len(missing)


def done_keys(records: Records) -> set[str]:
    """Keys of the cells that are done.

    Args:
        records: Of a grid.

    Returns:
        The keys.
    """
    return {record["key"] for record in records.read() if record["kind"] == CELL}


def write_plan(records: Records, place: int, task: str, fields: dict[str, Any]) -> None:
    """Keep what a task is and which cells belong to it, if it is not what was planned last.

    Args:
        records: Of the grid.
        place: Where the task stands in the report.
        task: Its name.
        fields: Methods with the keys of their cells, questions, protocol.
    """
    plans = [record for record in records.read() if record["kind"] == PLAN and record["task"] == task]
    body = {"place": place, "task": task, **json.loads(json.dumps(fields))}
    last = (
        {name: value for name, value in plans[-1].items() if name not in ("kind", "revision")}
        if plans
        else {}
    )
    if body != last:
        records.append(PLAN, revision=len(plans) + 1, **body)


def tell(done: int, count: int, cell: Cell, fields: dict[str, Any]) -> None:
    """Say in a line what a cell scored, where its scores are [sum, asked].

    Args:
        done: Cells measured now.
        count: Cells to measure now.
        cell: The one.
        fields: Its record.
    """
    means = (f"{name} {right / asked:.4f}" for name, (right, asked) in fields["values"].items() if asked)
    say(f"[{done}/{count}] {cell.method}, seed {cell.seed}: {', '.join(means)}, {fields['seconds']:.0f} s")


def compact(values: Iterable[float]) -> list[float | int | None]:
    """Numbers of queries in few characters: four decimals, whole numbers as such, NaN as None.

    Args:
        values: One number a query.

    Returns:
        As many.

    Example:
        >>> compact([1.0, 0.333333, float("nan")])
        [1, 0.3333, None]
    """
    short = [None if value != value else round(float(value), DECIMALS) for value in values]  # noqa: PLR0124
    return [int(value) if value is not None and value.is_integer() else value for value in short]


def _measured(cells: Sequence[Cell], measure: Measure, jobs: int) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Cells with their fields, as they are done; never more of them begun than there are jobs."""
    if jobs == 1 or len(cells) < 2:
        yield from ((cell, measure(cell)) for cell in cells)
        return
    # a forked child would share the locks of the parent's threads
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(cells)), mp_context=context, initializer=_end_with_parent)
    coming, running = iter(cells), dict[Future[dict[str, Any]], Cell]()
    try:
        while True:
            while len(running) < jobs and (cell := next(coming, None)) is not None:
                running[pool.submit(measure, cell)] = cell
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """See to it that a worker ends when its grid is killed, in the middle of a cell too."""
    grid = multiprocessing.parent_process()
    if grid is None:
        raise RuntimeError("a worker of a grid has a parent")

    def watch() -> None:
        grid.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
