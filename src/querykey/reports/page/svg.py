"""Charts as SVG, without a browser: for paper, for a page without scripts, and for documents.

Plotly writes SVG only through a browser, and a plotting library of tens of megabytes would be a dependency
for four kinds of charts. So these are drawn here, from the same numbers as the page's charts: the same
chart gives the same bytes.
"""

from typing import assert_never
from xml.sax.saxutils import escape

from querykey.reports.page.charts import COLOURS, Bars, Chart, HeatMap, Lines, Points, contrasting, shade
from querykey.reports.page.strokes import (
    LETTER,
    WIDTH,
    Colour,
    Frame,
    axis_titles,
    cut,
    legend,
    legend_rows,
    mark,
    rect,
    rule,
    text,
)
from querykey.reports.page.svg_lines import HEIGHT, draw_lines
from querykey.reports.page.ticks import ticks, written

__all__ = ["as_svg"]

COLOURS_OF_A_FILE = ("#0067a5", "#c45100", "#007a58", "#a1498b", "#3f8fc4", "#a87400", "#5c5c66")
"""On white paper; on the page its style says it."""
INK, MUTED, SOFT, GRID, PAPER = "#1f2328", "#59636e", "#b3bcc6", "#e3e6ea", "#ffffff"
STYLE = (
    f"text{{font:12px system-ui,'Segoe UI',Helvetica,Arial,sans-serif;fill:{INK}}}.m,.fr{{fill:{MUTED}}}"
    f".g{{stroke:{GRID}}}.a,.sr{{stroke:{MUTED}}}.w{{stroke:{INK}}}.fb{{fill:{SOFT}}}"
    ".r{stroke-dasharray:5 4}"
) + "".join(
    f".f{number}{{fill:{colour}}}.s{number}{{stroke:{colour}}}"
    for number, colour in enumerate(COLOURS_OF_A_FILE)
)
TITLE = 34
"""Pixels of a file's title."""
BAR, GAP, CELL = 20, 12, 34
ROW_LETTERS, LABEL_LETTERS = 22, 34


def as_svg(chart: Chart, *, is_file: bool = False) -> str:
    """Draw a chart.

    Args:
        chart: What it shows.
        is_file: Whether it stands alone, with its own title and style; on a page both are the page's.

    Returns:
        An svg element.

    Example:
        >>> from querykey.reports.page.charts import Line
        >>> line = Line("loss", [1.0, 2.0], [2.0, 1.0])
        >>> drawing = as_svg(Lines(title="t", x="step", y="nats", lines=[line]))
        >>> drawing.startswith("<svg"), "polyline" in drawing, "step" in drawing
        (True, True, True)
    """
    match chart:
        case Lines():
            height, parts = HEIGHT, draw_lines(chart)
        case Bars():
            height, parts = _bars(chart)
        case HeatMap():
            height, parts = _heat_map(chart)
        case Points():
            height, parts = HEIGHT + 60, _points(chart)
        case never:
            assert_never(never)
    label = escape(chart.title, {'"': "&quot;"})
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="static" role="img" aria-label="{label}"'
    drawing = "".join(parts)
    if not is_file:
        return f'{head} viewBox="0 0 {WIDTH} {height}">{drawing}</svg>'
    tall = height + TITLE
    return (
        f'{head} viewBox="0 {-TITLE} {WIDTH} {tall}" width="{WIDTH}" height="{tall}"><style>{STYLE}</style>'
        + rect(0, -TITLE, WIDTH, tall, f'fill="{PAPER}"')
        + text(16, -12, chart.title, extra=' style="font-size:15px;font-weight:600"')
        + f"{drawing}</svg>\n"
    )


def _bars(chart: Bars) -> tuple[int, list[str]]:
    names = list(chart.groups)
    tall, letters = GAP + BAR * len(names), min(LABEL_LETTERS, max(map(len, chart.labels)))
    top = 10.0 + 18 * legend_rows(names)
    frame = Frame(20 + LETTER * letters, WIDTH - 24.0, top, top + tall * len(chart.labels))
    ends = [v for values in chart.groups.values() for three in values if three is not None for v in three]
    marks = ticks(min(0.0, *ends), max(0.0, *ends))

    def px(x: float) -> float:
        return frame.left + (x - marks[0]) / (marks[-1] - marks[0]) * (frame.right - frame.left)

    parts: list[str] = []
    for one in marks:
        words = text(px(one), frame.bottom + 16, written(one, marks), anchor="middle", extra=' class="m"')
        parts += [rule(px(one), top, px(one), frame.bottom, "g"), words]
    for row, label in enumerate(chart.labels):
        y = top + tall * row
        parts.append(text(frame.left - 8, y + tall / 2 + 4, cut(label, letters), anchor="end"))
        for number, values in enumerate(chart.groups.values()):
            three, at = values[row], y + GAP / 2 + BAR * number
            if three is None:
                continue
            colour = "b" if chart.strong and label not in chart.strong else number % COLOURS
            wide = abs(px(three[0]) - px(0.0))
            parts.append(rect(min(px(0.0), px(three[0])), at + 2, wide, BAR - 4, f'class="f{colour}"'))
            if three[2] > three[1]:
                parts.append(rule(px(three[1]), at + 10, px(three[2]), at + 10, "w"))
                parts += [rule(px(end), at + 6, px(end), at + 14, "w") for end in three[1:]]
    parts += [rule(px(0.0), top, px(0.0), frame.bottom, "a"),
              text((frame.left + frame.right) / 2, frame.bottom + 36, chart.x, anchor="middle")]  # fmt: skip
    return int(frame.bottom) + 50, parts + legend([(name, i % COLOURS) for i, name in enumerate(names)])


def _heat_map(chart: HeatMap) -> tuple[int, list[str]]:
    left = 40 + LETTER * min(ROW_LETTERS, max(map(len, chart.rows)))
    frame = Frame(left, WIDTH - 10.0, 6.0, 6.0 + CELL * len(chart.rows))
    wide = (frame.right - left) / len(chart.columns)
    known = [v for row in chart.values for v in row if v is not None]
    low, spread = min(known), (max(known) - min(known)) or 1.0
    digits, apart = 2 if wide < 44 else 3, len(chart.columns) - chart.apart
    parts: list[str] = []
    for i, (name, row) in enumerate(zip(chart.rows, chart.values, strict=True)):
        y = frame.top + CELL * i
        parts.append(text(left - 8, y + CELL / 2 + 4, cut(name, ROW_LETTERS), anchor="end"))
        for j, value in enumerate(row):
            if value is None:
                continue
            colour, x = shade((value - low) / spread), left + wide * j + 4 * (j >= apart)
            parts += [
                rect(x + 1, y + 1, wide - 2, CELL - 2, f'fill="{colour}"'),
                text(x + wide / 2, y + CELL / 2 + 4, f"{value:.{digits}f}", anchor="middle",
                     extra=f' style="fill:{contrasting(colour)}"'),
            ]  # fmt: skip
    letters = max(3, int(wide / LETTER))
    for j, name in enumerate(chart.columns):
        parts.append(text(left + wide * (j + 0.5), frame.bottom + 16, cut(name, letters), anchor="middle"))
    return int(frame.bottom) + 56, parts + axis_titles(chart.x, chart.y, frame)


def _points(chart: Points) -> list[str]:
    frame = Frame(40.0, WIDTH - 16.0, 14.0 + 18 * legend_rows(list(chart.groups)), HEIGHT + 20.0)
    xs, ys = ([place[axis] for place in chart.places] for axis in (0, 1))
    width, height = frame.right - frame.left - 20, frame.bottom - frame.top - 20
    scale = min(width / ((max(xs) - min(xs)) or 1.0), height / ((max(ys) - min(ys)) or 1.0))

    def at(point: int) -> tuple[float, float]:
        x, y = xs[point] - (max(xs) + min(xs)) / 2, ys[point] - (max(ys) + min(ys)) / 2
        return (frame.left + frame.right) / 2 + x * scale, (frame.top + frame.bottom) / 2 - y * scale

    parts: list[str] = []
    shown: list[tuple[str, Colour]] = []
    for number, (name, points) in enumerate(chart.groups.items()):
        is_rest = 0 < number == len(chart.groups) - 1
        colour: Colour = "r" if is_rest else number % COLOURS
        shown.append((name, colour))
        group = [mark(*at(point), colour, 2.0 if is_rest else 3.0) for point in points]
        parts = group + parts if is_rest else parts + group
    return [*parts, *axis_titles(chart.x, chart.y, frame, below=20.0), *legend(shown)]
