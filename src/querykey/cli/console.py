"""Output of commands: tables and lines on standard output, progress on standard error."""

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Progress", "detail", "escaped", "heartbeat", "line", "note", "progress", "table"]

QUIET_SECONDS = 30.0
"""Between two lines of progress without a terminal."""

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move the cursor, change colours or order, or cannot be encoded; not tabs and newlines."""

Progress = Callable[[int, int | None], None]
"""Called with (done, total); total is None if it is not known in advance."""


def escaped(text: str) -> str:
    """Escape characters that control a terminal, as Python writes them.

    Args:
        text: Any text, such as text from data.
    """
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def line(text: str = "", *, whole: bool = False) -> None:
    """Write a line, wrapped at the width of the terminal and indented as it begins.

    Args:
        text: Plain text without markup.
        whole: Do not wrap, for a command that is copied.
    """
    from rich.text import Text

    console, words = _console(), escaped(text)
    if whole or not words.strip():
        console.print(words, markup=False, soft_wrap=True)
        return
    indent = len(words) - len(words.lstrip(" "))
    width = max(1, console.width - indent)
    for part in Text(words[indent:]).wrap(console, width):
        part.rstrip()
        console.print(" " * indent + part.plain, markup=False, soft_wrap=True)


def note(text: str) -> None:
    """Write a note to standard error.

    Args:
        text: Plain text.
    """
    import typer

    typer.echo(f"note: {escaped(text)}", err=True)


def detail(text: str) -> None:
    """Write a line of progress to standard error.

    Args:
        text: Plain text.
    """
    import typer

    typer.echo(escaped(text), err=True)


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", words: Sequence[int] = (0,)
) -> None:
    """Write a table.

    Args:
        columns: Column headers.
        rows: Cells as text.
        title: A line above the table.
        words: Indices of text columns, which are shortened if space is short; the others hold numbers.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for place, name in enumerate(columns):
        # text is shortened if space is short; a number never is
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
    """A progress bar on standard error; one line every 30 s if that is no terminal.

    Args:
        title: Name of the work.

    Yields:
        A function to call with (done, total).
    """
    if not sys.stderr.isatty():
        with heartbeat(title) as tell:
            yield lambda done, total: tell(f"{done:,}" + ("" if total is None else f" of {total:,}"))
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    title_column, rate = TextColumn("{task.description}"), TextColumn("{task.fields[rate]}")
    columns = (title_column, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escaped(title), total=None, rate="")

        def show(done: int, total: int | None) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, rate=f"{speed:,.0f}/s" if speed else "")

        yield show


@contextmanager
def heartbeat(title: str) -> Iterator[Callable[[str], None]]:
    """A line on standard error every 30 s, also while nothing reports, for what runs without a terminal.

    Args:
        title: What is being done.

    Yields:
        What to call with how far the work is.
    """
    started_at, words, ended = time.monotonic(), "", threading.Event()

    def tell(text: str) -> None:
        nonlocal words
        words = text

    def beat() -> None:
        while not ended.wait(QUIET_SECONDS):
            detail(f"{title}: {words or f'{time.monotonic() - started_at:.0f} s'}")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield tell
    finally:
        ended.set()
        thread.join()


def _console() -> "Console":
    from rich.console import Console

    # a pipe has no width
    return Console(width=None if sys.stdout.isatty() else 80, highlight=False)
