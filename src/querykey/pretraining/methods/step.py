"""Rows that an encoder makes in the mode it is in, without a step of its own being lost."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.errors import CollapseError
from querykey.lookup.lookup import Lookup
from querykey.pretraining.chunked.gradient_cache import cached_backward, checkpointed_blocks
from querykey.types import Ids, Labels, PerQuery, Rows

__all__ = [
    "Computing",
    "Seen",
    "ViewPair",
    "ViewStep",
    "all_reduce_and_step",
    "backward",
    "encode_preserving_buffers",
    "mean_of_own",
    "projections",
    "require_finite",
    "sharded_mean_loss",
    "without_gradient",
]

_OWN_STATISTICS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def all_reduce_and_step(
    optimizer: torch.optim.Optimizer, encoders: Sequence[nn.Module], processes: ProcessGroup
) -> None:
    """Sum the gradients over the processes, average running statistics, and take the step.

    Each process has the gradients of its own part of the loss; their sum is the gradient of the loss. They
    are summed once, when all backward passes of the step are through. DistributedDataParallel sums them
    from hooks while one backward runs: it knows no step of two directions and no second pass over a
    chunk, and it takes the mean, for a loss that each process has to itself.

    Batch norm of kind "device" has moved its running statistics by those of the process's own rows.
    Moving is linear, so that the mean over the processes is what split batch norm would have, and
    the state of one process is that of all.

    Args:
        optimizer: Of parameters with this process's gradients, which are the sum afterwards.
        encoders: What has encoded in this step.
        processes: One alone steps as it is.
    """
    if processes.world_size > 1:
        processes.sum_gradients_(optimizer)
        _average_(_own_statistics(encoders), processes)
    optimizer.step()


@torch.no_grad()
def _average_(kept: Sequence[Tensor], processes: ProcessGroup) -> None:
    if not kept:
        return
    mean = processes.sum_(torch.cat(list(kept))) / processes.world_size
    for running, of_all in zip(kept, torch.split(mean, [len(one) for one in kept]), strict=True):
        running.copy_(of_all)


def _own_statistics(encoders: Sequence[nn.Module]) -> list[Tensor]:
    """Running means and variances that this process alone has moved, each once."""
    norms = {
        id(module): module
        for encoder in encoders
        for module in encoder.modules()
        if isinstance(module, _OWN_STATISTICS) and module.training
    }
    running = [value for norm in norms.values() for value in (norm.running_mean, norm.running_var)]
    return [value for value in running if value is not None]


Seen = Callable[[Lookup], None]
"""Observer callback: gets the detached `Lookup` of a step's loss, before anything changes."""


class ViewPair(NamedTuple):
    """Two views of a batch of images; of a method that needs one view, the same twice.

    The views are of this process's part of the batch, ids and labels of all of it.
    """

    view_1: Tensor
    view_2: Tensor
    ids: Ids
    """Places of the images among those trained on: an item's number in every dictionary."""
    labels: Labels | None
    seconds: float
    """That decoding and augmentation took."""


@dataclass(frozen=True, eq=False)
class ViewStep:
    """What a step leaves for the monitors.

    Args:
        loss: Mean over the queries.
        view_1: The queries [images, dim], as they were looked up, without gradient.
        view_2: Row by row the key that each of them should find.
    """

    loss: float
    view_1: Rows
    view_2: Rows


@dataclass(frozen=True, kw_only=True)
class Computing:
    """How an encoder is run in a step; the loss and the gradient are the same but for rounding.

    With batch norm of kind "device" each process has statistics of its own, as if split over so many groups.

    Args:
        precision: Of its forward pass; z and the loss are float32 at least.
        chunks: Parts in which the batch is encoded.
        checkpointing: Whether a part's activations are computed again backward instead of kept.
        normalised: Whether z is scaled to length 1.
        processes: Among which a batch is parted: a step is given this process's part of the views, and ids
            and labels of the whole batch. What it leaves, weights, dictionary and loss, is the same on all.
    """

    precision: torch.dtype = torch.float32
    chunks: int = 1
    checkpointing: bool = False
    normalised: bool = True
    processes: ProcessGroup = SINGLE_PROCESS

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which an encoder runs forward."""
        return torch.autocast(device.type, dtype=self.precision, enabled=self.precision != torch.float32)


def projections(z: Tensor, *, normalised: bool) -> Rows:
    """Convert z to float32 and, if `normalised`, L2-normalise its rows.

    Args:
        z: Of an encoder [rows, dim].
        normalised: Whether rows are scaled to length 1.

    Returns:
        [rows, dim] in float32 at least.
    """
    z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
    return F.normalize(z, dim=1) if normalised else z


def backward(
    encoder: nn.Module, images: Tensor, loss_of_z: Callable[[Rows], Tensor], computing: Computing
) -> float:
    """Encode a batch and add the gradients of its loss.

    Args:
        encoder: images -> (h, z), in train mode.
        images: [images, channels, height, width].
        loss_of_z: Maps the projections to a scalar loss. With several processes it returns this rank's
            share; the total is the sum over ranks. Called once.
        computing: How.

    Returns:
        The loss, of all processes. The gradients are this one's, of its own part.

    Raises:
        CollapseError: If the loss is not finite; no gradient is added.
    """
    value = 0.0

    def of_z(z: Tensor) -> Tensor:
        nonlocal value
        with torch.autocast(images.device.type, enabled=False):  # the encoder's precision is not the loss's
            loss = loss_of_z(projections(z, normalised=computing.normalised))
            value = require_finite(loss, computing.processes)
        return loss

    if computing.chunks > 1:
        with computing.autocast(images.device):
            cached_backward(
                encoder, images.chunk(computing.chunks), of_z, checkpoint_blocks=computing.checkpointing
            )
        return value
    with checkpointed_blocks(encoder) if computing.checkpointing else nullcontext():
        with computing.autocast(images.device):
            _, z = encoder(images)
        of_z(z).backward()  # type: ignore[no-untyped-call]
    return value


def require_finite(loss: Tensor, processes: ProcessGroup = SINGLE_PROCESS) -> float:
    """The loss, before it reaches any weight.

    Args:
        loss: One number: this process's part.
        processes: Whose parts add up to the loss.

    Returns:
        The sum, the same on all.

    Raises:
        CollapseError: If it is not finite, on all processes.
    """
    value = float(processes.sum(loss))
    if not math.isfinite(value):
        raise CollapseError(f"the loss is {value}; lower the learning rate or raise the temperature")
    return value


def mean_of_own(
    loss: Callable[[Lookup], PerQuery], lookup: Lookup, processes: ProcessGroup, *, views: int = 1
) -> Tensor:
    """This process's part of the mean over the queries; the parts of all processes add up to it.

    Args:
        loss: On a look-up, of each query by itself.
        lookup: Of the queries of all processes, in all keys or in this process's share of them.
        processes: Among which they are parted.
        views: Parts of one size that the queries consist of, each parted among the processes.

    Returns:
        The sum of losses of this rank's queries (or of all queries over this rank's key shard), divided by
        the global number of queries; on one process the mean.
    """
    if processes.world_size == 1 or lookup.shard_group.world_size > 1:
        return loss(lookup).mean()
    rows = len(lookup) // views
    own = processes.local_slice(rows)
    firsts = range(0, len(lookup), rows)
    parts = [loss(lookup.rows(first + own.start, first + own.stop)).sum() for first in firsts]
    return torch.stack(parts).sum() / len(lookup)


def sharded_mean_loss(loss: Callable[[Lookup], PerQuery], lookup: Lookup, processes: ProcessGroup) -> Tensor:
    r"""`mean_of_own` of InfoNCE whose negatives are sharded over the processes.

    Each process looks the queries of all up in their own key and in the negatives that it holds. With
    :math:`\ell_r` what that costs, the look-up in all of them costs

    .. math:: \ell = \log \Big(1 + \sum_r (e^{\ell_r} - 1)\Big)

    for :math:`e^{\ell_r} - 1` is the sum over the process's negatives of what each adds to the own key's 1.

    Args:
        loss: InfoNCE.
        lookup: Of the queries of all processes; the own key is each one's only positive.
        processes: Over which the negatives are sharded.

    Returns:
        The sum over the own queries, over the number of all.
    """
    cost = loss(lookup)
    every = processes.all_gather_with_grad(
        cost.double()[None], processes.world_size
    )  # float64 bears logits of some hundreds
    whole = every[:, processes.local_slice(len(lookup))].expm1().sum(dim=0).log1p()
    return (whole.sum() / len(lookup)).to(cost.dtype)


def without_gradient(lookup: Lookup) -> Lookup:
    """A detached copy of a look-up, for monitoring.

    Args:
        lookup: Any.

    Returns:
        With queries and keys that carry no gradient.
    """
    queries, keys = lookup.queries.detach(), lookup.keys.detach()
    return Lookup(queries, keys, lookup.pairs, lookup.score, shard_group=lookup.shard_group)


Classes = TypeVar("Classes")


def encode_preserving_buffers(
    encoder: nn.Module, batches: Iterable[tuple[Tensor, Ids, Classes]], computing: Computing
) -> Iterator[tuple[Rows, Ids, Classes]]:
    """Encode batches without gradient, in the mode the encoder is in, and put its buffers back.

    Within a training that is train mode: rows that steps make have batch statistics, and these should
    be like them. The running statistics of batch norm do not move.

    Args:
        encoder: images -> (h, z).
        batches: (views [images, channels, height, width], ids, classes), the views of this process's part of
            a batch, ids and classes of all of it.
        computing: How it is run; chunks and checkpointing make no difference.

    Yields:
        (rows as they are looked up [images of all processes, dim], ids, classes).
    """
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    try:
        for view, ids, classes in batches:
            with torch.no_grad(), computing.autocast(view.device):
                _, z = encoder(view)
            rows = projections(z, normalised=computing.normalised)
            yield computing.processes.all_gather_with_grad(rows, len(ids)), ids, classes
    finally:
        with torch.no_grad():
            for name, buffer in encoder.named_buffers():
                buffer.copy_(before[name])
