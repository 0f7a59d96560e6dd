"""Methods against metrics: means, intervals and paired differences, for a terminal and for JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from querykey.errors import DataError
from querykey.evaluation.intervals import Interval, bootstrap_columns
from querykey.types import PerQuery

__all__ = ["Table", "TableCell", "tabulate"]

OVERLAP_K = 10
OVERLAP = f"overlap@{OVERLAP_K}"
"""1 for the frozen embeddings by definition, so no difference from them is shown."""


@dataclass(frozen=True)
class TableCell:
    """One method under one metric.

    Args:
        value: The mean over queries, with its 95% interval.
        against: Reference to the paired difference, this method minus that one.
        queries: Number of queries that count; the others have no relevant items.
    """

    value: Interval
    against: dict[str, Interval]
    queries: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        against = {
            name: {**difference.as_dict(), "excludes_zero": difference.excludes_zero}
            for name, difference in self.against.items()
        }
        return {**self.value.as_dict(), "queries": self.queries, "against": against}


@dataclass(frozen=True, eq=False)
class Table:
    """The results of an evaluation.

    Args:
        cells: Method, then metric.
        figures: Method, then name of a figure of the whole embedding, without an interval.
        per_query: Method, then metric, the values; NaN where a query has no relevant items.
        references: Methods that the others are compared with.
        protocol: Every constant and count that the numbers depend on.
    """

    cells: dict[str, dict[str, TableCell]]
    figures: dict[str, dict[str, float]]
    per_query: dict[str, dict[str, PerQuery]]
    references: tuple[str, ...]
    protocol: dict[str, Any]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that some method has, in order."""
        return tuple(dict.fromkeys(metric for row in self.cells.values() for metric in row))

    def as_dict(self, *, per_query: bool = False) -> dict[str, Any]:
        """For JSON: no NaN in it, and no key that isn't a string.

        Args:
            per_query: With the number of every query, None where it has nothing to find.
        """
        methods = {
            name: {
                "metrics": {metric: cell.as_dict() for metric, cell in row.items()},
                "figures": dict(self.figures.get(name, {})),
            }
            for name, row in self.cells.items()
        }
        out = {"protocol": self.protocol, "references": list(self.references), "methods": methods}
        if per_query:
            out["per_query"] = {
                name: {
                    metric: [None if math.isnan(v) else v for v in values.tolist()]
                    for metric, values in row.items()
                }
                for name, row in self.per_query.items()
            }
        return out

    def overview(self) -> list[tuple[str, ...]]:
        """A header and a row a method, for 80 columns and up to seven metrics.

        After each mean stands a sign for each of the first two references: + above it and - below it
        by more than the interval, = within it, a blank for the reference itself.
        """
        rows: list[tuple[str, ...]] = [("", "dim", *self.metrics)]
        for name, row in self.cells.items():
            dim = self.figures.get(name, {}).get("dim")
            cells = [self._short(row[m]) if m in row else "" for m in self.metrics]
            rows.append((name, "" if dim is None else f"{dim:.0f}", *cells))
        return rows

    def detail(self, metric: str) -> list[tuple[str, ...]]:
        """A header and a row a method of one metric: mean, interval and paired differences in full.

        80 columns hold two references; a third, where the metric has it, is 20 columns more.

        Raises:
            DataError: If no method has the metric.
        """
        if metric not in self.metrics:
            raise DataError(f"no metric {metric!r} in this table; it has {', '.join(self.metrics)}")
        having = {name: row[metric] for name, row in self.cells.items() if metric in row}
        compared = [r for r in self.references if any(r in cell.against for cell in having.values())]
        rows: list[tuple[str, ...]] = [(metric, "mean", "95%", *(f"minus {name}" for name in compared))]
        for name, cell in having.items():
            differences = [_difference(cell.against.get(reference)) for reference in compared]
            rows.append((name, _number(cell.value.mean), _between(cell.value), *differences))
        return rows

    def _short(self, cell: TableCell) -> str:
        # a blank keeps each reference's sign in its place
        signs = "".join(_sign(cell.against.get(name)) for name in self.references[:2])
        return (_number(cell.value.mean) + signs).rstrip()


def tabulate(
    per_query: Mapping[str, Mapping[str, PerQuery]],
    *,
    figures: Mapping[str, Mapping[str, float]],
    references: Sequence[str],
    protocol: Mapping[str, Any],
    seed: int = 0,
) -> Table:
    """Turn numbers of queries into means, intervals and paired differences.

    Args:
        per_query: Method to metric to one number a query; the same queries for all methods.
        figures: Method to figures without interval.
        references: Methods to compare with; one that isn't there is passed over.
        protocol: Kept as it is.
        seed: Of the bootstrap.

    Returns:
        The table. A metric for which no query counts is left out of it.

    Example:
        >>> import torch
        >>> numbers = {"frozen": {"hit@1": torch.tensor([0.0, 0.0])}, "ours": {"hit@1": torch.ones(2)}}
        >>> table = tabulate(numbers, figures={}, references=["frozen"], protocol={})
        >>> table.overview()[2]
        ('ours', '', '1.00+')
    """
    cells: dict[str, dict[str, TableCell]] = {name: {} for name in per_query}
    for metric in dict.fromkeys(metric for row in per_query.values() for metric in row):
        values = {name: row[metric] for name, row in per_query.items() if metric in row}
        values = {name: column for name, column in values.items() if not column.isnan().all()}
        compared = [r for r in references if r in values and not (metric == OVERLAP and r == "frozen")]
        pairs = [(name, reference) for name in values for reference in compared if name != reference]
        columns = [*values.values(), *(values[a].double() - values[b].double() for a, b in pairs)]
        if not columns:
            continue
        intervals = bootstrap_columns(columns, seed=seed)
        differences = dict(zip(pairs, intervals[len(values) :], strict=True))
        for (name, column), interval in zip(values.items(), intervals, strict=False):
            against = {r: differences[name, r] for r in compared if r != name}
            cells[name][metric] = TableCell(interval, against, int((~column.isnan()).sum()))
    return Table(
        cells=cells,
        figures={name: dict(row) for name, row in figures.items()},
        per_query={name: dict(row) for name, row in per_query.items()},
        references=tuple(r for r in references if r in per_query),
        protocol=dict(protocol),
    )


def _sign(difference: Interval | None) -> str:
    if difference is None:
        return " "
    if not difference.excludes_zero:
        return "="
    return "+" if difference.mean > 0 else "-"


def _number(value: float) -> str:
    """Four characters for numbers from 0 to 1."""
    return f"{value:.3f}".removeprefix("0") if value < 0.9995 else f"{value:.2f}"


def _signed(value: float) -> str:
    return ("-" if value < 0 else "+") + _number(abs(value))


def _between(interval: Interval) -> str:
    return f"[{_number(interval.low)},{_number(interval.high)}]"


def _difference(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{_signed(interval.mean)} [{_signed(interval.low)},{_signed(interval.high)}]"
