"""Means, paired differences with intervals, verdicts and rows of tables, from the cells of a study."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from querykey.errors import DataError
from querykey.io.study_folder import Cells, StoredStudy, shown_measures

if TYPE_CHECKING:
    from querykey.evaluation.intervals import Interval

__all__ = [
    "PairedDifference",
    "Verdict",
    "Word",
    "answers",
    "arms_rows",
    "arms_table",
    "averaged",
    "intervals",
    "is_trained",
    "markdown_table",
    "mean_and_range",
    "over_seeds",
    "paired",
    "paired_columns",
    "per_query",
    "scores",
    "signed_interval",
    "verdict",
    "wilson",
]

Z = 1.959964
"""Normal quantile of a 95% interval."""
MIN_SEEDS = 2
UNTRAINED = ("baseline", "classifier")
"""Kinds of arms without a seed of their own."""

Word = Literal["yes", "no", "can't tell", "not measured yet"]
"""A verdict."""
Column = Sequence[float | int | None]
"""One number per query; None where the query does not count."""


class PairedDifference(NamedTuple):
    """A paired difference with its 95% interval.

    Args:
        mean: Ours minus theirs.
        low: Lower end of the interval; -inf where there is none.
        high: Upper end; inf where there is none.
        seeds: Number of seeds.
        ours: Mean of the one.
        theirs: Mean of the other.
        queries: Number of queries, where the interval is over queries.
    """

    mean: float
    low: float
    high: float
    seeds: int
    ours: float
    theirs: float
    queries: int | None = None

    @property
    def means(self) -> str:
        """Both means as text."""
        return f"{self.ours:.3f} against {self.theirs:.3f}"

    @property
    def interval(self) -> str:
        """The difference with its interval, queries and seeds."""
        if math.isinf(self.low):
            return f"{_signed(self.mean)}, one seed"
        counted = "" if self.queries is None else f", {self.queries:,} queries"
        difference = signed_interval(self.mean, self.low, self.high)
        return f"{difference}{counted}, {self.seeds} seed{'s' * (self.seeds != 1)}"


class Verdict(NamedTuple):
    """A question with its verdict.

    Args:
        ask: The question.
        word: The verdict.
        difference: The paired difference it is based on; None if it is not measured yet.
        published: The paper's answer, or "".
    """

    ask: str
    word: Word
    difference: PairedDifference | None
    published: str

    @property
    def because(self) -> str:
        """The means and their difference as text."""
        return "" if self.difference is None else f"{self.difference.means}: {self.difference.interval}"


def verdict(low: float, mean: float, high: float, rule: str = "above") -> Literal["yes", "no", "can't tell"]:
    """The verdict on a paired difference, by a rule that was fixed before it was measured.

    Args:
        low: Lower end of its interval.
        mean: The difference.
        high: Upper end of its interval.
        rule: "above": yes where the interval lies above 0. "at or above": yes where the mean is at least 0.
            "not below": yes where the interval does not lie below 0.

    Returns:
        "yes"; "no" where the interval lies below 0; else "can't tell".

    Example:
        >>> verdict(0.01, 0.03, 0.05), verdict(-0.01, 0.01, 0.03), verdict(-0.01, 0.01, 0.03, "not below")
        ('yes', "can't tell", 'yes')
    """
    if high < 0:
        return "no"
    is_yes = {"above": low > 0, "at or above": mean >= 0, "not below": True}
    return "yes" if is_yes[rule] else "can't tell"


def answers(study: StoredStudy) -> list[Verdict]:
    """The questions of a study with their verdicts.

    Args:
        study: As far as it is measured.

    Returns:
        One per question, in their order. The interval is over queries where cells have numbers per query,
        else over seeds.

    Raises:
        DataError: If cells have numbers of different queries, or none of them counts.
    """
    return [
        Verdict(str(one["ask"]), *_answer(study, one), str(one.get("published") or ""))
        for one in study.described.get("asked", [])
    ]


def _answer(study: StoredStudy, question: Mapping[str, Any]) -> tuple[Word, PairedDifference | None]:
    found = _difference(study, question)
    if found is None:
        return "not measured yet", None
    if found.seeds < question.get("min_seeds", MIN_SEEDS):
        return "can't tell", found._replace(low=-math.inf, high=math.inf)
    return verdict(found.low, found.mean, found.high, question.get("rule", "above")), found


def _difference(study: StoredStudy, question: Mapping[str, Any]) -> PairedDifference | None:
    ours, theirs = question["ours"], question["theirs"]
    columns = paired_columns(study, ours, theirs)
    if columns is None:
        return paired(scores(study.cells, *ours), scores(study.cells, *theirs))
    left, right, seeds = columns
    _check_same_queries([left, right], f"{ours[0]} and {theirs[0]}")
    differences = [a - b for a, b in zip(left, right, strict=True)]
    counted = [row for row, value in enumerate(differences) if not math.isnan(value)]
    (found,) = intervals([differences], level=1 - 0.05 / question.get("comparisons", 1))
    assert found is not None
    means = [math.fsum(column[row] for row in counted) / len(counted) for column in (left, right)]
    return PairedDifference(found.mean, found.low, found.high, seeds, means[0], means[1], len(counted))


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> PairedDifference | None:
    """The difference of two scores over the seeds that both have, with the interval of the t distribution.

    Args:
        ours: Seed to score.
        theirs: Seed to score.

    Returns:
        The difference; with one seed its interval is infinite. None without a common seed.

    Example:
        >>> paired({0: 0.5, 1: 0.6}, {0: 0.4}).interval
        '+0.100, one seed'
    """
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    difference = over_seeds([ours[seed] - theirs[seed] for seed in seeds])
    means = [sum(side[seed] for seed in seeds) / len(seeds) for side in (ours, theirs)]
    return PairedDifference(*difference, len(seeds), means[0], means[1])


def paired_columns(
    study: StoredStudy, ours: Sequence[str], theirs: Sequence[str]
) -> tuple[list[float], list[float], int] | None:
    """Numbers per query of two arms, each averaged over seeds.

    Two trained arms are compared on the seeds that both have. An arm without training has no seed of its own,
    so it is averaged over all draws of its data.

    Args:
        study: As far as it is measured.
        ours: (arm, measure).
        theirs: (arm, measure).

    Returns:
        (ours, theirs, number of seeds); None where a side has no numbers per query.

    Raises:
        DataError: If cells have numbers of different queries.
    """
    left, right = (_columns(study.cells, *side) for side in (ours, theirs))
    if not left or not right:
        return None
    trained = [is_trained(study, arm) for arm, _ in (ours, theirs)]
    if all(trained):
        seeds = sorted(set(left) & set(right))
        if not seeds:
            return None
        left, right = ({seed: side[seed] for seed in seeds} for side in (left, right))
    counts = [len(side) for side, is_counted in zip((left, right), trained, strict=True) if is_counted]
    count = min(counts, default=max(len(left), len(right)))
    return averaged([*left.values()], ours[0]), averaged([*right.values()], theirs[0]), count


def per_query(cells: Cells, arm: str, measure: str) -> list[float] | None:
    """Numbers per query, averaged over seeds.

    Args:
        cells: What is measured.
        arm: Its name.
        measure: Its name.

    Returns:
        NaN where a query does not count; None where there are no numbers per query.
    """
    columns = _columns(cells, arm, measure)
    return averaged([*columns.values()], arm) if columns else None


def is_trained(study: StoredStudy, arm: str) -> bool:
    """Whether an arm is trained, so that its seed counts."""
    kinds = {one["name"]: one.get("kind") for one in study.described["arms"]}
    return kinds[arm] not in UNTRAINED


def _columns(cells: Cells, arm: str, measure: str) -> dict[int, Column]:
    found = {seed: cell.get("queries", {}).get(measure) for seed, cell in cells.get(arm, {}).items()}
    return {seed: column for seed, column in found.items() if column}


def averaged(columns: Sequence[Column], name: str) -> list[float]:
    """Numbers per query, averaged over seeds.

    Args:
        columns: One per seed, at least one.
        name: Of the arm, for the message.

    Returns:
        NaN where a query does not count in one of them.

    Raises:
        DataError: If they are of different queries.

    Example:
        >>> averaged([[1.0, 0.0], [0.0, None]], "a")
        [0.5, nan]
    """
    _check_same_queries(columns, f"cells of {name}")
    return [
        math.fsum(one for one in numbers if one is not None) / (math.nan if None in numbers else len(numbers))
        for numbers in zip(*columns, strict=True)
    ]


def _check_same_queries(columns: Sequence[Column], names: str) -> None:
    if len({len(column) for column in columns}) > 1:
        raise DataError(f"{names} have numbers of different queries; measure them again")


def intervals(columns: Sequence[list[float] | None], *, level: float = 0.95) -> "list[Interval | None]":
    """The mean of each column with its bootstrap interval over queries.

    Args:
        columns: One number per query each, of the same queries; None gives None.
        level: Of the interval.

    Returns:
        One per column.
    """
    # torch is slow to load, and importing this module should not wait for it
    import torch

    from querykey.evaluation.intervals import bootstrap_columns

    given = [torch.tensor(column, dtype=torch.float64) for column in columns if column is not None]
    found = iter(bootstrap_columns(given, level=level))
    return [None if column is None else next(found) for column in columns]


def scores(cells: Cells, arm: str, measure: str) -> dict[int, float]:
    """The score of an arm, or the last value of a metric of its training.

    Args:
        cells: What is measured.
        arm: Its name.
        measure: Its name.

    Returns:
        Seed to number; seeds without such a number are left out.
    """
    found = {}
    for seed, cell in cells.get(arm, {}).items():
        metrics = cell.get("run", {}).get("end", {})
        value = cell["values"].get(measure, metrics.get(measure))
        if isinstance(value, int | float):
            found[seed] = float(value)
        elif value is not None:
            total, count = value
            found[seed] = float(total) / float(count)
    return found


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95% interval of a proportion.

    Args:
        right: Number of successes.
        count: Number of trials, at least 1.

    Returns:
        (low, high).

    Example:
        >>> [round(x, 3) for x in wilson(60, 100)]
        [0.502, 0.691]

    Source:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    proportion, square = right / count, Z * Z
    middle = proportion + square / (2 * count)
    half = Z * math.sqrt(proportion * (1 - proportion) / count + square / (4 * count * count))
    return (middle - half) / (1 + square / count), (middle + half) / (1 + square / count)


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of a few numbers with the 95% interval of the t distribution.

    Args:
        values: One per seed, at least one.

    Returns:
        (mean, low, high); with one number the interval is infinite.

    Example:
        >>> [round(x, 2) for x in over_seeds([1.0, 2.0, 3.0])]
        [2.0, -0.48, 4.48]
    """
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, -math.inf, math.inf
    from scipy.stats import t

    std = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(t.ppf(0.975, count - 1)) * std / math.sqrt(count)
    return mean, mean - half, mean + half


def arms_rows(study: StoredStudy) -> tuple[list[str], list[list[str]]]:
    """The measures that a study's figures show, a row per arm.

    Args:
        study: As far as it is measured.

    Returns:
        (measures, rows of label, means over seeds and number of seeds).
    """
    measures = shown_measures(study.described)
    rows = []
    for arm in study.described["arms"]:
        found = [scores(study.cells, arm["name"], measure) for measure in measures]
        means = [f"{sum(values.values()) / len(values):.3f}" if values else "" for values in found]
        rows.append([arm["label"], *means, str(len(study.cells.get(arm["name"], {})))])
    return measures, rows


def arms_table(study: StoredStudy, measures: Sequence[str]) -> str:
    """Each measured arm's mean over seeds, lowest and highest.

    Args:
        study: As far as it is measured.
        measures: Columns.

    Returns:
        Markdown.
    """
    rows = [
        [arm["label"], *(mean_and_range(scores(study.cells, arm["name"], measure)) for measure in measures)]
        for arm in study.described["arms"]
        if arm["name"] in study.cells
    ]
    return markdown_table(["mean over seeds (lowest to highest)", *measures], rows)


def mean_and_range(values: Mapping[int, float]) -> str:
    """Mean, lowest and highest; "" without values."""
    if not values:
        return ""
    mean = sum(values.values()) / len(values)
    return f"{mean:.3f} ({min(values.values()):.3f} to {max(values.values()):.3f})"


def markdown_table(
    head: Sequence[str], rows: Sequence[Sequence[Any]], *, left: Sequence[str] | None = None
) -> str:
    """A table in Markdown.

    Args:
        head: Column titles.
        rows: Cells.
        left: Columns aligned to the left, where the others are aligned to the right; None: no alignment.

    Returns:
        Markdown.

    Example:
        >>> print(markdown_table(["a", "b"], [["x", 1]], left=["a"]), end="")
        | a | b |
        | --- | ---: |
        | x | 1 |
    """
    marks = ["---" if left is None or name in left else "---:" for name in head]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in [head, marks, *rows]) + "\n"


def signed_interval(mean: float, low: float, high: float) -> str:
    """A difference with its interval as text.

    Example:
        >>> signed_interval(0.0421, -0.0001, 0.08)
        '+0.042 [-0.0001, +0.080]'
    """
    return f"{_signed(mean)} [{_signed(low)}, {_signed(high)}]"


def _signed(value: float) -> str:
    """Three decimals, or four where three would hide the sign of the number; never -0.000."""
    digits = 4 if round(value, 3) == 0 != round(value, 4) else 3
    return f"{round(value, digits) + 0.0:+.{digits}f}"
