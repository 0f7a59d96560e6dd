"""Cells of a study -> what each arm scored, and the verdict of each question."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from querykey.io.study_folder import shown_measures
from querykey.reports.comparison import Column, averaged, intervals, less
from querykey.reports.verdicts import Cells, Spread, Word, judged, measured, verdict_of

__all__ = ["Verdict", "arms_rows", "verdict_over_queries", "verdict_rows"]


class Verdict(NamedTuple):
    """A question with its answer.

    Args:
        ask: In words.
        word: The verdict.
        because: The numbers that it is read from.
        published: What the paper found.
    """

    ask: str
    word: Word
    because: str
    published: str


def arms_rows(described: Mapping[str, Any], cells: Cells) -> tuple[list[str], list[list[str]]]:
    """A row an arm: what the figures of the study show of it.

    Args:
        described: What `study.json` says.
        cells: What is measured.

    Returns:
        (measures, rows of label, means over seeds and number of seeds).
    """
    measures = shown_measures(described)
    rows = []
    for arm in described["arms"]:
        row = [arm["label"]]
        for measure in measures:
            found = measured(cells, arm["name"], measure)
            row.append(f"{sum(found.values()) / len(found):.3f}" if found else "")
        rows.append([*row, str(len(cells.get(arm["name"], {})))])
    return measures, rows


def verdict_rows(described: Mapping[str, Any], cells: Cells) -> list[Verdict]:
    """The questions of a study with their answers.

    Args:
        described: What `study.json` says.
        cells: What is measured.

    Returns:
        One each, in their order. Where cells have numbers of queries, the interval is over these.
    """
    return [
        Verdict(str(one["ask"]), *_read(cells, one["ours"], one["theirs"]), str(one.get("published") or ""))
        for one in described.get("asked", [])
    ]


def _read(cells: Cells, ours: Sequence[str], theirs: Sequence[str]) -> tuple[Word, str]:
    columns = [_of_queries(cells, *side) for side in (ours, theirs)]
    if all(columns):
        return verdict_over_queries(*columns)
    return verdict_of(measured(cells, *ours), measured(cells, *theirs))


def _of_queries(cells: Cells, arm: str, measure: str) -> dict[int, Column]:
    found = {seed: cell.get("queries", {}).get(measure) for seed, cell in cells.get(arm, {}).items()}
    return {seed: column for seed, column in found.items() if column}


def verdict_over_queries(ours: Mapping[int, Column], theirs: Mapping[int, Column]) -> tuple[Word, str]:
    """Whether one thing is above another, over the queries: fits that hardly differ are not sure for that.

    Args:
        ours: Seed to one number a query; None where one does not count.
        theirs: Likewise, of the same queries.

    Returns:
        (verdict, the numbers it is read from), by the bootstrap interval of the difference, which is
        averaged over the seeds that both have; "can't tell" with one seed.

    Raises:
        DataError: If they are of different queries, or none of them counts.

    Example:
        >>> verdict_over_queries({0: [1, 1, 1], 1: [1, 1, None]}, {0: [0, 0, 0], 1: [0, 0, 0]})
        ('yes', '1.000 against 0.000: +1.000 [+1.000, +1.000], 2 queries, 2 seeds')
    """
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return "not measured yet", ""
    columns = [averaged([side[seed] for seed in seeds], "an arm") for side in (ours, theirs)]
    apart = less(columns[0], columns[1], "two arms")
    counted = [place for place, value in enumerate(apart) if not math.isnan(value)]
    (found,) = intervals([apart])
    assert found is not None
    mine, other = (math.fsum(side[place] for place in counted) / len(counted) for side in columns)
    spread = Spread(found.mean, found.low, found.high, len(seeds))
    return judged(mine, other, spread, queries=len(counted))
