"""A user's mistake is one message and exit code 2; Ctrl-C is one line and 130."""

import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from querykey.cli.console import escaped
from querykey.cli.options import reserved_outputs
from querykey.cli.torchrun import is_parting, tell
from querykey.errors import DataWarning, QuerykeyError, is_out_of_memory, missing_extra

__all__ = [
    "Commands",
    "insistent",
]

MISTAKE = 2
STOPPED = 130  # 128 + SIGINT, as shells count


class Commands(TyperGroup):
    """The commands; what goes wrong in any of them is told the same way."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with reserved_outputs(), _data_warnings_as_notes():
                return super().invoke(ctx)
        except QuerykeyError as error:
            raise _leave(f"error: {_words(error)}", MISTAKE) from error
        except KeyboardInterrupt as stop:
            raise _leave("stopped by Ctrl-C", STOPPED) from stop
        except ModuleNotFoundError as error:
            if (said := missing_extra(error, f"querykey {ctx.invoked_subcommand}")) is None:
                raise
            raise _leave(f"error: {said}", MISTAKE) from error
        except PermissionError as error:
            raise _leave(f"error: no permission: {error.filename or error}", MISTAKE) from error
        except Exception as error:
            if is_out_of_memory(error):
                raise _leave("error: out of memory; use fewer rows or a smaller batch", MISTAKE) from error
            if is_parting(error):
                raise _leave("error: a process of this run has ended, and so all do", MISTAKE) from error
            from querykey.io.atomic import is_full_disk

            if not is_full_disk(error):
                raise
            name = getattr(error, "filename", None)
            where = f"{name}: " if name else ""
            raise _leave(
                f"error: {where}the disk is full; free some space and run it again", MISTAKE
            ) from error


@contextmanager
def _data_warnings_as_notes() -> Iterator[None]:
    """Show what was left out of the data without the line of code that found it."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)
        show = warnings.showwarning

        def shown(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, DataWarning):
                tell(f"note: {message}")
            else:
                show(message, category, *where, **more)

        warnings.showwarning = shown
        yield


def _words(error: QuerykeyError) -> str:
    """The message; one that carries an errno would show it as "[Errno 28]"."""
    return getattr(error, "strerror", None) or str(error)


def _leave(message: str, code: int) -> typer.Exit:
    tell(escaped(message))
    return typer.Exit(code)


AGAIN_SECONDS = 3.0
"""Longer than anybody takes to clean up after an interrupt that was heard."""


@contextmanager
def insistent() -> Iterator[None]:
    """Repeat an interrupt every few seconds until whoever holds this open has ended.

    Packages with a bare `except` around their imports swallow a KeyboardInterrupt, and a long run then
    goes on as if nothing had been said.

    Yields:
        Nothing.
    """
    if not hasattr(signal, "setitimer"):
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        raise KeyboardInterrupt

    former = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in former.items():
            signal.signal(number, handler)
