"""Rows scaled to length 1, for any magnitude."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["are_plain", "in_range", "unit_length"]

LARGEST, SMALLEST = 1e15, 1e-11
"""Magnitudes whose squares, and sums of them, float32 holds, above the epsilon of `normalize`."""
EPSILON = 1e-12
"""The least that a row is divided by, as in `normalize`."""
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
        peak, outside = _peak(rows, dim)
        if _may_read(rows) and not outside.any():
            return rows  # saves a pass over all rows
        scale = _scale(peak, outside)
    return rows / scale


def _peak(rows: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The largest magnitude of each row, and whether its square leaves the range."""
    # `vector_norm(ord=inf)` takes twenty times as long
    peak = torch.maximum(rows.amax(dim=dim, keepdim=True), -rows.amin(dim=dim, keepdim=True))
    return peak, (peak > LARGEST) | ((peak < SMALLEST) & (peak > 0.0))


def _scale(peak: Tensor, outside: Tensor) -> Tensor:
    """What rows are divided by: 1 within the range."""
    return torch.where(outside & peak.isfinite(), peak, torch.ones_like(peak))


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
    has_graph = rows.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if has_graph and rows.shape[dim]:
        unit: Tensor = _UnitLength.apply(rows, dim)[0]
        return unit
    return F.normalize(in_range(rows, dim), dim=dim)


class _UnitLength(torch.autograd.Function):
    r"""Rows scaled to length 1, and their lengths.

    The numbers are those of `normalize`. The derivative :math:`(g - u (u \cdot g)) / l` is written with the
    unit rows u and the lengths l: four passes over the rows, where that of a division by a norm takes ten,
    which were a fifth of the step of an adapter. Both outputs can be differentiated, so that second
    derivatives follow.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        # `in_range` may decide by the numbers, which those of a batch under `vmap` cannot
        scale = _scale(*_peak(rows, dim))
        unit = rows / scale
        lengths = torch.linalg.vector_norm(unit, dim=dim, keepdim=True).clamp(min=EPSILON)
        return unit.div_(lengths), lengths * scale

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.dim = inputs[1]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(ctx: Any, by_unit: Tensor | None, by_lengths: Tensor | None) -> tuple[Tensor | None, None]:
        unit, lengths = ctx.saved_tensors
        by_rows = None if by_lengths is None else by_lengths * unit
        if by_unit is not None:
            along = (by_unit * unit).sum(dim=ctx.dim, keepdim=True)
            across = torch.addcmul(by_unit, unit, along, value=-1) / lengths
            by_rows = across if by_rows is None else by_rows + across
        return by_rows, None

    @staticmethod
    def jvp(ctx: Any, by_rows: Tensor, _: None) -> tuple[Tensor, Tensor]:
        unit, lengths = ctx.saved_tensors
        along = (by_rows * unit).sum(dim=ctx.dim, keepdim=True)
        return torch.addcmul(by_rows, unit, -along) / lengths, along


def are_plain(lengths: Tensor) -> bool:
    """Whether rows of these lengths are finite, not zero, and need no scaling before they are squared.

    It reads the answer from the device: not for a training step.
    """
    return bool(((lengths > SHORTEST) & (lengths < LONGEST)).all())
