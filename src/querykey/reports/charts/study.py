"""Charts of a study: lines, bars, heat maps, and curves of metrics during training."""

from collections.abc import Mapping, Sequence
from typing import Any

from querykey.errors import StoreError
from querykey.io.points import Point, point_of
from querykey.io.study_folder import Cells, StoredStudy
from querykey.reports.charts.spec import Bars, Chart, HeatMap, Line, Lines, short
from querykey.reports.verdicts import scores

__all__ = ["figures", "training_charts"]

Arms = Sequence[Mapping[str, Any]]
Metrics = Mapping[str, Any]
Three = tuple[float, float, float]

DURING = (
    ("loss", "Loss during training", "loss"),
    ("candidates", "Candidates of the loss", "candidates per query"),
    ("knn", "Online kNN", "accuracy"),
)
"""Metrics during training. The loss depends on the number of candidates, so both are shown."""

PRECISIONS = {(32, False): "", (8, False): ", 8 bits", (1, False): ", 1 bit", (1, True): ", 1 bit, rescored"}
"""What is said of codes by their bits, and whether the best of them are ranked by 8 bits."""
ONE_SEED = "One seed each"
MOST_ARMS = 7
"""Most curves in a chart: more cannot be distinguished."""


def figures(study: StoredStudy) -> list[Chart]:
    """The figures of a study.

    Args:
        study: As far as it is measured.

    Returns:
        Charts in the study's order; figures of which nothing is measured are left out.

    Raises:
        StoreError: If the kind of a figure is unknown.
    """
    wanted, arms = study.described.get("figures", []), study.described["arms"]
    drawn = [_figure(one, arms, study.cells) for one in wanted]
    return [chart for chart in drawn if chart is not None]


def _figure(wanted: Mapping[str, Any], arms: Arms, cells: Cells) -> Chart | None:
    arms = [arm for arm in arms if wanted.get("group") in ("", None, arm.get("group"))]
    match wanted["kind"]:
        case "lines":
            return _lines(wanted, arms, cells)
        case "bars":
            return _bars(wanted, arms, cells)
        case "heat map":
            return _heat_map(wanted, arms, cells)
        case "curves":
            return _curves(wanted, arms, cells)
        case "sizes":
            return _sizes(wanted, arms, cells)
        case other:
            known = "lines, bars, heat map, curves and sizes"
            raise StoreError(f"unknown kind of figure {other!r}; known are {known}")


def training_charts(arms: Arms, cells: Cells) -> list[Chart]:
    """Metrics during training, a line per arm: the mean over its seeds.

    Args:
        arms: All arms.
        cells: The measured cells.

    Returns:
        Charts of those of `DURING` that cells have; none without evaluations during training, or with too
        many arms.
    """
    histories = _histories(arms, cells)
    if not histories or len(histories) > MOST_ARMS:
        return []
    charts: list[Chart] = []
    for name, title, y in DURING:
        given = (_mean_line(label, runs, name) for label, runs in histories.items())
        lines = [line for line in given if line is not None]
        if lines:
            from_zero = name == "candidates"
            charts.append(Lines(title=title, x="training step", y=y, lines=lines, from_zero=from_zero))
    return charts


def _histories(arms: Arms, cells: Cells) -> dict[str, list[Sequence[Metrics]]]:
    """Label of each arm to the evaluations during training of its seeds; arms without them are left out."""
    histories = {}
    for arm in arms:
        runs = [cell.get("run") or {} for cell in cells.get(arm["name"], {}).values()]
        found = [run["looks"] for run in runs if len(run.get("looks") or []) > 1]
        if found:
            histories[str(arm["label"])] = found
    return histories


def _curves(wanted: Mapping[str, Any], arms: Arms, cells: Cells) -> Chart | None:
    lines = []
    for measure in wanted["measures"]:
        for label, runs in _histories(arms, cells).items():
            name = f"{label}, {measure}" if len(wanted["measures"]) > 1 else label
            given = [[_with_largest(metrics, measure) for metrics in history] for history in runs]
            if (line := _mean_line(name, given, measure)) is not None:
                lines.append(line)
    if not lines:
        return None
    return Lines(**_titles(wanted), lines=lines, note=f"{_seeds(cells, arms)}.", from_zero=True)


def _titles(wanted: Mapping[str, Any]) -> dict[str, Any]:
    return {name: wanted[name] for name in ("title", "x", "y")}


def _with_largest(metrics: Metrics, measure: str) -> Metrics:
    """Metrics, with that of the largest number under the prefix alone, for a measure that ends in "_"."""
    if not measure.endswith("_"):
        return metrics
    numbers = [int(name.removeprefix(measure)) for name in metrics if name.startswith(measure)]
    return {**metrics, measure: metrics[f"{measure}{max(numbers)}"]} if numbers else metrics


def _mean_line(label: str, runs: Sequence[Sequence[Metrics]], name: str) -> Line | None:
    at: dict[int, list[float]] = {}
    for history in runs:
        for metrics in history:
            # there is no loss before the first step
            if isinstance(metrics.get(name), int | float) and not (name == "loss" and metrics["step"] == 0):
                at.setdefault(int(metrics["step"]), []).append(float(metrics[name]))
    if not at:
        return None
    means = {float(step): short(sum(values) / len(values)) for step, values in sorted(at.items())}
    return Line(label, [*means], [*means.values()])


def _mean_and_ends(cells: Cells, arm: str, measure: str) -> Three | None:
    """Mean, lowest and highest over seeds."""
    values = [*scores(cells, arm, measure).values()]
    return (sum(values) / len(values), min(values), max(values)) if values else None


def _seeds(cells: Cells, arms: Arms) -> str:
    counts = sorted({len(cells[arm["name"]]) for arm in arms if arm["name"] in cells})
    if counts == [1]:
        return ONE_SEED
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"Mean of {seeds} seeds"


def _note(cells: Cells, arms: Arms) -> str:
    seeds = _seeds(cells, arms)
    return f"{seeds}." if seeds == ONE_SEED else f"{seeds}; whiskers from the lowest to the highest seed."


def _lines(wanted: Mapping[str, Any], arms: Arms, cells: Cells) -> Chart | None:
    measures = wanted["measures"]
    lines, several = [], len({arm.get("line") for arm in arms if arm.get("x") is not None}) > 1
    for measure in measures:
        for name in dict.fromkeys(arm.get("line") for arm in arms):
            points = [arm for arm in arms if arm.get("line") == name and arm.get("x") is not None]
            are_numbers = all(isinstance(arm["x"], int | float) for arm in points)
            if are_numbers:
                points = sorted(points, key=lambda arm: float(arm["x"]))
            given = [(arm["x"], _mean_and_ends(cells, arm["name"], measure)) for arm in points]
            found = [(x, three) for x, three in given if three is not None]
            if found:
                both = (name if several or len(measures) == 1 else "", measure if len(measures) > 1 else "")
                label = " ".join(str(part) for part in both if part)
                xs = [float(x) if are_numbers else str(x) for x, _ in found]
                mean, low, high = ([three[i] for _, three in found] for i in range(3))
                lines.append(Line(label or measure, xs, mean, low, high))
    if not lines:
        return None
    log_x = bool(wanted.get("log_x"))
    return Lines(**_titles(wanted), lines=lines, note=_note(cells, arms), log_x=log_x)


def _bars(wanted: Mapping[str, Any], arms: Arms, cells: Cells) -> Chart | None:
    about, bars = _grouped(wanted["measures"])
    places = [(number, arm) for number in range(len(about)) for arm in arms]
    groups = {
        name: [_mean_and_ends(cells, arm["name"], measures[number]) for number, arm in places]
        for name, measures in bars.items()
    }
    measured = [row for row in range(len(places)) if any(values[row] for values in groups.values())]
    if not measured:
        return None
    labels = [", ".join(filter(None, (about[number], str(arm["label"])))) for number, arm in places]
    labels = [labels[row] for row in measured]
    groups = {name: [values[row] for row in measured] for name, values in groups.items()}
    return Bars(title=wanted["title"], x=wanted["y"], labels=labels, groups=groups, note=_note(cells, arms))


def _sizes(wanted: Mapping[str, Any], arms: Arms, cells: Cells) -> Chart | None:
    """Measures at a size and a precision over the bytes of a stored row."""
    points = {name: point for name in wanted["measures"] if (point := point_of(name)) is not None}
    lines = []
    for arm in arms:
        for words in PRECISIONS.values():
            own = [name for name, point in points.items() if _precision(point) == words]
            given = [(float(points[name].bytes), _mean_and_ends(cells, arm["name"], name)) for name in own]
            found = sorted((x, three) for x, three in given if three is not None)
            if found:
                mean, low, high = ([three[i] for _, three in found] for i in range(3))
                xs = [x for x, _ in found]
                lines.append(Line(f"{arm['label']}{words}", xs, mean, low, high))
    if not lines:
        return None
    log_x = bool(wanted.get("log_x"))
    return Lines(**_titles(wanted), lines=lines, note=_note(cells, arms), log_x=log_x)


def _precision(point: Point) -> str:
    return PRECISIONS[point.bits, point.rescored]


def _grouped(measures: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """(groups, measure of each group per bar): h and z side by side, if every group has both."""
    parts = [measure.rpartition(" ") for measure in measures]
    groups, rows = list(dict.fromkeys(group for group, _, _ in parts)), {row for *_, row in parts}
    if len(groups) > 1 and rows == {"h", "z"} and len(measures) == 2 * len(groups):
        return groups, {row: [f"{group} {row}" for group in groups] for row in ("h", "z")}
    return [""], {measure: [measure] for measure in measures}


def _heat_map(wanted: Mapping[str, Any], arms: Arms, cells: Cells) -> Chart | None:
    """Means over seeds, and the mean of each row in an extra column."""
    placed = [arm for arm in arms if arm.get("row") is not None and arm.get("column") is not None]
    rows = [str(r) for r in dict.fromkeys(arm["row"] for arm in placed)]
    columns = [str(c) for c in dict.fromkeys(arm["column"] for arm in placed)]
    measure = wanted["measures"][0]
    planned = {(str(arm["row"]), str(arm["column"])): arm["name"] for arm in placed}
    given = {at: _mean_and_ends(cells, name, measure) for at, name in planned.items()}
    means = {at: three[0] for at, three in given.items() if three is not None}
    if not means:
        return None
    if not any((column, row) in planned for row, column in planned if row != column):
        # only one half is planned: pairs have no order
        means |= {(column, row): mean for (row, column), mean in means.items()}
    values: list[list[float | None]] = [[means.get((row, column)) for column in columns] for row in rows]
    for row in values:
        measured = [value for value in row if value is not None]
        row.append(sum(measured) / len(measured) if measured else None)
    names = _titles(wanted) | {"columns": [*columns, "mean"], "rows": rows}
    note = f"{_seeds(cells, placed)}."
    return HeatMap(**names, values=values, apart=1, unit=measure, note=note)
