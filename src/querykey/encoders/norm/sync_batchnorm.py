"""Global batch norm: statistics over the rows of all processes, and the gradient through them.

In train mode each output depends on every row of the batch through mean and variance. So backward, too, needs
sums over all processes: `shared_gradient` is that part. Forward and backward each take one all_reduce of two
numbers a channel, whatever the number of rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup, current_process_group
from querykey.errors import SecondDerivativeError, ShapeError

__all__ = [
    "BatchStatistics",
    "GlobalBatchNorm",
    "SharedGradient",
    "batch_statistics",
    "combine_statistics",
    "global_batch_norm",
    "normalised",
    "shared_gradient",
    "subtract_shared",
    "update_running_statistics",
]


class BatchStatistics(NamedTuple):
    """Values a channel (rows x positions), mean and biased variance in float64, the dtype to compute in."""

    values: int
    mean: Tensor
    variance: Tensor
    dtype: torch.dtype


def normalised(
    rows: Tensor, statistics: BatchStatistics, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Normalise rows by the statistics of the batch, which get no gradient; scale and shift do."""
    # eval mode of torch's kernel: it takes mean and variance as they are given
    mean, variance = (value.to(statistics.dtype) for value in (statistics.mean, statistics.variance))
    return F.batch_norm(rows, mean, variance, weight, bias, training=False, eps=eps)


def batch_statistics(rows: Tensor) -> BatchStatistics:
    """Mean and variance of some rows."""
    count = rows.numel() // rows.shape[1]
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    mean, variance = torch.zeros(2, rows.shape[1], dtype=dtype, device=rows.device).unbind()
    if count == 1:  # the unbiased variance that torch gives would be 0 / 0
        return BatchStatistics(1, rows.reshape(-1).double(), variance.double(), dtype)
    torch.batch_norm_update_stats(
        rows.to(mean.dtype), mean, variance, 1.0
    )  # momentum 1: overwrites; gives the unbiased one
    return BatchStatistics(count, mean.double(), variance.double() * (count - 1) / count, dtype)


def combine_statistics(
    parts: Sequence[BatchStatistics], processes: ProcessGroup = SINGLE_PROCESS
) -> BatchStatistics:
    """Combine the statistics of parts of a batch: of this process in order, then of all processes.

    Args:
        parts: Statistics of the parts on this process, at least one.
        processes: Those that have rows of the batch.

    Returns:
        The same on every process.

    Raises:
        ShapeError: If there is one value a channel in all.
    """
    # within a process by Chan's formula, from means and variances: no difference of large sums
    count = sum(part.values for part in parts)
    mean = sum((part.mean * part.values for part in parts), torch.zeros_like(parts[0].mean)) / count
    squares = ((part.variance + (part.mean - mean) ** 2) * part.values for part in parts)
    variance = sum(squares, torch.zeros_like(mean)) / count
    if processes.world_size > 1:
        # over processes as sums about 0, in one all_reduce; the squares cancel, but float64 has more digits
        # than float32 rows have about their mean
        sums = torch.cat([mean.new_tensor([count]), mean * count, (variance + mean**2) * count])
        total = processes.sum(sums)
        count = int(total[0])
        mean, square = (total[1:] / count).chunk(2)
        variance = (square - mean**2).clamp_(min=0)
    if count < 2:
        raise ShapeError("batch norm in train mode needs more than one value a channel; give a larger batch")
    return BatchStatistics(count, mean, variance, parts[0].dtype)


@torch.no_grad()
def update_running_statistics(
    running: tuple[Tensor, Tensor] | None, momentum: float, statistics: BatchStatistics
) -> None:
    """Update running mean and variance in place, as torch does: with the unbiased variance."""
    if running is None:
        return
    count = statistics.values
    new = (statistics.mean, statistics.variance * count / (count - 1))
    for old, value in zip(running, new, strict=True):
        old.mul_(1 - momentum).add_(value.to(old.dtype), alpha=momentum)


class SharedGradient(NamedTuple):
    """The gradient through mean and variance: slope * row + level, for each channel in float64."""

    slope: Tensor
    level: Tensor


def shared_gradient(
    statistics: BatchStatistics,
    weight: Tensor,
    eps: float,
    local: tuple[Tensor, Tensor],
    processes: ProcessGroup = SINGLE_PROCESS,
) -> SharedGradient:
    r"""The term of the gradient that all rows have in common.

    With :math:`\hat x = r (x - \mu)`, :math:`r` one over the standard deviation, sums over the batch,
    :math:`\frac{\gamma r}{N} \left(\sum dy + \hat x \sum dy\, \hat x\right)`.

    Args:
        statistics: Of the whole batch.
        weight: Scale, gamma.
        eps: Added to the variance.
        local: :math:`\sum dy\, \hat x` and :math:`\sum dy` over this process's rows.
        processes: Those that have rows of the batch.

    Returns:
        What to subtract from the gradient of each row.
    """
    scale, shift = processes.sum(torch.stack(local).double())
    inverse = (statistics.variance + eps).rsqrt()
    outer = weight.detach().double() * inverse / statistics.values
    # x-hat = inverse * (row - mean), so the term is linear in the row itself: x-hat need not be stored
    slope = outer * inverse * scale
    return SharedGradient(slope, outer * shift - slope * statistics.mean)


@torch.no_grad()
def subtract_shared(gradient: Tensor, rows: Tensor, shared: SharedGradient) -> None:
    """Subtract the shared term from the gradient of some rows, in place."""
    slope, level = (part.to(gradient.dtype).view([1, -1] + [1] * (rows.ndim - 2)) for part in shared)
    gradient.addcmul_(rows, slope, value=-1).sub_(level)


class GlobalBatchNorm(nn.SyncBatchNorm):
    """Batch norm whose statistics in train mode are those of the rows of all processes.

    On accelerators it is torch's SyncBatchNorm, which does not run on the CPU; there this class computes the
    same. In eval mode, and on one process, it is plain batch norm. Every forward and backward is a collective
    operation: all processes must call it equally often and in the same order, or they wait forever. Numbers
    of rows may differ, with at least one row each.

    The gradients of scale and shift are those of the local rows, like the gradients of all other weights.
    They are summed over the processes together with those.

    Source:
        Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020,
        arXiv:2002.05709, section 2.2 (global BN).
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 -- torch's name
        # the recorder of pretraining/chunked needs the path below on a GPU too: the kernel knows no chunks
        if not self.training or (input.is_cuda and not has_torch_function((input,))):
            found: Tensor = super().forward(input)
            return found
        self._check_input_dim(input)
        momentum = self.momentum or 0.0
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        return global_batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            momentum=momentum,
            eps=self.eps,
        )


def global_batch_norm(
    input: Tensor,  # noqa: A002 -- torch's name
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    momentum: float,
    eps: float,
) -> Tensor:
    """Torch's batch_norm in train mode, with the statistics of the rows of all processes.

    Args:
        input: This process's rows [rows, channels, ...].
        running_mean: Updated in place; None if not tracked.
        running_var: Likewise.
        weight: Scale, or None.
        bias: Shift, or None.
        momentum: Weight of the new statistics in the running ones.
        eps: Added to the variance.

    Returns:
        As `input`.
    """
    if has_torch_function((input,)):  # for the recorder of pretraining/chunked this is a single call
        called: Tensor = handle_torch_function(
            global_batch_norm,
            (input,),
            input,
            running_mean,
            running_var,
            weight,
            bias,
            momentum=momentum,
            eps=eps,
        )
        return called
    processes = current_process_group()
    if processes.world_size == 1:
        return F.batch_norm(
            input, running_mean, running_var, weight, bias, training=True, momentum=momentum, eps=eps
        )
    with torch.no_grad():
        statistics = combine_statistics([batch_statistics(input)], processes)
    if running_mean is not None and running_var is not None:
        update_running_statistics((running_mean, running_var), momentum, statistics)
    out: Tensor = _Normalised.apply(input, weight, bias, eps, statistics, processes)
    return out


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        statistics: BatchStatistics,
        processes: ProcessGroup,
    ) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.eps, ctx.statistics, ctx.processes, ctx.has_bias = eps, statistics, processes, bias is not None
        return normalised(rows, statistics, weight, bias, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise SecondDerivativeError
        rows, weight = ctx.saved_tensors
        statistics: BatchStatistics = ctx.statistics
        mean, variance = (value.to(statistics.dtype) for value in (statistics.mean, statistics.variance))
        # with constant statistics: gives the sums of this process's rows, and the row term to correct
        scales = torch.ones_like(mean) if weight is None else weight
        local, scale, shift = torch.ops.aten.native_batch_norm_backward(
            gradient, rows, scales, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        shared = shared_gradient(statistics, scales, ctx.eps, (scale, shift), ctx.processes)
        subtract_shared(local, rows, shared)
        return local, None if weight is None else scale, shift if ctx.has_bias else None, None, None, None
