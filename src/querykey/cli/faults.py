"""A user's mistake is one message and exit code 2; Ctrl-C is one line and 130."""

from typing import Any

import typer
from typer.core import TyperGroup

from querykey.cli.joining import is_parting, tell
from querykey.errors import QuerykeyError, is_out_of_memory
from querykey.outputs import is_full_disk

__all__ = ["Commands"]

MISTAKE = 2
STOPPED = 130  # 128 + SIGINT, as shells count


class Commands(TyperGroup):
    """The commands; what goes wrong in any of them is told the same way."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except QuerykeyError as fault:
            raise _leave(f"error: {_words(fault)}", MISTAKE) from fault
        except KeyboardInterrupt as stop:
            raise _leave("stopped by Ctrl-C", STOPPED) from stop
        except PermissionError as fault:
            raise _leave(f"error: no permission: {fault.filename or fault}", MISTAKE) from fault
        except Exception as fault:
            if is_out_of_memory(fault):
                raise _leave("error: out of memory; use fewer rows or a smaller batch", MISTAKE) from fault
            if is_parting(fault):
                raise _leave("error: a process of this run has ended, and so all do", MISTAKE) from fault
            if not is_full_disk(fault):
                raise
            name = getattr(fault, "filename", None)
            where = f"{name}: " if name else ""
            raise _leave(
                f"error: {where}the disk is full; free some space and run it again", MISTAKE
            ) from fault


def _words(fault: QuerykeyError) -> str:
    """The message; one that carries an errno would show it as "[Errno 28]"."""
    return getattr(fault, "strerror", None) or str(fault)


def _leave(message: str, code: int) -> typer.Exit:
    tell(message)
    return typer.Exit(code)
