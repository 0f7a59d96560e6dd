"""What a person sees: tables and lines on standard output, progress on standard error."""

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Progress", "detail", "escaped", "line", "note", "progress", "table"]

QUIET_SECONDS = 30.0
"""Between two lines on how far the work is, where there is no terminal."""

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What may move the cursor, change colours or order, or cannot be encoded; not tabs and ends of lines."""

Progress = Callable[[int, int | None], None]
"""Called with (done, total); total is None where it is not known beforehand."""


def escaped(text: str) -> str:
    """Show characters that control a terminal as Python writes them.

    Args:
        text: As it comes from data.
    """
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def line(text: str = "", *, whole: bool = False) -> None:
    """Write a line, broken between words at the width of the terminal.

    Args:
        text: Taken as it is: no markup.
        whole: Leave it unbroken: a command, which will be copied.
    """
    _console().print(escaped(text), markup=False, soft_wrap=whole)


def note(text: str) -> None:
    """Write a line to standard error: what is worth knowing and no result.

    Args:
        text: Taken as it is.
    """
    import typer

    typer.echo(f"note: {escaped(text)}", err=True)


def detail(text: str) -> None:
    """Write a line to standard error: how far the work is.

    Args:
        text: Taken as it is.
    """
    import typer

    typer.echo(escaped(text), err=True)


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", words: Sequence[int] = (0,)
) -> None:
    """Write a table.

    Args:
        columns: Heads.
        rows: Cells as text.
        title: A line above it.
        words: Which columns hold words, which give way where space is short; the others hold numbers.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for place, name in enumerate(columns):
        # words give way where space is short; a number is never cut
        is_words = place in words
        shown.add_column(
            Text(escaped(name)),
            justify="left" if is_words else "right",
            no_wrap=not is_words,  # rich takes space from columns that may wrap, and from them first
            overflow="ellipsis",
            min_width=None if is_words else max(len(row[place]) for row in (columns, *rows)),
        )
    for row in rows:
        shown.add_row(*(Text(escaped(cell), no_wrap=True, overflow="ellipsis") for cell in row))
    if title:
        line(title)
    _console().print(shown)
    line()


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A bar with rate and remaining time on standard error; a line every 30 s where that is no terminal.

    Args:
        title: What is being done.

    Yields:
        What to call with (done, total).
    """
    if not sys.stderr.isatty():
        last = time.monotonic()

        def tell(done: int, total: int | None) -> None:
            nonlocal last
            if time.monotonic() - last >= QUIET_SECONDS:
                last = time.monotonic()
                detail(f"{title}: {done:,}" + ("" if total is None else f" of {total:,}"))

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    rate = TextColumn("{task.fields[rate]}")
    bar = Bar(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task(escaped(title), total=None, rate="")

        def show(done: int, total: int | None) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, rate=f"{speed:,.0f}/s" if speed else "")

        yield show


def _console() -> "Console":
    from rich.console import Console

    # a pipe has no width; 80 columns are what people read
    return Console(width=None if sys.stdout.isatty() else 80, highlight=False)
