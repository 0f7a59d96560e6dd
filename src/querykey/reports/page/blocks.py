"""What a section of the page is made of; the template knows how each is shown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from querykey.io.records import dotted
from querykey.reports.charts.spec import Chart, Line, Lines
from querykey.reports.verdicts import Word

__all__ = [
    "Block",
    "Charts",
    "Code",
    "Gallery",
    "Heading",
    "Prose",
    "Section",
    "Settings",
    "TableBlock",
    "VerdictBlock",
    "Word",
    "candidates_chart",
    "made_with",
    "number",
    "settings_table",
    "signed",
]


@dataclass(frozen=True)
class VerdictBlock:
    """A question with its verdict.

    Args:
        ask: The question.
        word: The verdict.
        because: The numbers that it rests on.
        published: What others have reported, or "".
    """

    ask: str
    word: Word
    because: str
    published: str = ""
    kind: str = "answer"


@dataclass(frozen=True)
class Heading:
    """The title of what follows."""

    text: str
    kind: str = "heading"


@dataclass(frozen=True)
class Prose:
    """A paragraph; a quiet one is smaller."""

    text: str
    is_quiet: bool = False
    kind: str = "prose"


@dataclass(frozen=True)
class TableBlock:
    """A table.

    Args:
        head: One a column.
        rows: Cells as text.
        caption: Above it, or "".
        strong: Rows that stand out, counted from 0.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    strong: Sequence[int] = ()
    kind: str = "table"


@dataclass(frozen=True)
class Settings:
    """Names with values, small and close together."""

    caption: str
    rows: Sequence[Sequence[str]]
    kind: str = "settings"


@dataclass(frozen=True)
class Charts:
    """Charts beside each other, where there is room."""

    charts: Sequence[Chart]
    kind: str = "charts"


@dataclass(frozen=True)
class Code:
    """What can be typed."""

    text: str
    kind: str = "code"


@dataclass(frozen=True)
class Gallery:
    """Queries, each with lists of what was found.

    Args:
        looked: As the template takes them: query, words, and named lists of answers.
        sheet: Name of the sheet of pictures, or "".
    """

    looked: Sequence[dict[str, Any]]
    sheet: str = ""
    kind: str = "gallery"


Block = VerdictBlock | Heading | Prose | TableBlock | Settings | Charts | Code | Gallery


@dataclass(frozen=True)
class Section:
    """One run or one study.

    Args:
        name: Short; in the names of figures.
        title: Its heading.
        about: What it is, in a few words.
        summary: Plain sentences for the top of the page.
        blocks: In their order.
        sheets: Name of a sheet of pictures to its uri, columns, rows and size of a picture in pixels.
        answers: What was asked.
    """

    name: str
    title: str
    about: str
    summary: Sequence[str]
    blocks: Sequence[Block]
    sheets: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: Sequence[VerdictBlock] = ()


def number(value: float) -> str:
    """A number as people write it.

    Args:
        value: Any.

    Returns:
        Three decimals below 10, none from 1,000 on.

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


def signed(value: float) -> str:
    """A difference: three decimals, with its sign.

    Example:
        >>> signed(0.0421), signed(-0.0001)
        ('+0.042', '-0.000')
    """
    return f"{value:+.3f}"


def made_with(described: Mapping[str, Any]) -> str:
    """The versions that a record names, in words.

    Args:
        described: With "versions", or without.

    Example:
        >>> made_with({"versions": {"torch": "2.9", "numpy": "2.0"}})
        'torch 2.9, numpy 2.0'
    """
    return ", ".join(f"{name} {version}" for name, version in (described.get("versions") or {}).items())


def candidates_chart(line: Line) -> Lines:
    """How many rows the loss chose from, to stand beside the loss.

    Args:
        line: Candidates of a query over the steps.
    """
    return Lines(
        title="What the loss chooses from", x="steps taken", y="candidates a query", lines=[line],
        from_zero=True,
    )  # fmt: skip


def settings_table(caption: str, settings: dict[str, Any]) -> Settings:
    """Settings by name, each with its value; tables in them are laid flat.

    Args:
        caption: Above it.
        settings: As JSON.

    Returns:
        They, sorted by name.

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
