"""The strokes that charts in SVG are drawn with."""

from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

__all__ = [
    "LETTER",
    "WIDTH",
    "Frame",
    "axis_titles",
    "cut",
    "legend",
    "legend_rows",
    "mark",
    "n",
    "rect",
    "rule",
    "text",
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
