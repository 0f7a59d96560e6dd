"""The content of charts, independent of rendering: pages and files show the same numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "COLOURS",
    "Bars",
    "Chart",
    "HeatMap",
    "Line",
    "Lines",
    "Points",
    "are_places",
    "contrasting",
    "named_places",
    "shade",
    "short",
    "thinned",
]

COLOURS = 7
"""Number of colours, distinguishable with colour blindness; they are called c0 to c6."""

MOST_POINTS = 300
"""Of a line: more than a screen can show."""
MOST_NAMED = 8
"""Most tick labels of an axis on which every value has one."""

Place = float | str
"""Position on the x axis: a number, or a category."""

_CIVIDIS = (
    "00224e",
    "123570",
    "3b496c",
    "575d6d",
    "707173",
    "8a8678",
    "a59c74",
    "c3b369",
    "e1cc55",
    "fee838",
)


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        name: In the legend.
        x: Positions of its points.
        y: Values, one per point.
        low: Lower ends of whiskers, one per point, or none.
        high: Upper ends.
        is_reference: Whether it is drawn thin and dashed, as a reference for the others.
    """

    name: str
    x: Sequence[Place]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    is_reference: bool = False


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Lines over one x axis.

    Args:
        title: What it shows.
        x: Title of the x axis, with its unit.
        y: Title of the y axis, with its unit.
        lines: At least one.
        log_x: Whether x is logarithmic, if every x is above 0.
        from_zero: Whether the y axis shows 0.
        note: A sentence below, or "".
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log_x: bool = False
    from_zero: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Bars with whiskers, a group per label.

    Args:
        title: What it shows.
        x: The measure, with its unit.
        labels: One per group, from the top.
        groups: Name of a measure to (value, low, high) of each label; None without a value.
        strong: Labels whose bars are coloured while the others are grey; empty: all are coloured.
        note: A sentence below, or "".
    """

    title: str
    x: str
    labels: Sequence[str]
    groups: Mapping[str, Sequence[tuple[float, float, float] | None]]
    strong: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """A matrix of numbers.

    Args:
        title: What it shows.
        x: What the columns are.
        y: What the rows are.
        columns: Names.
        rows: Names, from the top.
        values: [rows][columns]; None without a value.
        apart: Number of last columns that are separated by a line: means of the others.
        unit: Of the values.
        note: A sentence below, or "".
    """

    title: str
    x: str
    y: str
    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[float | None]]
    unit: str
    apart: int = 0
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Points:
    """A map: points in a plane, without a scale.

    Args:
        title: What it shows.
        x: Title of the x axis.
        y: Title of the y axis.
        groups: Name to the numbers of its points.
        places: (x, y) of each point.
        words: Description of each point.
        pictures: Place of each point's picture in the sprite; empty without a sprite.
        sprite: Name of the sprite of pictures, or "".
        note: A sentence below, or "".
    """

    title: str
    x: str
    y: str
    groups: Mapping[str, Sequence[int]]
    places: Sequence[tuple[float, float]]
    words: Sequence[str]
    pictures: Sequence[int] = ()
    sprite: str = ""
    note: str = ""


Chart = Lines | Bars | HeatMap | Points


def are_places(chart: Lines) -> list[str] | None:
    """The categories of the x axis, in order of appearance; None if x is numeric.

    Args:
        chart: Lines.

    Returns:
        Categories, also for numbers on a logarithmic axis of which one is not above 0.

    Example:
        >>> one = Line("a", [0.0, 0.9, 0.99], [1.0, 2.0, 3.0])
        >>> are_places(Lines(title="t", x="momentum", y="kNN", lines=[one], log_x=True))
        ['0', '0.9', '0.99']
    """
    every = [x for line in chart.lines for x in line.x]
    numbers = [x for x in every if not isinstance(x, str)]
    if len(numbers) == len(every) and not (chart.log_x and min(numbers, default=1.0) <= 0):
        return None
    if len(numbers) == len(every):
        every = [*sorted(numbers)]
    return list(dict.fromkeys(place_name(x) for x in every))


def named_places(chart: Lines) -> list[float]:
    """The values of a logarithmic axis, if they are few enough for a tick label each.

    Args:
        chart: Lines over numbers above 0.

    Returns:
        Ascending; empty with more than eight values, or if x is not logarithmic.

    Example:
        >>> one = Line("a", [64.0, 256.0, 1024.0], [1.0, 2.0, 3.0])
        >>> named_places(Lines(title="t", x="keys", y="kNN", lines=[one], log_x=True))
        [64.0, 256.0, 1024.0]
    """
    places = sorted({float(x) for line in chart.lines for x in line.x}) if chart.log_x else []
    return places if len(places) <= MOST_NAMED else []


def place_name(x: Place) -> str:
    """A position on an axis as text."""
    return x if isinstance(x, str) else f"{x:g}"


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """A long curve as means of equal segments.

    Args:
        x: Ascending.
        y: Values, one per x.

    Returns:
        At most `MOST_POINTS` points, each at the last x of its segment.

    Example:
        >>> xs, ys = thinned([float(step) for step in range(1, 901)], [1.0] * 900)
        >>> len(xs), xs[0], ys[0]
        (300, 3.0, 1.0)
    """
    size = -(-len(x) // MOST_POINTS) or 1
    pieces = [slice(i, i + size) for i in range(0, len(x), size)]
    return [x[p][-1] for p in pieces], [short(sum(y[p]) / len(y[p])) for p in pieces]


def short(value: float, digits: int = 5) -> float:
    """A number rounded to significant digits, so that drawings are equal on every machine."""
    return float(f"{value:.{digits}g}") + 0.0 if math.isfinite(value) else value


def shade(share: float) -> str:
    """The colour of a number on the cividis scale, whose lightness increases for every kind of vision.

    Args:
        share: From 0 to 1; clipped.

    Returns:
        "#rrggbb".

    Example:
        >>> shade(0.0), shade(1.0)
        ('#00224e', '#fee838')

    Source:
        cividis: Nuñez, Anderton and Renslow 2018, doi:10.1371/journal.pone.0199239.
    """
    at = min(max(share, 0.0), 1.0) * (len(_CIVIDIS) - 1)
    lower = min(int(at), len(_CIVIDIS) - 2)
    ends = [[int(_CIVIDIS[lower + i][j : j + 2], 16) for j in (0, 2, 4)] for i in (0, 1)]
    mixed = [round(a + (b - a) * (at - lower)) for a, b in zip(*ends, strict=True)]
    return "#" + "".join(f"{part:02x}" for part in mixed)


def contrasting(colour: str) -> str:
    """Black or white, whichever has more contrast with a colour: at least 4.5 to 1.

    Args:
        colour: "#rrggbb".

    Returns:
        "#000000" or "#ffffff".

    Example:
        >>> contrasting("#00224e"), contrasting("#fee838")
        ('#ffffff', '#000000')

    Source:
        Relative luminance of WCAG 2.
    """
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (light + 0.05) / 0.05 > 1.05 / (light + 0.05) else "#ffffff"
