"""Exit codes and messages: 2 and one message for a user's error, 130 and one line for Ctrl-C."""

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
from querykey.cli.torchrun import is_peer_failure, write_once
from querykey.errors import DataWarning, QuerykeyError, is_out_of_memory, missing_extra

__all__ = ["Commands", "repeated_interrupts"]

MISTAKE = 2
STOPPED = 130  # 128 + SIGINT, as shells count


class Commands(TyperGroup):
    """The commands, with one way to report errors."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with reserved_outputs(), _data_warnings_as_notes():
                return super().invoke(ctx)
        except QuerykeyError as error:
            # str() of an error with an errno starts with "[Errno 28]"
            raise _exit(f"error: {getattr(error, 'strerror', None) or error}", MISTAKE) from error
        except KeyboardInterrupt as stop:
            raise _exit("stopped by Ctrl-C", STOPPED) from stop
        except ModuleNotFoundError as error:
            missing = missing_extra(error, f"querykey {ctx.invoked_subcommand}")
            if missing is None:
                raise
            raise _exit(f"error: {missing}", MISTAKE) from error
        except PermissionError as error:
            raise _exit(f"error: no permission: {error.filename or error}", MISTAKE) from error
        except Exception as error:
            if (message := _message_of_system(error)) is None:
                raise
            raise _exit(f"error: {message}", MISTAKE) from error


def _message_of_system(error: Exception) -> str | None:
    """The message for a lack of memory or disk space, or a lost process; None for a bug."""
    if is_out_of_memory(error):
        return "out of memory; use fewer rows or a smaller batch"
    if is_peer_failure(error):
        return "another process of this run has ended, so this one ends too"
    from querykey.io.atomic import is_full_disk

    if not is_full_disk(error):
        return None
    name = getattr(error, "filename", None)
    return f"{f'{name}: ' if name else ''}the disk is full; free some space and run it again"


@contextmanager
def _data_warnings_as_notes() -> Iterator[None]:
    """Show warnings about data as notes, without their place in the code."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)
        show = warnings.showwarning

        def shown(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, DataWarning):
                write_once(escaped(f"note: {message}"))
            else:
                show(message, category, *where, **more)

        warnings.showwarning = shown
        yield


def _exit(message: str, code: int) -> typer.Exit:
    write_once(escaped(message))
    return typer.Exit(code)


REPEAT_SECONDS = 3.0
"""Longer than the cleanup after an interrupt takes."""


@contextmanager
def repeated_interrupts() -> Iterator[None]:
    """Repeat an interrupt every few seconds until the context ends.

    Packages with a bare `except` around their imports swallow a KeyboardInterrupt, and a long run would
    then continue.

    Yields:
        Nothing.
    """
    if not hasattr(signal, "setitimer"):
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        signal.setitimer(signal.ITIMER_REAL, REPEAT_SECONDS)
        raise KeyboardInterrupt

    former = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in former.items():
            signal.signal(number, handler)
