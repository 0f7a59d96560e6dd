"""Split batch norm, and shuffled encoding of keys, so that batch statistics do not leak the positive.

A query and its key that are normalised by the same statistics can be matched by these alone. Split batch norm
has the statistics of sub-batches on one device, as several devices would have. Shuffled keys are normalised
in other sub-batches than their queries, and put back in order.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.errors import ConfigError, RangeError, ShapeError
from querykey.types import Rows

__all__ = [
    "BatchNorm",
    "SplitBatchNorm1d",
    "SplitBatchNorm2d",
    "at_least_one_group",
    "encode_shuffled",
    "in_order",
    "key_order",
    "shuffled",
    "spread_order",
]

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


def _split(norm: BatchNorm, rows: Tensor, groups: int) -> Tensor:
    """Batch norm with the statistics of each group of consecutive rows, in train mode."""
    if len(rows) % groups:
        raise ShapeError(
            f"split batch norm has {groups} groups, and {len(rows)} rows do not split into so many of one "
            "size; drop the smaller last batch, or take another number of groups"
        )
    if rows[0, 0].numel() * len(rows) == groups:
        raise ShapeError(
            f"split batch norm with {groups} groups has one value a channel and group in {len(rows)} rows; "
            "two are needed: take fewer groups or a larger batch"
        )
    means = rows.new_zeros(groups, norm.num_features, dtype=_dtype_of_statistics(norm, rows))
    variances = torch.zeros_like(means)
    normalised = [
        F.batch_norm(part, mean, variance, norm.weight, norm.bias, training=True, momentum=1.0, eps=norm.eps)
        for part, mean, variance in zip(rows.chunk(groups), means, variances, strict=True)
    ]
    if norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        part = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(means.mean(dim=0), part)
        norm.running_var.lerp_(variances.mean(dim=0), part)
    return torch.cat(normalised)


def _dtype_of_statistics(norm: BatchNorm, rows: Tensor) -> torch.dtype:
    return rows.dtype if norm.running_mean is None else norm.running_mean.dtype


class SplitBatchNorm1d(nn.BatchNorm1d):
    """Batch norm over sub-batches of consecutive rows, as if each were on a separate device.

    In eval mode it is plain batch norm; the running statistics are updated with the mean over
    sub-batches.

    Args:
        num_features: Channels.
        groups: Sub-batches of equal size, >= 1; 1 is plain batch norm.
        options: Those of torch.nn.BatchNorm1d.

    Raises:
        RangeError: If groups is below 1.
        ShapeError: At a forward in train mode, if the rows cannot be split into groups of equal size.

    Example:
        >>> rows = torch.tensor([[0.0], [2.0], [10.0], [14.0]])
        >>> SplitBatchNorm1d(1, groups=2)(rows).T.round().tolist()
        [[-1.0, 1.0, -1.0, 1.0]]
    """

    def __init__(self, num_features: int, *, groups: int, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.groups = at_least_one_group(groups)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 -- torch's name
        self._check_input_dim(input)
        return _split(self, input, self.groups) if self.training else super().forward(input)


class SplitBatchNorm2d(nn.BatchNorm2d):
    """`SplitBatchNorm1d` for maps [images, channels, height, width].

    Args:
        num_features: Channels.
        groups: Sub-batches of equal size, >= 1; 1 is plain batch norm.
        options: Those of torch.nn.BatchNorm2d.

    Raises:
        RangeError: If groups is below 1.
        ShapeError: At a forward in train mode, if the images cannot be split into groups of equal size.
    """

    def __init__(self, num_features: int, *, groups: int, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.groups = at_least_one_group(groups)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 -- torch's name
        self._check_input_dim(input)
        return _split(self, input, self.groups) if self.training else super().forward(input)


def encode_shuffled(
    encode: Callable[[Tensor], Rows],
    images: Tensor,
    *,
    permutation: Tensor | None = None,
    generator: torch.Generator | None = None,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Rows:
    r"""Encode images in a permuted order, so that batch norm has other groups; the order of rows is restored.

    .. math:: k_{\pi(j)} = f(x_{\pi(1)}, \dots, x_{\pi(B)})_j

    A query and its key in the same batch norm group share its statistics, by which they can be recognised as
    a pair. Groups are the rows of a process, or the sub-batches of split batch norm on one device. With
    batch norm over the complete batch of a single process, the order changes only rounding.

    Over several processes the images of all of them are gathered, each encodes its slice of the
    permutation, and the rows are gathered. The permutation must be the same on all.

    Args:
        encode: Images to rows [images, dim]; gradient flows through, over processes too.
        images: [images, channels, height, width]: this process's slice of a batch.
        permutation: Of 0 to the number of images of all processes, less 1.
        generator: Draws the permutation, if none is given; seeded by the caller by seed and step.
        processes: Over which the batch is sliced.

    Returns:
        [images of all processes, dim]; row i is that of image i.

    Raises:
        ConfigError: If neither a permutation nor a generator is given, or both.
        ShapeError: If the permutation has another length, or the images are not this process's slice.
        RangeError: If it is not a permutation.

    Example:
        >>> images = torch.arange(4.0).view(4, 1)
        >>> encode_shuffled(lambda some: some - some[:2].mean(), images,
        ...                 permutation=torch.tensor([3, 1, 0, 2])).T.tolist()
        [[-2.0, -1.0, 0.0, 1.0]]

    Source:
        He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2019,
        arXiv:1911.05722, section 3.3.
    """
    if (permutation is None) == (generator is None):
        raise ConfigError("shuffled keys need a permutation or a generator to draw one from, not both")
    if permutation is None:
        assert generator is not None
        permutation = torch.randperm(processes.total(images), generator=generator, device=generator.device)
    total = len(images) if processes.world_size == 1 else len(permutation)
    keys = encode(shuffled(images, permutation, processes))
    return in_order(processes.all_gather_with_grad(keys, total), permutation)


def shuffled(images: Tensor, permutation: Tensor, processes: ProcessGroup = SINGLE_PROCESS) -> Tensor:
    """This process's slice of the permuted batch: the first half of `encode_shuffled`.

    Args:
        images: [images, channels, height, width]: this process's slice of the batch.
        permutation: Of 0 to the number of images of all processes, less 1.
        processes: Their images are gathered.

    Returns:
        The images that this process encodes.

    Raises:
        ShapeError: If the permutation has another length than the batch.
        RangeError: If it is not a permutation.
    """
    total = len(images) if processes.world_size == 1 else len(permutation)
    _require_permutation(permutation, total)
    order = permutation.to(images.device)
    if processes.world_size == 1:
        return images[order]
    gathered = processes.all_gather_with_grad(images, total)
    return gathered[order[processes.local_slice(total)]]


def in_order(rows: Rows, permutation: Tensor) -> Rows:
    """Undo the permutation: the second half of `encode_shuffled`.

    Args:
        rows: Of all processes, in the order of the permutation [images, dim].
        permutation: As given to `shuffled`.

    Returns:
        [images, dim]; row i is that of image i.
    """
    return rows[permutation.to(rows.device).argsort()]


def spread_order(rows: int, *, groups: int, generator: torch.Generator) -> Tensor:
    """A permutation that spreads each group of consecutive rows evenly over all groups.

    In a random permutation some rows of a group are again in one group, whose statistics resemble those of
    the old group: a part of the leak remains. Here each new group has equally many rows of every old one, to
    within one, chosen at random.

    Args:
        rows: Of a batch.
        groups: Of equal size.
        generator: Seeded by the caller by seed and step.

    Returns:
        Numbers 0 to rows - 1 [rows], for `encode_shuffled`.

    Raises:
        ShapeError: If rows cannot be split into groups of equal size.

    Example:
        >>> order = spread_order(8, groups=2, generator=torch.Generator().manual_seed(0))
        >>> [sorted((half // 4).tolist()) for half in order.chunk(2)]
        [[0, 0, 1, 1], [0, 0, 1, 1]]

    Source:
        Ours; He et al. 2019 draw a random permutation.
    """
    if groups < 1 or rows % groups:
        raise ShapeError(f"{rows} rows do not make {groups} groups of one size; take a multiple of {groups}")
    drawn = torch.rand(groups, rows // groups, generator=generator).argsort(dim=1)
    within = drawn + torch.arange(groups)[:, None] * (rows // groups)
    return within[torch.randperm(groups, generator=generator)].T.reshape(-1)


def key_order(
    norm: str, *, groups: int, world_size: int
) -> Callable[[int, torch.Generator], Tensor | None] | None:
    """The function that draws the permutation of a step, for a kind of batch norm.

    Args:
        norm: "device", "split", "global" or "layer".
        groups: Of split batch norm.
        world_size: Number of processes.

    Returns:
        (rows, generator) to a permutation; None if the order of the keys has no effect, so that no
        images are sent to other processes.
    """
    if world_size > 1 and norm in ("global", "layer"):
        return None

    def draw(rows: int, generator: torch.Generator) -> Tensor:
        if norm == "split":
            return spread_order(rows, groups=groups, generator=generator)
        if world_size > 1 and rows % world_size == 0:  # each process is a group
            return spread_order(rows, groups=world_size, generator=generator)
        return torch.randperm(rows, generator=generator)

    return draw


def _require_permutation(permutation: Tensor, total: int) -> None:
    if permutation.shape != (total,):
        raise ShapeError(
            f"the permutation has shape {list(permutation.shape)} for {total} images; one entry for each "
            "image of all processes is needed"
        )
    if not torch.equal(permutation.sort().values, torch.arange(total, device=permutation.device)):
        raise RangeError(
            f"what was given as a permutation of {total} images does not have each of 0 to {total - 1} once"
        )


def at_least_one_group(groups: int) -> int:
    """The number of groups.

    Raises:
        RangeError: If it is below 1.
    """
    if groups < 1:
        raise RangeError(f"groups of split batch norm must be >= 1, got {groups}")
    return groups
