"""What a person sees: tables and lines on standard output, progress on standard error."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Progress", "detail", "line", "note", "progress", "table"]

Progress = Callable[[int, int | None], None]
"""Called with (done, total); total is None where it is not known beforehand."""


def line(text: str = "", *, whole: bool = False) -> None:
    """Write a line, broken between words at the width of the terminal.

    Args:
        text: Taken as it is: no markup.
        whole: Leave it unbroken: a command, which will be copied.
    """
    _console().print(text, markup=False, soft_wrap=whole)


def note(text: str) -> None:
    """Write a line to standard error: what is worth knowing and no result.

    Args:
        text: Taken as it is.
    """
    import typer

    typer.echo(f"note: {text}", err=True)


def detail(text: str) -> None:
    """Write a line to standard error: how far the work is.

    Args:
        text: Taken as it is.
    """
    import typer

    typer.echo(text, err=True)


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
            Text(name),
            justify="left" if is_words else "right",
            no_wrap=not is_words,  # rich takes space from columns that may wrap, and from them first
            overflow="ellipsis",
            min_width=None if is_words else max(len(row[place]) for row in (columns, *rows)),
        )
    for row in rows:
        shown.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row))
    if title:
        line(title)
    _console().print(shown)
    line()


@contextmanager
def progress(title: str) -> Iterator[Progress | None]:
    """A bar with rate and remaining time on standard error, where that is a terminal.

    Args:
        title: What is being done.

    Yields:
        What to call with (done, total); None where nobody looks.
    """
    if not sys.stderr.isatty():
        yield None
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
        task = bar.add_task(title, total=None, rate="")

        def show(done: int, total: int | None) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, rate=f"{speed:,.0f}/s" if speed else "")

        yield show


def _console() -> "Console":
    from rich.console import Console

    # a pipe has no width; 80 columns are what people read
    return Console(width=None if sys.stdout.isatty() else 80, highlight=False)
