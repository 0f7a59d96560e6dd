"""The blocks of a section of the page; the template renders each kind."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from querykey.io.records import dotted
from querykey.reports.charts.spec import Chart
from querykey.reports.verdicts import Word

__all__ = [
    "Block",
    "Charts",
    "CodeBlock",
    "Gallery",
    "Heading",
    "Prose",
    "Section",
    "Settings",
    "TableBlock",
    "VerdictBlock",
    "made_with",
    "number",
    "number_interval",
    "settings_table",
]


@dataclass(frozen=True)
class VerdictBlock:
    """A question with its verdict.

    Args:
        ask: The question.
        word: The verdict.
        because: The numbers it is based on.
        published: The published answer, or "".
    """

    ask: str
    word: Word
    because: str
    published: str = ""
    kind: str = "answer"


@dataclass(frozen=True)
class Heading:
    """A heading."""

    text: str
    kind: str = "heading"


@dataclass(frozen=True)
class Prose:
    """A paragraph, in small print if `is_quiet`."""

    text: str
    is_quiet: bool = False
    kind: str = "prose"


@dataclass(frozen=True)
class TableBlock:
    """A table.

    Args:
        head: Column titles.
        rows: Cells as text.
        caption: Above the table, or "".
        strong: Indices of emphasised rows.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    strong: Sequence[int] = ()
    kind: str = "table"


@dataclass(frozen=True)
class Settings:
    """Names with values, in small print."""

    caption: str
    rows: Sequence[Sequence[str]]
    kind: str = "settings"


@dataclass(frozen=True)
class Charts:
    """Charts, side by side where there is room."""

    charts: Sequence[Chart]
    kind: str = "charts"


@dataclass(frozen=True)
class CodeBlock:
    """A command line."""

    text: str
    kind: str = "code"


@dataclass(frozen=True)
class Gallery:
    """Queries, each with lists of answers.

    Args:
        queries: As the template needs them: query, note, and named lists of answers.
        sprite: Name of the sprite of pictures, or "".
    """

    queries: Sequence[dict[str, Any]]
    sprite: str = ""
    kind: str = "gallery"


Block = VerdictBlock | Heading | Prose | TableBlock | Settings | Charts | CodeBlock | Gallery


@dataclass(frozen=True)
class Section:
    """One run or one study.

    Args:
        name: Short; part of the file names of figures.
        title: Heading.
        about: One line below the heading.
        summary: Sentences for the top of the page.
        blocks: In order.
        sprites: Name of a sprite of pictures to its uri, columns, rows and size of a picture in pixels.
        answers: Its verdicts.
    """

    name: str
    title: str
    about: str
    summary: Sequence[str]
    blocks: Sequence[Block]
    sprites: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: Sequence[VerdictBlock] = ()


def number(value: float) -> str:
    """A number with a fitting number of digits.

    Args:
        value: Any.

    Returns:
        Three decimals below 10, none for 1,000 and more.

    Example:
        >>> number(0.61234), number(12.3), number(50000.0), number(0.0002)
        ('0.612', '12.3', '50,000', '0.0002')
    """
    size = abs(value)
    if not math.isfinite(value):
        return "-"
    if 0 < size < 0.0005:
        return f"{value:.1g}"
    if size >= 1000 or (size >= 10 and value == int(value)):
        return f"{value:,.0f}"
    return f"{round(value, 3) + 0.0:.3f}" if size < 10 else f"{value:,.1f}"


def number_interval(value: float, low: float, high: float) -> str:
    """A number with its interval.

    Example:
        >>> number_interval(0.6, 0.51, 0.69)
        '0.600 [0.510, 0.690]'
    """
    return f"{number(value)} [{number(low)}, {number(high)}]"


def made_with(described: Mapping[str, Any]) -> str:
    """The versions in a record, as text.

    Args:
        described: The record; "versions" may be missing.

    Example:
        >>> made_with({"versions": {"torch": "2.9", "numpy": "2.0"}})
        'torch 2.9, numpy 2.0'
    """
    return ", ".join(f"{name} {version}" for name, version in (described.get("versions") or {}).items())


def settings_table(caption: str, settings: dict[str, Any]) -> Settings:
    """Settings with dotted names and their values.

    Args:
        caption: Above the table.
        settings: As JSON.

    Returns:
        The table, sorted by name.

    Example:
        >>> settings_table("", {"loss": {"kind": "nca"}, "dim": None, "steps": 5}).rows
        [['dim', '-'], ['loss.kind', 'nca'], ['steps', '5']]
    """
    return Settings(caption, sorted([name, _written(value)] for name, value in dotted(settings).items()))


def _written(value: Any) -> str:
    match value:
        case None | {} | []:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case list():
            return ", ".join(map(str, value))
        case _:
            return str(value)
