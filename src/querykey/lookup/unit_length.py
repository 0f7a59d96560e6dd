"""Rows scaled to length 1, for any magnitude."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["are_plain", "in_range", "unit_length"]

LARGEST, SMALLEST = 1e15, 1e-11
"""Magnitudes whose squares, and sums of them, float32 holds, above the epsilon of `normalize`."""
SHORTEST, LONGEST = 1e-6, 1e15
"""Lengths of float32 rows that `unit_length` divides by their length and by nothing else."""


def in_range(rows: Tensor, dim: int = -1) -> Tensor:
    """Divide rows by their largest magnitude where the squares of it leave the range of float32.

    Args:
        rows: Any float dtype from float32 on.
        dim: Along which a row lies.

    Returns:
        Of the same shape and dtype. Rows within the range, of zeros, or not finite keep their bits; if all
        are, and need no gradient, it may be the given tensor.
    """
    if not rows.shape[dim]:
        return rows
    with torch.no_grad():
        # `vector_norm(ord=inf)` takes twenty times as long
        peak = torch.maximum(rows.amax(dim=dim, keepdim=True), -rows.amin(dim=dim, keepdim=True))
        outside = (peak > LARGEST) | ((peak < SMALLEST) & (peak > 0.0))
        if _may_read(rows) and not outside.any():
            return rows  # saves a pass over all rows
        scale = torch.where(outside & peak.isfinite(), peak, torch.ones_like(peak))
    return rows / scale


def _may_read(rows: Tensor) -> bool:
    """Whether numbers may decide what is computed: other devices would wait, and a graph has none yet."""
    return rows.device.type == "cpu" and not rows.requires_grad and not torch.compiler.is_compiling()


def unit_length(rows: Tensor, dim: int = -1) -> Tensor:
    """Scale rows to length 1; `torch.nn.functional.normalize` gives zeros for rows of length 1e25.

    Args:
        rows: Any dtype.
        dim: Along which a row lies.

    Returns:
        In float32, or float64 where the rows are. A row of zeros stays zero.

    Example:
        >>> unit_length(torch.tensor([[3e25, 4e25]]))
        tensor([[0.6000, 0.8000]])
    """
    if rows.dtype not in (torch.float32, torch.float64):
        rows = rows.float()
    return F.normalize(in_range(rows, dim), dim=dim)


def are_plain(lengths: Tensor) -> bool:
    """Whether rows of these lengths are finite, not zero, and need no scaling before they are squared.

    It reads the answer from the device: not for a training step.
    """
    return bool(((lengths > SHORTEST) & (lengths < LONGEST)).all())
