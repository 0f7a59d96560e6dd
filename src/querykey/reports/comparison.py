"""Records of a grid as numbers of queries: averaged over seeds, then compared pair by pair."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from querykey.errors import DataError
from querykey.io.records import Record

if TYPE_CHECKING:
    from querykey.evaluation.intervals import Interval

__all__ = ["Column", "Comparison", "averaged", "comparisons", "intervals", "less", "verdict"]

Values = list[float]
Column = Sequence[float | int | None]
"""One number a query; None where it does not count."""


@dataclass(frozen=True)
class Comparison:
    """One task's plan with its cells.

    Args:
        plan: Title, methods with the keys of their cells, metrics, references, questions.
        cells: Key to record, for the cells that are done.
    """

    plan: Record
    cells: Mapping[str, Record]

    @property
    def methods(self) -> list[dict[str, Any]]:
        """The methods of the plan that have a cell."""
        return [method for method in self.plan["methods"] if self.of(method["name"])]

    @property
    def planned(self) -> int:
        """How many cells there will be."""
        return len({key for method in self.plan["methods"] for key in method["keys"]})

    def of(self, method: str) -> dict[int, Record]:
        """Seed to cell, for the cells of a method that are done."""
        keys = [key for known in self.plan["methods"] if known["name"] == method for key in known["keys"]]
        done = (self.cells[key] for key in keys if key in self.cells)
        return {cell["seed"]: cell for cell in done}

    def label(self, method: str) -> str:
        """What a method is called."""
        return str(next(m["label"] for m in self.plan["methods"] if m["name"] == method)).strip("*")

    def values(self, method: str, metric: str, *, seeds: Sequence[int] | None = None) -> Values | None:
        """One number a query, averaged over seeds; None where there is none.

        Args:
            method: Its name.
            metric: Its name.
            seeds: These alone; all where None.

        Returns:
            NaN where a query does not count.
        """
        cells = [cell for seed, cell in self.of(method).items() if seeds is None or seed in seeds]
        columns = [cell["values"][metric] for cell in cells if metric in cell["values"]]
        return averaged(columns, method) if columns else None

    def apart(self, ours: str, theirs: str, metric: str) -> Values | None:
        """What one method has more than another, query by query.

        Two methods with seeds are compared on the seeds that both have.

        Args:
            ours: A method.
            theirs: Another.
            metric: What is compared.

        Returns:
            NaN where a query does not count in both; None where there is nothing to compare.

        Raises:
            DataError: If their queries differ.
        """
        trained = {method["name"] for method in self.plan["methods"] if method["kind"] == "adapter"}
        seeds = sorted(set(self.of(ours)) & set(self.of(theirs))) if {ours, theirs} <= trained else None
        mine, other = (self.values(name, metric, seeds=seeds) for name in (ours, theirs))
        return None if mine is None or other is None else less(mine, other, f"{ours} and {theirs}")

    def spread(self, method: str, metric: str) -> tuple[float, float] | None:
        """The lowest and the highest mean of a seed; None for one seed."""
        means = [
            _mean(values)
            for seed in self.of(method)
            if (values := self.values(method, metric, seeds=[seed])) is not None
        ]
        return (min(means), max(means)) if len(means) > 1 else None

    def seconds(self, method: str) -> float | None:
        """The middle of the seeds' seconds of fit."""
        seconds = sorted(cell["seconds"] for cell in self.of(method).values() if "seconds" in cell)
        return seconds[len(seconds) // 2] if seconds else None


def comparisons(records: Sequence[Record]) -> list[Comparison]:
    """What records hold, task by task, as each was planned last.

    Args:
        records: Plans and cells of a grid.

    Returns:
        In the order of the report; cells that no plan names any more are left out.
    """
    cells = {record["key"]: record for record in records if record["kind"] == "cell"}
    plans = {record["task"]: record for record in records if record["kind"] == "plan"}
    return [
        Comparison(plan, {k: cells[k] for m in plan["methods"] for k in m["keys"] if k in cells})
        for plan in sorted(plans.values(), key=lambda plan: (plan["place"], plan["task"]))
    ]


def averaged(columns: Sequence[Column], name: str) -> Values:
    """Numbers of queries, averaged over seeds.

    Args:
        columns: One a seed, at least one; None where a query does not count.
        name: Whose they are, for a message.

    Returns:
        NaN where a query does not count in one of them.

    Raises:
        DataError: If they are of different queries.

    Example:
        >>> averaged([[1.0, 0.0], [0.0, None]], "a")
        [0.5, nan]
    """
    _require_same(columns, f"cells of {name}")
    return [
        math.fsum(one for one in numbers if one is not None) / (math.nan if None in numbers else len(numbers))
        for numbers in zip(*columns, strict=True)
    ]


def less(ours: Values, theirs: Values, names: str) -> Values:
    """What one has more than the other, query by query.

    Args:
        ours: One number a query.
        theirs: Likewise.
        names: Of both, for a message.

    Returns:
        NaN where a query does not count in both.

    Raises:
        DataError: If they are of different queries.
    """
    _require_same([ours, theirs], names)
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def _require_same(columns: Sequence[Column], names: str) -> None:
    if len({len(column) for column in columns}) > 1:
        raise DataError(f"{names} have numbers of different queries; measure them again")


def verdict(rule: str, difference: "Interval") -> str:
    """What a difference says under a rule fixed beforehand.

    Args:
        rule: "above": the interval lies above 0. "at or above": the mean is at least 0. "not below":
            the interval does not lie below 0.
        difference: Paired, with its 95% interval.

    Returns:
        "yes", "no" (the interval lies below 0), or "can't tell".
    """
    if difference.high < 0:
        return "no"
    held = {"above": difference.low > 0, "at or above": difference.mean >= 0, "not below": True}
    return "yes" if held[rule] else "can't tell"


def intervals(columns: Sequence[Values | None], *, level: float = 0.95) -> "list[Interval | None]":
    """The mean of each column with its interval, None for None.

    Args:
        columns: One number a query each, of the same queries.
        level: Of the interval.

    Returns:
        As many.
    """
    # torch is heavy, and whoever only imports a report should not wait for it
    import torch

    from querykey.evaluation.intervals import bootstrap_columns

    there = [torch.tensor(column, dtype=torch.float64) for column in columns if column is not None]
    found = iter(bootstrap_columns(there, level=level))
    return [None if column is None else next(found) for column in columns]


def _mean(values: Values) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known)
