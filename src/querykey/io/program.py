"""What is run by `python -m`: what it says of a mistake, and how it ends."""

import sys
from collections.abc import Callable

from querykey.errors import QuerykeyError

__all__ = ["exit_code", "say"]

MISTAKE, STOPPED = 2, 130


def say(words: str) -> None:
    """Write a line to the terminal at once, beside what is printed."""
    sys.stderr.write(words + "\n")
    sys.stderr.flush()


def exit_code(work: Callable[[], object]) -> int:
    """Do the work of a program.

    Args:
        work: What it does; it can be stopped and begun again.

    Returns:
        0; 2 for a mistake, which is printed as one line; 130 for Ctrl-C.

    Example:
        >>> exit_code(lambda: None)
        0
    """
    try:
        work()
    except QuerykeyError as error:
        say(f"error: {error}")
        return MISTAKE
    except KeyboardInterrupt:
        say("stopped by Ctrl-C; what is done stays, the same command goes on from there")
        return STOPPED
    return 0
