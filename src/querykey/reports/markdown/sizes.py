"""The part of docs/results.md on sizes and codes, from the records of its studies alone."""

import math
from collections.abc import Callable, Sequence

from querykey.io.points import FLOAT, Point, point_of
from querykey.io.study_folder import StoredStudy, shown_measures
from querykey.reports.charts.spec import Chart
from querykey.reports.charts.study import figures as figures_of
from querykey.reports.verdicts import answers, intervals, markdown_table, paired_columns, per_query

__all__ = ["is_of_sizes", "sizes_charts", "sizes_report"]

LADDER, PCA, ALONE, QUANTISER = "ladder", "pca", "alone", "product quantisation"
INTRODUCTION = """## Sizes and codes

One fit of 256, 128, 64, 32 and 16 numbers, each the first numbers of the largest, beside a fit of each size
alone and baselines of that size. Codes of 8 bits or 1 bit a number are of documents (or of the items that are
found); queries are floats, and nothing else is stored of a document but for the row "rescored": the best 100
by 1 bit, ranked by 8 bits. Product quantisation, by faiss: 256 centroids in each part of the frozen row, on
cranfield of 1,400 rows. Matryoshka-Adaptor, without labels: the skip connection and the three losses of
arXiv:2407.20243. Search-Adaptor, with pairs: ranking, recovery and prediction (arXiv:2310.08750). Both begin
at the frozen row, so their prefixes begin at its first numbers, which MiniLM does not order. Rules as above;
*not below* at 25 comparisons, or 15 with PCA.
"""
Where = Callable[[Point], bool]


def is_of_sizes(study: StoredStudy) -> bool:
    """Whether a study is about sizes and codes."""
    return any(one["kind"] == "sizes" for one in study.described["figures"])


def sizes_charts(study: StoredStudy, name: str) -> dict[str, Chart]:
    """The charts of a study.

    Args:
        study: As far as it is measured.
        name: Begin of the names of files.

    Returns:
        Name of a file to the chart.
    """
    return {f"{name}-{number}.svg": chart for number, chart in enumerate(figures_of(study), start=1)}


def sizes_report(studies: Sequence[StoredStudy], figures: str) -> str:
    """The text of all studies on sizes.

    Args:
        studies: Those for which `is_of_sizes` holds.
        figures: Folder of the figures, from the page.

    Returns:
        Markdown; "" without studies.
    """
    if not studies:
        return ""
    parts = [INTRODUCTION, _claims(studies), _over_all(studies)]
    return "\n".join([*parts, *(_section(study, figures) for study in studies)])


def _claims(studies: Sequence[StoredStudy]) -> str:
    rows = []
    for study in studies:
        labels = {arm["name"]: arm["label"] for arm in study.described["arms"]}
        for asked, answer in zip(study.described["asked"], answers(study), strict=True):
            found, ours, theirs = answer.difference, asked["ours"], asked["theirs"]
            difference = "" if found is None else _signed(found.mean, found.low, found.high)
            compared = f"{labels[ours[0]]}, {ours[1]}, minus {labels[theirs[0]]}, {theirs[1]}"
            claimed = "yes" if asked["is_claim"] else ""
            rows.append(
                [
                    study.described["name"].removesuffix(" sizes"),
                    answer.ask,
                    compared,
                    claimed,
                    asked["rule"],
                    difference,
                    f"**{answer.word}**",
                ]
            )
    head = ["task", "question", "compared", "claimed", "rule", "difference", "verdict"]
    return markdown_table(head, rows, left=[name for name in head if name != "difference"])


def _over_all(studies: Sequence[StoredStudy]) -> str:
    """Means over all cells: one fit against PCA, and 8 bits against floats."""
    to_pca, to_floats = [], []
    for study in studies:
        for name, point in _points(study, lambda point: point.bits == FLOAT and not point.is_bytes).items():
            to_pca += _mean_difference(study, (LADDER, name), (PCA, name)) if point.share == 1 else []
            to_floats += _mean_difference(study, (LADDER, f"{name}, 8 bits"), (LADDER, name))
    words = [("one fit minus PCA, at least 0", to_pca), ("8 bits minus floats, at least -.002", to_floats)]
    rows = [[what, f"{sum(values) / len(values):+.4f}", str(len(values))] for what, values in words if values]
    return markdown_table(
        ["mean over all sizes of all tasks", "difference", "cells"],
        rows,
        left=["mean over all sizes of all tasks"],
    )


def _section(study: StoredStudy, figures: str) -> str:
    described = study.described
    lines = [f"### {described['title']}\n", f"{described['caveat']}\n"]
    planned, done = sum(int(arm["seeds"]) for arm in described["arms"]), sum(map(len, study.cells.values()))
    if done < planned:
        lines.append(f"{done} of {planned} cells are done.\n")
    lines += [_floats(study), _differences(study), _codes(study)]
    for name, chart in sizes_charts(study, study.name).items():
        lines.append(f"![{chart.title}]({figures}/{name})\n")
    return "\n".join(lines)


def _points(study: StoredStudy, where: Where) -> dict[str, Point]:
    found = {name: point for name in shown_measures(study.described) if (point := point_of(name)) is not None}
    return {name: point for name, point in found.items() if where(point)}


def _floats(study: StoredStudy) -> str:
    """Means of all arms at each size."""
    points = _points(study, lambda point: point.bits == FLOAT and not point.is_bytes and point.share == 1)
    rows = []
    for arm in study.described["arms"]:
        means = [_mean(study, arm["name"], name) for name in points]
        if any(means):
            rows.append([arm["label"], *means])
    metric = next(iter(points.values())).metric
    return markdown_table([metric, *(str(one.size) for one in points.values())], rows, left=[metric])


def _differences(study: StoredStudy) -> str:
    """One fit minus the references, at each size."""
    points = _points(study, lambda point: point.bits == FLOAT and not point.is_bytes and point.share == 1)
    labels = {arm["name"]: arm["label"] for arm in study.described["arms"]}
    rows = []
    for arm in study.described["references"]:
        apart = [_apart(study, (LADDER, name), (arm, name)) for name in points]
        found = intervals(apart)
        cells = ["" if one is None else _signed(one.mean, one.low, one.high) for one in found]
        if any(cells):
            rows.append([f"one fit minus {labels[arm]}", *cells])
    head = ["[95%]", *(str(one.size) for one in points.values())]
    return markdown_table(head, rows, left=["[95%]"])


def _codes(study: StoredStudy) -> str:
    """Every code beside what else takes its bytes, from the fewest bytes."""
    codes = _points(study, lambda point: point.is_bytes or point.bits != FLOAT)
    found = []
    for arm in study.described["arms"]:
        for name, point in codes.items():
            column = per_query(study.cells, arm["name"], name)
            if column is None:
                continue
            what = "" if point.is_bytes else f", {name.split(' at ')[1]}"
            as_floats = name.split(",")[0]
            lost = None if point.is_bytes else _apart(study, (arm["name"], name), (arm["name"], as_floats))
            found.append((point.bytes, f"{arm['label']}{what}", column, lost))
    found.sort(key=lambda one: one[:2])
    columns = intervals([column for *_, column, _ in found])
    losses = intervals([lost for *_, lost in found])
    rows = [
        [
            str(count),
            what,
            "" if mean is None else f"{mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}]",
            "" if lost is None else _signed(lost.mean, lost.low, lost.high),
        ]
        for (count, what, *_), mean, lost in zip(found, columns, losses, strict=True)
    ]
    head = ["bytes", "stored as", "mean [95%]", "minus its floats"]
    return markdown_table(head, rows, left=["stored as"])


def _mean(study: StoredStudy, arm: str, measure: str) -> str:
    column = [value for value in per_query(study.cells, arm, measure) or [] if not math.isnan(value)]
    return f"{math.fsum(column) / len(column):.3f}" if column else ""


def _mean_difference(study: StoredStudy, ours: tuple[str, str], theirs: tuple[str, str]) -> list[float]:
    apart = [value for value in _apart(study, ours, theirs) or [] if not math.isnan(value)]
    return [math.fsum(apart) / len(apart)] if apart else []


def _apart(study: StoredStudy, ours: tuple[str, str], theirs: tuple[str, str]) -> list[float] | None:
    found = paired_columns(study, ours, theirs)
    return None if found is None else [a - b for a, b in zip(*found[:2], strict=True)]


def _signed(mean: float, low: float, high: float) -> str:
    """A difference with its interval, bold where that excludes 0."""
    text = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*(round(value, 4) + 0.0 for value in (mean, low, high)))
    return f"**{text}**" if low > 0 or high < 0 else text
