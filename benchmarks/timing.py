"""Contenders timed in turns, so that a busy machine slows each of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = ["Row", "in_turns", "median_ratio"]


class Row(NamedTuple):
    """One line of the table."""

    what: str
    ratio: float
    target: str
    is_met: bool | None
    """None where there is no target: the figure is for the record."""
    figures: dict[str, Any]
    """What the ratio was made of, with units in the names."""


def in_turns(contenders: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds that each contender took, once a turn, after one turn that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            if turn > 0:
                taken[name].append(time.perf_counter() - began)
    return taken


def median_ratio(above: list[float], below: list[float]) -> float:
    """The median over the turns of one's time by the other's in the same turn."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
