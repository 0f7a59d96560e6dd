"""Records of a study of pretraining -> cells of a table: shares, intervals, verdicts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from querykey.io.records import Record

__all__ = [
    "Arm",
    "Cells",
    "Spread",
    "Word",
    "arms_table",
    "asked_table",
    "judged",
    "measured",
    "over_seeds",
    "pair",
    "share_of",
    "spread",
    "table",
    "verdict_of",
    "wilson",
]

FEWEST_SEEDS = 3
Z = 1.959964
"""Of a 95% interval."""

Cells = Mapping[str, Mapping[int, Record]]
"""Arm to seed to its cell."""


Word = Literal["yes", "no", "can't tell", "not measured yet"]
"""A verdict."""


class Arm(NamedTuple):
    """One way to pretrain, as it was planned."""

    name: str
    label: str
    group: str


class Spread(NamedTuple):
    """A mean over seeds with its 95% interval: of the t distribution, where it is not said otherwise."""

    mean: float
    low: float
    high: float
    seeds: int


def wilson(right: int, asked: int) -> tuple[float, float]:
    """The 95% interval of a share.

    Args:
        right: How many were right.
        asked: Of how many, at least 1.

    Returns:
        (low, high).

    Example:
        >>> [round(x, 3) for x in wilson(60, 100)]
        [0.502, 0.691]

    Source:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    share, square = right / asked, Z * Z
    middle = share + square / (2 * asked)
    spread = Z * math.sqrt(share * (1 - share) / asked + square / (4 * asked * asked))
    return (middle - spread) / (1 + square / asked), (middle + spread) / (1 + square / asked)


def over_seeds(values: Sequence[float]) -> Spread:
    """The mean of a few numbers with its 95% interval.

    Args:
        values: One a seed; with fewer than two the interval has no end.

    Returns:
        The mean and its interval.

    Example:
        >>> [round(x, 2) for x in over_seeds([1.0, 2.0, 3.0])]
        [2.0, -0.48, 4.48, 3]
    """
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Spread(mean, -math.inf, math.inf, count)
    from scipy.stats import t

    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
    return Spread(mean, mean - half, mean + half, count)


def asked_table(questions: Sequence[dict[str, Any]], cells: Cells) -> str:
    """Questions with their verdicts.

    Args:
        questions: As they were planned.
        cells: What is measured.

    Returns:
        Markdown; empty where there is no question.
    """
    rows = []
    for asked in questions:
        ours, theirs = (measured(cells, *asked[side]) for side in ("ours", "theirs"))
        seeds = sorted(set(ours) & set(theirs))
        if len(seeds) < FEWEST_SEEDS:
            rows.append([asked["ask"], "", "", "not measured yet", asked["published"]])
            continue
        apart = over_seeds([ours[seed] - theirs[seed] for seed in seeds])
        compared = f"{_mean(ours, seeds)} against {_mean(theirs, seeds)}"
        words = f"{apart.mean:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}], {apart.seeds} seeds"
        rows.append([asked["ask"], compared, words, f"**{_verdict(apart)}**", asked["published"]])
    return table(["question", "means", "difference [95%]", "verdict", "published"], rows) if rows else ""


def verdict_of(ours: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[Word, str]:
    """Whether one thing is above another, over the seeds that both have.

    Args:
        ours: A score by seed.
        theirs: Likewise.

    Returns:
        (verdict, the numbers it is read from): "can't tell" with one seed, which has no interval.

    Example:
        >>> verdict_of({0: 0.5, 1: 0.6}, {0: 0.4})
        ("can't tell", '0.500 against 0.400: +0.100, one seed')
    """
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return "not measured yet", ""
    apart = over_seeds([ours[seed] - theirs[seed] for seed in seeds])
    mine, other = (sum(side[seed] for seed in seeds) / len(seeds) for side in (ours, theirs))
    return judged(mine, other, apart)


def judged(ours: float, theirs: float, apart: Spread, *, queries: int | None = None) -> tuple[Word, str]:
    """The rule: yes above 0, no below it, can't tell otherwise and with one seed.

    Args:
        ours: Mean of the one.
        theirs: Mean of the other.
        apart: Their paired difference.
        queries: Of how many, where the interval is over them.

    Returns:
        (verdict, the numbers it is read from).

    Example:
        >>> judged(0.53, 0.5, Spread(0.03, 0.01, 0.05, 3), queries=100)
        ('yes', '0.530 against 0.500: +0.030 [+0.010, +0.050], 100 queries, 3 seeds')
        >>> judged(0.46, 0.5, Spread(-0.04, -0.08, -0.0003, 3))
        ('no', '0.460 against 0.500: -0.040 [-0.080, -0.0003], 3 seeds')
    """
    mean, low, high = map(_signed, apart[:3])
    words = f"{ours:.3f} against {theirs:.3f}: {mean}"
    if apart.seeds < 2:
        return "can't tell", f"{words}, one seed"
    asked = "" if queries is None else f", {queries:,} queries"
    return _verdict(apart), f"{words} [{low}, {high}]{asked}, {apart.seeds} seeds"


def _signed(value: float) -> str:
    """Three decimals, or four where three would hide on which side of 0 it lies; never -0.000."""
    digits = 4 if round(value, 3) == 0 != round(value, 4) else 3
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def arms_table(arms: Sequence[Arm], cells: Cells, measures: Sequence[str]) -> str:
    """Each arm's mean over seeds, lowest and highest.

    Args:
        arms: In their order.
        cells: What is measured.
        measures: Columns.

    Returns:
        Markdown.
    """
    rows = [
        [arm.label, *(spread(measured(cells, arm.name, measure)) for measure in measures)] for arm in arms
    ]
    return table(["mean over seeds (lowest to highest)", *measures], rows)


def measured(cells: Cells, arm: str, measure: str) -> dict[int, float]:
    """What one arm scored.

    Args:
        cells: What is measured.
        arm: Its name.
        measure: Of its scores, or of what the monitors saw last.

    Returns:
        By seed; without those that have no such number.
    """
    found = {}
    for seed, cell in cells.get(arm, {}).items():
        seen = cell.get("run", {}).get("end", {})
        if measure in cell["values"]:
            found[seed] = share_of(cell, measure)
        elif measure in seen:
            found[seed] = float(seen[measure])
    return found


def share_of(cell: Record, measure: str) -> float:
    """A score: counts of right and asked as their share, one number as it is."""
    value = cell["values"][measure]
    return float(value) if isinstance(value, int | float) else float(value[0]) / float(value[1])


def pair(cell: Record, what: str) -> list[str]:
    """Accuracy by kNN and of a linear classifier of one kind of rows, with intervals."""
    words = []
    for measure in (f"kNN {what}", f"linear {what}"):
        right, asked = cell["values"][measure]
        low, high = wilson(right, asked)
        words.append(f"{right / asked:.3f} [{low:.3f}, {high:.3f}]")
    return words


def spread(values: Mapping[int, float]) -> str:
    """Mean, lowest and highest; empty of nothing."""
    if not values:
        return ""
    mean = sum(values.values()) / len(values)
    return f"{mean:.3f} ({min(values.values()):.3f} to {max(values.values()):.3f})"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    marks = ["---"] * len(head)
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in [head, marks, *rows]) + "\n"


def _verdict(apart: Spread) -> Literal["yes", "no", "can't tell"]:
    if apart.low > 0:
        return "yes"
    return "no" if apart.high < 0 else "can't tell"


def _mean(values: Mapping[int, float], seeds: Sequence[int]) -> str:
    return f"{sum(values[seed] for seed in seeds) / len(seeds):.3f}"
