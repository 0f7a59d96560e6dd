"""How much memory a process takes at the most while something runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Peak", "peak_memory"]

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """What was found.

    Args:
        bytes: Resident memory of the whole process at its highest; None where the system does not tell.
    """

    bytes: int | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure while this lasts.

    Yields:
        Filled in at the end.

    Example:
        >>> with peak_memory() as peak:
        ...     room = bytearray(1000)
        >>> peak.bytes is None or peak.bytes > len(room)
        True
    """
    peak = Peak()
    try:
        FORGET.write_text("5", encoding="ascii")  # Linux: the highest mark begins anew
    except OSError:
        yield peak
        return
    yield peak
    words = dict(line.split(":", 1) for line in STATUS.read_text(encoding="ascii").splitlines())
    peak.bytes = 1024 * int(words["VmHWM"].split()[0])
