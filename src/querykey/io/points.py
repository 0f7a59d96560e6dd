"""Names of measures at a size and a precision, such as "NDCG@10 at 64, 8 bits"."""

import re
from typing import NamedTuple

__all__ = ["FLOAT", "SHARE", "Point", "point_of"]

POINT = re.compile(
    r"(?P<metric>\S+) at (?P<size>\d+)(?:, (?P<bits>[81]) bits?)?(?P<rescored>, rescored)?"
    r"(?P<bytes> bytes)?(?P<share>, 95%)?"
)
FLOAT = 32
"""Bits of a number that has no code."""
SHARE = 0.95
"""Of float quality, that codes of 1 bit are asked for."""


class Point(NamedTuple):
    """A metric at a size and a precision. Queries are floats always.

    Args:
        metric: "NDCG@10", "R@1", "overlap@10"; or "retrieval": R@1 with labels, NDCG@10 of documents.
        size: Numbers a row; bytes of a product quantiser.
        bits: A number: 32 (float), 8 or 1.
        rescored: Whether the best by 1 bit are ranked by 8 bits.
        is_bytes: Whether `size` counts bytes.
        share: What the metric is multiplied by.
    """

    metric: str
    size: int
    bits: int = FLOAT
    rescored: bool = False
    is_bytes: bool = False
    share: float = 1.0

    @property
    def bytes(self) -> int:
        """Bytes of a stored row."""
        if self.is_bytes:
            return self.size
        return -(-self.size * self.bits // 8) + (self.size if self.rescored else 0)


def point_of(measure: str) -> Point | None:
    """The point that a measure names.

    Args:
        measure: Such as "NDCG@10 at 64", "R@1 at 64, 8 bits", "NDCG@10 at 48 bytes", "NDCG@10 at 384, 95%"
            or "NDCG@10 at 384, 1 bit, rescored".

    Returns:
        The `Point`; None for a measure of another kind.

    Example:
        >>> point = point_of("NDCG@10 at 64, 1 bit")
        >>> point.size, point.bits, point.bytes
        (64, 1, 8)
    """
    found = POINT.fullmatch(measure)
    if found is None:
        return None
    return Point(
        found["metric"],
        int(found["size"]),
        int(found["bits"] or FLOAT),
        found["rescored"] is not None,
        found["bytes"] is not None,
        SHARE if found["share"] else 1.0,
    )
