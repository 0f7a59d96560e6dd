"""Bytes and quality of each size and precision of an adapter, and rules to choose one."""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from querykey.errors import ConfigError, DataError

__all__ = ["KEEP", "Point", "best_under", "fewest_bytes", "marked", "parse_bytes", "parse_share"]

KEEP = 0.98
"""Fraction of the quality of the largest float rows that the recommended point must keep."""

Point = Mapping[str, Any]
"""Keys: dim, bits, bytes (per vector), metric, quality, low, high (None if nothing was held out)."""


def fewest_bytes(frontier: Sequence[Point], keep: float = KEEP) -> Point:
    """The point of fewest bytes that keeps a fraction of the quality of the largest float rows.

    Args:
        frontier: Points, one of them the largest float rows.
        keep: From 0 to 1.

    Returns:
        The point; at equal bytes the one of higher quality.

    Raises:
        DataError: If no quality was measured.
    """
    measured = _measured(frontier)
    whole = max(measured, key=lambda point: (point["bits"] == 32, point["dim"]))
    enough = [point for point in measured if point["quality"] >= keep * whole["quality"]]
    return min(enough, key=lambda point: (point["bytes"], -point["quality"]))


def marked(frontier: Sequence[Point]) -> list[dict[str, Any]]:
    """Mark the recommended point, which is that of `fewest_bytes`.

    Args:
        frontier: Points.

    Returns:
        Copies of the points with "recommended"; False for all if no quality was measured.
    """
    measured = any(point.get("quality") is not None for point in frontier)
    best = fewest_bytes(frontier) if measured else None
    return [dict(point) | {"recommended": point is best} for point in frontier]


def best_under(frontier: Sequence[Point], most: int) -> Point:
    """The point of highest quality within a number of bytes.

    Args:
        frontier: Points.
        most: Largest number of bytes per vector.

    Returns:
        The point; at equal quality the one of fewer bytes.

    Raises:
        DataError: If no quality was measured, or every point takes more bytes.
    """
    measured = _measured(frontier)
    small = [point for point in measured if point["bytes"] <= most]
    if not small:
        least = min(point["bytes"] for point in measured)
        raise DataError(
            f"no size takes at most {most} bytes; the smallest takes {least}; fit again with a smaller one "
            "of dims, or with bits=[8, 1]"
        )
    return max(small, key=lambda point: (point["quality"], -point["bytes"]))


def parse_bytes(text: str) -> int:
    """Parse bytes, written as "64", "64B" or "1.5kB".

    Raises:
        ConfigError: If the text has another form.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(k|ki)?b?\s*", text, re.IGNORECASE)
    if found is None:
        raise ConfigError(f"bytes are written as 64, 64B or 1.5kB; got {text!r}")
    factor = {"": 1, "k": 1000, "ki": 1024}[(found[2] or "").lower()]
    return int(Fraction(found[1]) * factor)


def parse_share(text: str) -> float:
    """Parse a fraction, written as ".98" or "98%".

    Raises:
        ConfigError: If it is not a number from 0 to 1.
    """
    try:
        share = float(text.rstrip("% ")) / (100 if text.rstrip().endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"a share is written as .98 or 98%; got {text!r}")
    return share


def _measured(frontier: Sequence[Point]) -> list[Point]:
    measured = [point for point in frontier if point.get("quality") is not None]
    if not measured:
        raise DataError(
            "nothing was held out when this adapter was fitted, so the quality of its sizes is not known; "
            "fit it again with validation_fraction above 0"
        )
    return measured
