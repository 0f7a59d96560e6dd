"""Lines over an axis, in SVG."""

import math

from querykey.reports.page.charts import COLOURS, Lines, are_places, named_places, place_name
from querykey.reports.page.strokes import (
    WIDTH,
    Colour,
    Frame,
    axis_titles,
    legend,
    legend_rows,
    mark,
    n,
    rule,
    text,
)
from querykey.reports.page.ticks import log_ticks, ticks, written

__all__ = ["HEIGHT", "draw_lines"]

HEIGHT = 400
QUIET = ' class="m"'
MOST_MARKS = 60
"""Points of a line that are marked; more run into one another."""


def draw_lines(chart: Lines) -> list[str]:
    """The parts of a chart of lines.

    Args:
        chart: Lines with points.

    Returns:
        SVG elements in a box of 640 by `HEIGHT`.
    """
    names = are_places(chart)
    at: list[list[float]] = [
        [float(names.index(place_name(x))) for x in line.x] if names is not None
        else [math.log10(float(x)) if chart.log_x else float(x) for x in line.x]
        for line in chart.lines
    ]  # fmt: skip
    across = [x for xs in at for x in xs]
    first, last = min(across), max(across)
    if names is not None or first == last:
        first, last = first - 0.3, last + 0.3
    heights = [v for line in chart.lines for v in (*line.y, *line.low, *line.high)]
    heights += [0.0] if chart.from_zero else []
    marks = ticks(min(heights), max(heights))
    frame = Frame(64.0, WIDTH - 16.0, 12.0 + 18 * legend_rows([line.name for line in chart.lines]), 350.0)

    def px(x: float) -> float:
        return frame.left + (x - first) / (last - first) * (frame.right - frame.left)

    def py(y: float) -> float:
        return frame.bottom - (y - marks[0]) / (marks[-1] - marks[0]) * (frame.bottom - frame.top)

    parts: list[str] = []
    for one in marks:
        words = text(frame.left - 8, py(one) + 4, written(one, marks), anchor="end", extra=QUIET)
        parts += [rule(frame.left, py(one), frame.right, py(one), "g"), words]
    for x, name in _below(chart, names, first, last):
        parts += [text(px(x), frame.bottom + 18, name, anchor="middle", extra=QUIET),
                  rule(px(x), frame.bottom, px(x), frame.bottom + 4, "a")]  # fmt: skip
    parts += [
        rule(frame.left, frame.bottom, frame.right, frame.bottom, "a"),
        *axis_titles(chart.x, chart.y, frame),
    ]
    drawn, shown = 0, list[tuple[str, Colour]]()
    for line, xs in zip(chart.lines, at, strict=True):
        colour: Colour = "r" if line.is_reference else drawn % COLOURS
        drawn += not line.is_reference
        shown.append((line.name, colour))
        points = " ".join(f"{n(px(x))},{n(py(y))}" for x, y in zip(xs, line.y, strict=True))
        kind, width = (f"s{colour} r", 1.5) if line.is_reference else (f"s{colour}", 2)
        look = f'class="{kind}" stroke-width="{width}"'
        parts.append(f'<polyline points="{points}" fill="none" {look}/>')
        for x, low, high in zip(xs, line.low, line.high, strict=False):
            parts.append(rule(px(x), py(low), px(x), py(high), f"s{colour}"))
        if not line.is_reference and len(xs) <= MOST_MARKS:
            parts += [mark(px(x), py(y), colour) for x, y in zip(xs, line.y, strict=True)]
    return parts + legend(shown)


def _below(chart: Lines, names: list[str] | None, first: float, last: float) -> list[tuple[float, str]]:
    """What is written along the x axis, and where."""
    if names is not None:
        return [(float(place), name) for place, name in enumerate(names)]
    if chart.log_x:
        own = [math.log10(x) for x in named_places(chart)]
        return [(one, f"{10**one:,g}") for one in own or log_ticks(first, last)]
    marks = ticks(first, last)
    return [(one, written(one, marks)) for one in marks if first <= one <= last]
