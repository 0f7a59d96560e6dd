"""Ctrl-C that comes again until it is heard."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["insistent"]

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
