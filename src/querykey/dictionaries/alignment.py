"""Adaptive cross-batch normalisation: aligns the rows of a memory with the current encoder."""

import math

import torch
from torch import Tensor, nn

from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.errors import RangeError, ShapeError
from querykey.lookup.unit_length import unit_length
from querykey.types import Keys, Queries

__all__ = ["MomentAlignment"]

UNKNOWN = 1e30
"""Initial variance of the estimate: the first batch replaces it."""
NARROW = 1e-6
"""A dimension of the memory whose standard deviation is below this is shifted, not scaled."""


class MomentAlignment(nn.Module):
    r"""Give the rows of a memory the mean and standard deviation of the current batch, per dimension.

    Rows in a memory are from older encoders. If the change of the encoder since is a shift and a scale of
    each dimension, it can be applied to them:

    .. math:: z \leftarrow \mathrm{unit}\left(
              \frac{z - \mu_\mathrm{memory}}{\sigma_\mathrm{memory}} \sigma + \mu \right)

    with :math:`\mu, \sigma` those of the batch, or an estimate from the batches before it as well.

    The moments of a small batch are noisy, and so would be the memory. With a `drift` the moments are
    estimated by a Kalman filter, one for each moment of each dimension: a batch of *B* rows measures a mean
    with variance :math:`\sigma^2 / B` and a variance with :math:`2 \sigma^4 / (B - 1)`; between two batches a
    mean moves by about `drift` times :math:`\sigma`, and :math:`\sigma` by a fraction `drift`. A large batch
    then has a large weight, a small one a small weight. The estimate is saved with the module.

    Args:
        dim: Width of a row, at least 1.
        drift: > 0, dimensionless: how far the distribution moves in a step, in standard deviations; 0.01
            to 0.1. None: the moments of each batch are used as they are.

    Raises:
        RangeError: If dim is below 1 or drift is not a positive number.

    Example:
        >>> memory = torch.tensor([[0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
        >>> batch = torch.tensor([[-0.6, 0.8], [-0.8, 0.6], [0.0, 1.0]])
        >>> MomentAlignment(dim=2).align_(memory, batch)
        >>> bool(memory[:, 0].mean() < 0)
        True

    Source:
        Ajanthan et al., Adaptive Cross Batch Normalization for Metric Learning, 2023, arXiv:2303.17127:
        stored embeddings are updated at each iteration to the first and second moments of the current
        ones, with a Kalman filter where batches are small. The noise model above and the
        setting `drift` are ours.
    """

    mean: Tensor
    variance: Tensor
    mean_doubt: Tensor
    variance_doubt: Tensor

    def __init__(self, *, dim: int, drift: float | None = None) -> None:
        super().__init__()
        if dim < 1:
            raise RangeError(f"dim must be at least 1, got {dim}")
        if drift is not None and not 0.0 < drift < math.inf:
            raise RangeError(
                f"drift must be > 0 and finite, or None to use the moments of each batch, got {drift}; "
                "0.01 to 0.1 is usual"
            )
        self.drift = drift
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.zeros(dim))
        self.register_buffer("mean_doubt", torch.full((dim,), UNKNOWN))
        self.register_buffer("variance_doubt", torch.full((dim,), UNKNOWN))

    @torch.no_grad()
    def align_(self, stored: Keys, batch: Queries, processes: ProcessGroup = SINGLE_PROCESS) -> None:
        """Update the estimate with a batch, and align the stored rows to it in place.

        Args:
            stored: Rows of a memory [keys, dim]; fewer than two are left as they are.
            batch: Rows of the encoder as it is now [queries, dim], of length 1, at least two; of all
                processes.
            processes: Over which the memory is sharded: `stored` is the shard of this rank.

        Raises:
            ShapeError: If the batch has fewer than two rows, or rows of another width.
        """
        if len(batch) < 2 or batch.shape[1] != len(self.mean):
            raise ShapeError(
                f"a batch of {list(batch.shape)} has no moments of {len(self.mean)} dimensions; "
                "at least two rows of this width are needed"
            )
        self._update(batch.to(self.mean.dtype))
        count = processes.total(stored)
        if count < 2:
            return
        mean = processes.sum(stored.sum(dim=0)) / count
        variance = processes.sum((stored - mean).square_().sum(dim=0)) / (count - 1)
        stretch = (self.variance.clamp(min=0.0) / variance.clamp(min=NARROW**2)).sqrt()
        stored.sub_(mean).mul_(stretch).add_(self.mean)
        stored.copy_(unit_length(stored))

    def extra_repr(self) -> str:
        return f"dim={len(self.mean)}, drift={self.drift}"

    def _update(self, batch: Queries) -> None:
        variance, mean = torch.var_mean(batch, dim=0)
        if self.drift is None:
            self.mean.copy_(mean)
            self.variance.copy_(variance)
            return
        # Measurement noise from the estimated variance, not from the batch's: batches of little variance by
        # chance would get the largest gain, and the estimate would shrink.
        spread = self.variance.where(self.mean_doubt < UNKNOWN / 2, variance).clamp(min=NARROW**2)
        _follow(self.mean, self.mean_doubt, mean, noise=spread / len(batch), moved=self.drift**2 * spread)
        _follow(
            self.variance,
            self.variance_doubt,
            variance,
            noise=2.0 * spread**2 / (len(batch) - 1),
            moved=(2.0 * self.drift * spread) ** 2,
        )


def _follow(estimate: Tensor, doubt: Tensor, measured: Tensor, *, noise: Tensor, moved: Tensor) -> None:
    """One step of a Kalman filter with a random-walk state: predict, then correct, in place."""
    doubt.add_(moved)
    gain = doubt / (doubt + noise)
    estimate.lerp_(measured, gain)
    doubt.copy_(gain * noise)
