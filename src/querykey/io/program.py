"""Scripts and `python -m` programs: messages and exit codes."""

import sys
from collections.abc import Callable

from querykey.errors import QuerykeyError

__all__ = ["exit_code", "say"]

MISTAKE, STOPPED = 2, 130


def say(words: str) -> None:
    """Write a line to standard error, and flush it."""
    sys.stderr.write(words + "\n")
    sys.stderr.flush()


def exit_code(work: Callable[[], object]) -> int:
    """Run a program.

    Args:
        work: Its main function; it can be interrupted and resumed.

    Returns:
        0; 2 for a user's error, which is printed as one line; 130 for Ctrl-C.

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
        say("stopped by Ctrl-C; finished work is stored, the same command resumes")
        return STOPPED
    return 0
