"""Cells of a study -> its figures: lines, bars, heat maps, and curves on the way."""

from collections.abc import Mapping, Sequence
from typing import Any

from querykey.errors import StoreError
from querykey.io.study_folder import Cells
from querykey.reports.charts.spec import Bars, Chart, HeatMap, Line, Lines, short
from querykey.reports.verdicts import scores

__all__ = ["figure", "looks_charts"]

Arms = Sequence[Mapping[str, Any]]
Three = tuple[float, float, float]

LOOKED = (
    ("loss", "Loss on the way", "loss"),
    ("candidates", "What the loss chooses from", "candidates a query"),
    ("knn", "What it is good for", "online kNN, share right"),
)
"""Of a cell's looks: the loss means little without the number of candidates beside it."""

ONE_SEED = "One seed each"
MOST_ARMS = 7
"""Curves that can be told apart."""


def figure(wanted: Mapping[str, Any], arms: Arms, cells: Cells) -> Chart | None:
    """A figure that a study asks for.

    Args:
        wanted: Its kind, title, measures and axes.
        arms: Where each arm stands in it.
        cells: What is measured.

    Returns:
        The chart; None while nothing of it is measured.

    Raises:
        StoreError: If it is of a kind that is not known.
    """
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
        case other:
            raise StoreError(
                f"a figure of kind {other!r} is not known; there are lines, bars, heat map and curves"
            )


def looks_charts(arms: Arms, cells: Cells) -> list[Chart]:
    """What the monitors saw on the way, a line an arm: the mean of its seeds.

    Args:
        arms: All.
        cells: What is measured.

    Returns:
        Charts of those of `LOOKED` that cells have; none where they have no looks, or too many arms have.
    """
    looked = _looked(arms, cells)
    if not looked or len(looked) > MOST_ARMS:
        return []
    charts: list[Chart] = []
    for name, title, y in LOOKED:
        lines = [
            line for label, runs in looked.items() if (line := _look_line(label, runs, name)) is not None
        ]
        if lines:
            charts.append(
                Lines(title=title, x="steps taken", y=y, lines=lines, from_zero=name == "candidates")
            )
    return charts


def _looked(arms: Arms, cells: Cells) -> dict[str, list[Sequence[Mapping[str, Any]]]]:
    """Label of each arm that was looked at on the way to the looks of its seeds."""
    looked = {
        str(arm["label"]): [cell["run"]["looks"] for cell in cells.get(arm["name"], {}).values()
                            if len((cell.get("run") or {}).get("looks") or []) > 1]
        for arm in arms
    }  # fmt: skip
    return {label: runs for label, runs in looked.items() if runs}


def _curves(wanted: Mapping[str, Any], arms: Arms, cells: Cells) -> Chart | None:
    lines = []
    for measure in wanted["measures"]:
        for label, runs in _looked(arms, cells).items():
            name = f"{label}, {measure}" if len(wanted["measures"]) > 1 else label
            given = [[_with_highest(look, measure) for look in looks] for looks in runs]
            if (line := _look_line(name, given, measure)) is not None:
                lines.append(line)
    if not lines:
        return None
    return Lines(
        title=wanted["title"], x=wanted["x"], y=wanted["y"], lines=lines, note=f"{_seeds(cells, arms)}.",
        from_zero=True,
    )  # fmt: skip


def _with_highest(look: Mapping[str, Any], measure: str) -> Mapping[str, Any]:
    """A look that has, by its name alone, the measure of the highest number."""
    numbers = [int(name.removeprefix(measure)) for name in look
               if measure.endswith("_") and name.startswith(measure)]  # fmt: skip
    return {**look, measure: look[f"{measure}{max(numbers)}"]} if numbers else look


def _look_line(label: str, runs: Sequence[Sequence[Mapping[str, Any]]], name: str) -> Line | None:
    at: dict[int, list[float]] = {}
    for looks in runs:
        for look in looks:
            # before the first step there is no loss
            if isinstance(look.get(name), int | float) and not (name == "loss" and look["step"] == 0):
                at.setdefault(int(look["step"]), []).append(float(look[name]))
    steps = sorted(at)
    return (
        Line(label, [float(step) for step in steps], [short(sum(at[s]) / len(at[s])) for s in steps])
        if steps
        else None
    )


def _three(cells: Cells, arm: str, measure: str) -> Three | None:
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
            own = [arm for arm in arms if arm.get("line") == name and arm.get("x") is not None]
            are_numbers = all(isinstance(arm["x"], int | float) for arm in own)
            if are_numbers:
                own = sorted(own, key=lambda arm: float(arm["x"]))
            found = [
                (float(arm["x"]) if are_numbers else str(arm["x"]), three)
                for arm in own if (three := _three(cells, arm["name"], measure))
            ]  # fmt: skip
            if found:
                both = (name if several or len(measures) == 1 else "", measure if len(measures) > 1 else "")
                words = " ".join(str(word) for word in both if word)
                xs = [x for x, _ in found]
                mean, low, high = ([three[i] for _, three in found] for i in range(3))
                lines.append(Line(words or measure, xs, mean, low, high))
    if not lines:
        return None
    return Lines(
        title=wanted["title"], x=wanted["x"], y=wanted["y"], lines=lines, note=_note(cells, arms),
        log_x=bool(wanted.get("log_x")),
    )  # fmt: skip


def _bars(wanted: Mapping[str, Any], arms: Arms, cells: Cells) -> Chart | None:
    about, bars = _things(wanted["measures"])
    places = [(number, arm) for number in range(len(about)) for arm in arms]
    groups = {
        name: [_three(cells, arm["name"], measures[number]) for number, arm in places]
        for name, measures in bars.items()
    }
    there = [row for row in range(len(places)) if any(values[row] for values in groups.values())]
    if not there:
        return None
    labels = [", ".join(filter(None, (about[number], str(arm["label"])))) for number, arm in places]
    return Bars(
        title=wanted["title"], x=wanted["y"], labels=[labels[row] for row in there],
        groups={name: [values[row] for row in there] for name, values in groups.items()},
        note=_note(cells, arms),
    )  # fmt: skip


def _things(measures: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """What measures are about, and the bars at each place: h and z where several things are asked of both."""
    asked = [measure.rpartition(" ") for measure in measures]
    things, rows = list(dict.fromkeys(thing for thing, _, _ in asked)), {row for *_, row in asked}
    if len(things) > 1 and rows == {"h", "z"} and len(measures) == 2 * len(things):
        return things, {row: [f"{thing} {row}" for thing in things] for row in ("h", "z")}
    return [""], {measure: [measure] for measure in measures}


def _heat_map(wanted: Mapping[str, Any], arms: Arms, cells: Cells) -> Chart | None:
    """Means over seeds; the mean of each row's cells in a column of its own."""
    placed = [arm for arm in arms if arm.get("row") is not None and arm.get("column") is not None]
    rows = [str(r) for r in dict.fromkeys(arm["row"] for arm in placed)]
    columns = [str(c) for c in dict.fromkeys(arm["column"] for arm in placed)]
    measure = wanted["measures"][0]
    at = {(str(arm["row"]), str(arm["column"])): three[0]
          for arm in placed if (three := _three(cells, arm["name"], measure))}  # fmt: skip
    if not at:
        return None
    planned = {(str(arm["row"]), str(arm["column"])) for arm in placed}
    if not any((column, row) in planned for row, column in planned if row != column):
        at |= {(column, row): mean for (row, column), mean in at.items()}  # of one half: a pair has no order
    values: list[list[float | None]] = [[at.get((row, column)) for column in columns] for row in rows]
    for row in values:
        known = [value for value in row if value is not None]
        row.append(sum(known) / len(known) if known else None)
    return HeatMap(
        title=wanted["title"], x=wanted["x"], y=wanted["y"], columns=[*columns, "mean"], rows=rows,
        values=values, apart=1, unit=measure, note=f"{_seeds(cells, placed)}.",
    )  # fmt: skip
