"""The strokes that charts in SVG are drawn with."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, assert_never
from xml.sax.saxutils import escape

from querykey.reports.charts.spec import (
    COLOURS,
    Bars,
    Chart,
    HeatMap,
    Lines,
    Points,
    are_places,
    contrasting,
    named_places,
    place_name,
    shade,
)

__all__ = [
    "HEIGHT",
    "LETTER",
    "WIDTH",
    "Frame",
    "as_svg",
    "axis_titles",
    "cut",
    "draw_lines",
    "legend",
    "legend_rows",
    "log_ticks",
    "mark",
    "n",
    "rect",
    "rule",
    "text",
    "ticks",
    "written",
]

WIDTH = 640
LETTER = 6.8
"""Width of a letter of 12 pixels, about."""
LONGEST, ROW = 44, 18
"""Letters of a name in a legend, and pixels of a row of names."""
LEFT = 60.0
"""Where a legend begins."""

Length = float | int
"""Pixels."""
Colour = int | str
"""A number of the page's colours, or "r": what others are compared with."""


class Frame(NamedTuple):
    """Where the marks of a chart may stand, in pixels."""

    left: float
    right: float
    top: float
    bottom: float


def n(value: Length) -> str:
    """A place in tenths of a pixel.

    Example:
        >>> n(1.0), n(2.345), n(-0.01)
        ('1', '2.3', '0')
    """
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0")


def text(x: Length, y: Length, words: str, *, anchor: str = "start", extra: str = "") -> str:
    """Words; anchor says which end of them stands at x."""
    return f'<text x="{n(x)}" y="{n(y)}" text-anchor="{anchor}"{extra}>{escape(words)}</text>'


def rule(x1: Length, y1: Length, x2: Length, y2: Length, kind: str) -> str:
    """A straight line of a kind that the style knows."""
    return f'<line x1="{n(x1)}" y1="{n(y1)}" x2="{n(x2)}" y2="{n(y2)}" class="{kind}"/>'


def rect(x: Length, y: Length, width: Length, height: Length, look: str) -> str:
    """A filled box."""
    return f'<rect x="{n(x)}" y="{n(y)}" width="{n(width)}" height="{n(height)}" {look}/>'


def cut(words: str, letters: int) -> str:
    """Words that fit."""
    return words if len(words) <= letters else words[: letters - 1] + "…"


def mark(x: Length, y: Length, colour: Colour, size: Length = 3.6) -> str:
    """A point; its form tells what its colour tells."""
    look = f'class="f{colour}"'
    match colour if isinstance(colour, str) else colour % 4:
        case 1:
            return rect(x - size, y - size, 2 * size, 2 * size, look)
        case 2:
            corners = [(x, y - 1.3 * size), (x + 1.3 * size, y), (x, y + 1.3 * size), (x - 1.3 * size, y)]
        case 3:
            corners = [(x, y - 1.2 * size), (x + 1.2 * size, y + size), (x - 1.2 * size, y + size)]
        case _:
            return f'<circle cx="{n(x)}" cy="{n(y)}" r="{n(size)}" {look}/>'
    points = " ".join(f"{n(a)},{n(b)}" for a, b in corners)
    return f'<polygon points="{points}" {look}/>'


def legend(names: Sequence[tuple[str, Colour]], y: float = 20.0) -> list[str]:
    """Names beside each other, in several rows where they are many; none for one name."""
    if len(names) < 2:
        return []
    parts: list[str] = []
    for (name, colour), (x, row) in zip(names, _places([name for name, _ in names]), strict=True):
        at = y + ROW * row
        parts += [mark(x, at - 4, colour), text(x + 9, at, cut(name, LONGEST))]
    return parts


def legend_rows(names: Sequence[str]) -> int:
    """Rows that a legend takes."""
    return _places(names)[-1][1] + 1 if len(names) > 1 else 0


def _places(names: Sequence[str]) -> list[tuple[float, int]]:
    places, x, row = [], LEFT, 0
    for name in names:
        wide = 30 + LETTER * min(LONGEST, len(name))
        if x > LEFT and x + wide > WIDTH - 10:
            x, row = LEFT, row + 1
        places.append((x, row))
        x += wide
    return places


def axis_titles(x: str, y: str, frame: Frame, *, below: float = 40.0) -> list[str]:
    """Titles of both axes: one below the frame, one beside it, turned."""
    middle = (frame.top + frame.bottom) / 2
    turned = f' transform="rotate(-90 16 {n(middle)})"'
    return [
        text((frame.left + frame.right) / 2, frame.bottom + below, x, anchor="middle"),
        text(16, middle, y, anchor="middle", extra=turned),
    ]


ABOUT = 5
"""Marks that an eye takes in."""


def ticks(low: float, high: float) -> list[float]:
    """Round numbers that cover a stretch.

    Args:
        low: Its lower end.
        high: Its upper end, not below it.

    Returns:
        Rising; the first is at most `low`, the last at least `high`.

    Example:
        >>> ticks(0.13, 0.92)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        room = abs(low) / 10 or 1.0
        low, high = low - room, high + room
    rough = (high - low) / ABOUT
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") + 0.0 for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Whole powers of ten inside a stretch of exponents; its ends where it has fewer than two.

    Args:
        low: Lower exponent.
        high: Upper exponent.

    Returns:
        Exponents, rising.

    Example:
        >>> log_ticks(-4.0, -1.5)
        [-4.0, -3.0, -2.0]
    """
    whole = [float(e) for e in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)]
    return whole if len(whole) > 1 else [low, high]


def written(mark: float, marks: Sequence[float]) -> str:
    """A mark as text, with as many decimals as tell the marks apart.

    Args:
        mark: One of them.
        marks: All.

    Returns:
        Text; thousands stand apart.

    Example:
        >>> written(0.2, [0.0, 0.2, 0.4]), written(2000.0, [0.0, 1000.0, 2000.0])
        ('0.2', '2,000')
    """
    step = min((b - a for a, b in pairwise(marks)), default=1.0)
    if max(map(abs, marks)) >= 1e7 or step < 1e-6:
        return f"{mark:.3g}"
    digits = next(d for d in range(8) if abs(round(step, d) - step) < 1e-9 * max(1.0, abs(step)))
    return f"{mark:,.{digits}f}"


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
        >>> from querykey.reports.charts.spec import Line
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
