"""What the training steps share: the step context, a batch of views, encoding and the mean loss."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.encoders.norm.split import in_order, shuffled
from querykey.errors import CollapseError
from querykey.lookup.lookup import Lookup
from querykey.losses.by_name import ViewLoss
from querykey.pretraining.chunked.gradient_cache import ChunkedForward, checkpointed_blocks
from querykey.types import Ids, Labels, PerQuery, Rows

__all__ = [
    "Encoded",
    "KeyOrder",
    "OnLookup",
    "StepContext",
    "StepOutput",
    "ViewPair",
    "all_reduce_and_step",
    "encode_preserving_buffers",
    "local_mean_loss",
    "projections",
    "require_finite",
    "sharded_mean_loss",
    "without_gradient",
]

OnLookup = Callable[[Lookup], None]
"""A hook that gets each lookup of a step, without gradient, before weights or dictionary change."""

KeyOrder = Callable[[int, torch.Generator], Tensor | None]
"""(rows of the batch, generator) to the permutation in which keys are encoded; None: in their order."""

_LOCAL_STATISTICS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class ViewPair(NamedTuple):
    """Two views of a batch of images; for a method that needs one view, the same view twice.

    Args:
        view_1: This process's slice of the first views [local images, channels, height, width]; for
            `end_to_end_step` whatever the query encoder takes.
        view_2: The second views, likewise.
        ids: Index of each image of the whole batch among the training images [images].
        labels: Class of each image of the whole batch, -1 where unknown; None without labels.
        seconds: Time that decoding and augmentation took.
    """

    view_1: Any
    view_2: Any
    ids: Ids
    labels: Labels | None = None
    seconds: float = 0.0

    @property
    def swapped(self) -> "ViewPair":
        """The same batch with the views in the other order."""
        return self._replace(view_1=self.view_2, view_2=self.view_1)


@dataclass(frozen=True, eq=False)
class StepOutput:
    """The result of a training step.

    Args:
        loss: Mean over the queries, before the step.
        view_1: The queries [images, dim], without gradient.
        view_2: Row by row the key that each query should find, without gradient.
    """

    loss: float
    view_1: Rows
    view_2: Rows


@dataclass(eq=False)
class Encoded:
    """Encoded images and, in chunks, what is needed to recompute them in the backward pass.

    Args:
        rows: This process's rows as they are looked up [local images, dim], with gradient.
        chunked: The forward pass in chunks; None: the graph holds all activations.
    """

    rows: Rows
    chunked: ChunkedForward | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class StepContext:
    """Everything that the steps of a run have in common; built once a run.

    The precision, the chunks and checkpointing change loss and gradient by rounding only. With batch norm of
    kind "device" each process has its own statistics, like split batch norm with one group a process.

    Args:
        loss: Function of a `Lookup`, one number a query; see `view_objective`.
        precision: Of the encoder's forward pass; projections and loss are float32 at least.
        chunks: Number of chunks in which the queries are encoded.
        checkpointing: Whether activations are recomputed in the backward pass instead of stored.
        normalised: Whether projections are scaled to length 1.
        process_group: Each process gets its slice of the views, and ids and labels of the whole batch.
            Weights, dictionary and loss are the same on all processes afterwards.
        generator: For random draws of a step; seed it by the number of the step.
        key_order: Permutation for shuffled batch norm; None: keys are encoded in their order.
        on_lookup: Called with each lookup of a step; None: not called.
    """

    loss: ViewLoss
    precision: torch.dtype = torch.float32
    chunks: int = 1
    checkpointing: bool = False
    normalised: bool = True
    process_group: ProcessGroup = SINGLE_PROCESS
    generator: torch.Generator = field(default_factory=torch.Generator)
    key_order: KeyOrder | None = None
    on_lookup: OnLookup | None = None

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context manager for the encoder's forward pass."""
        return torch.autocast(device.type, dtype=self.precision, enabled=self.precision != torch.float32)

    def encode(self, encoder: nn.Module, images: Tensor) -> Encoded:
        """Encode queries with gradient; call `backward` with the loss afterwards.

        Args:
            encoder: images -> (h, z), in train mode.
            images: This process's images [local images, channels, height, width].

        Returns:
            Rows as they are looked up, on this process.
        """
        if self.chunks > 1:
            with self.autocast(images.device):
                chunks = images.chunk(self.chunks)
                chunked = ChunkedForward(encoder, chunks, checkpoint_blocks=self.checkpointing)
            return Encoded(projections(chunked.z, normalised=self.normalised), chunked)
        checkpointed = checkpointed_blocks(encoder) if self.checkpointing else nullcontext()
        with checkpointed, self.autocast(images.device):
            _, z = encoder(images)
        return Encoded(projections(z, normalised=self.normalised))

    def backward(self, loss: Tensor, encoded: Encoded) -> float:
        """Add the gradients of a loss.

        Args:
            loss: This process's part of the loss, which is the sum over the processes.
            encoded: Of `encode`; the loss depends on its rows.

        Returns:
            The loss of all processes. The gradients are those of this process's part.

        Raises:
            CollapseError: If the loss is not finite; no gradient is added.
        """
        value = require_finite(loss, self.process_group)
        loss.backward()  # type: ignore[no-untyped-call]
        chunked, encoded.chunked = encoded.chunked, None  # frees what it holds before the next encode
        if chunked is not None:
            with self.autocast(encoded.rows.device):
                chunked.backward()
        return value

    def encode_keys(self, key_encoder: nn.Module, images: Tensor, order: Tensor | None, rows: int) -> Rows:
        """Encode keys without gradient, all at once; in train mode running statistics move.

        Args:
            key_encoder: images -> (h, z).
            images: This process's images [local images, channels, height, width].
            order: Permutation of the whole batch in which they are encoded; None: in their order.
            rows: Images of all processes.

        Returns:
            [rows, dim] in float32 at least; row i is the key of image i.
        """
        images = images if order is None else shuffled(images, order, self.process_group)
        with torch.no_grad(), self.autocast(images.device):
            _, z = key_encoder(images)
        keys = self.gather(projections(z, normalised=self.normalised), rows)
        return keys if order is None else in_order(keys, order)

    def draw_key_order(self, rows: int) -> Tensor | None:
        """The permutation in which the keys of this step are encoded; None: in their order."""
        return None if self.key_order is None else self.key_order(rows, self.generator)

    def gather(self, local: Rows, rows: int) -> Rows:
        """The rows of all processes, with gradient; on a single process the rows themselves."""
        if self.process_group.world_size == 1:
            return local
        return self.process_group.all_gather_with_grad(local, rows)

    def mean_loss(
        self, lookup: Lookup, *, views: int = 1, is_sharded: bool = False, is_shown: bool = True
    ) -> Tensor:
        """This process's part of the mean loss over the queries.

        Args:
            lookup: Of the queries of all processes.
            views: Number of views that the queries consist of, of equal size.
            is_sharded: Whether the lookup holds this process's shard of the negatives only.
            is_shown: Whether `on_lookup` gets this lookup.

        Returns:
            One number; the parts of all processes add up to the mean.
        """
        if self.on_lookup is not None and is_shown:
            self.on_lookup(without_gradient(lookup))
        group = self.process_group
        with torch.autocast(lookup.queries.device.type, enabled=False):  # whatever the encoder ran in
            if group.world_size == 1:
                return self.loss(lookup).mean()
            if is_sharded:
                return sharded_mean_loss(self.loss, lookup, group)
            return local_mean_loss(self.loss, lookup, group, views=views)

    def optimizer_step(self, optimizer: torch.optim.Optimizer, *encoders: nn.Module) -> None:
        """Sum the gradients over the processes and take the optimizer's step."""
        all_reduce_and_step(optimizer, encoders, self.process_group)


def all_reduce_and_step(
    optimizer: torch.optim.Optimizer, encoders: Sequence[nn.Module], processes: ProcessGroup
) -> None:
    """Sum the gradients over the processes, average running statistics, and take the step.

    Each process has the gradients of its own part of the loss; their sum is the gradient of the loss. They
    are summed once, after all backward passes of the step. DistributedDataParallel is of no use here: it sums
    in hooks of a single backward pass, and a step may have two directions or several passes over a chunk;
    and it averages, which suits a loss that each process computes on its own.

    Batch norm of kind "device" has moved its running statistics by those of the process's own rows. The
    update is linear, so the mean over the processes is what split batch norm would have, and the state is the
    same on all processes.

    Args:
        optimizer: Its parameters have this process's gradients, and the sum afterwards.
        encoders: Modules that encoded in this step.
        processes: With a single process only the step is taken.
    """
    if processes.world_size > 1:
        processes.sum_gradients_(optimizer)
        _average_(_local_statistics(encoders), processes)
    optimizer.step()


@torch.no_grad()
def _average_(statistics: Sequence[Tensor], processes: ProcessGroup) -> None:
    if not statistics:
        return
    mean = processes.sum_(torch.cat(list(statistics))) / processes.world_size
    for running, value in zip(statistics, torch.split(mean, [len(one) for one in statistics]), strict=True):
        running.copy_(value)


def _local_statistics(encoders: Sequence[nn.Module]) -> list[Tensor]:
    """Running means and variances that only this process has moved, each once."""
    norms = {
        id(module): module
        for encoder in encoders
        for module in encoder.modules()
        if isinstance(module, _LOCAL_STATISTICS) and module.training
    }
    running = [value for norm in norms.values() for value in (norm.running_mean, norm.running_var)]
    return [value for value in running if value is not None]


def projections(z: Tensor, *, normalised: bool) -> Rows:
    """Projections as they are looked up.

    Args:
        z: Output of an encoder [rows, dim].
        normalised: Whether rows are scaled to length 1.

    Returns:
        [rows, dim] in float32 at least.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
        return F.normalize(z, dim=1) if normalised else z


def require_finite(loss: Tensor, processes: ProcessGroup = SINGLE_PROCESS) -> float:
    """Check the loss before any gradient is computed.

    Args:
        loss: This process's part, one number.
        processes: Their parts add up to the loss.

    Returns:
        The sum, the same on all processes.

    Raises:
        CollapseError: If it is not finite, on all processes.
    """
    value = float(loss.detach() if processes.world_size == 1 else processes.sum(loss))
    if not math.isfinite(value):
        raise CollapseError(f"the loss is {value}; lower the learning rate or raise the temperature")
    return value


def local_mean_loss(
    loss: Callable[[Lookup], PerQuery], lookup: Lookup, processes: ProcessGroup, *, views: int = 1
) -> Tensor:
    """This process's part of the mean over the queries; the parts of all processes add up to it.

    Args:
        loss: Function of a lookup, one number a query.
        lookup: Of the queries of all processes, among all keys or this process's shard of them.
        processes: Each takes its slice of the queries.
        views: Number of views that the queries consist of, each sliced over the processes.

    Returns:
        The sum over the local queries, or over all queries in the local shard of keys, divided by the number
        of all queries; on a single process the mean.
    """
    if processes.world_size == 1 or lookup.shard_group.world_size > 1:
        return loss(lookup).mean()
    rows = len(lookup) // views
    local = processes.local_slice(rows)
    starts = range(0, len(lookup), rows)
    parts = [loss(lookup.rows(start + local.start, start + local.stop)).sum() for start in starts]
    return torch.stack(parts).sum() / len(lookup)


def sharded_mean_loss(loss: Callable[[Lookup], PerQuery], lookup: Lookup, processes: ProcessGroup) -> Tensor:
    r"""`local_mean_loss` of InfoNCE whose negatives are sharded over the processes.

    Each process looks the queries of all processes up among their own key and its shard of the negatives.
    With :math:`\ell_r` the loss in shard *r*, the loss over all negatives is

    .. math:: \ell = \log \Big(1 + \sum_r (e^{\ell_r} - 1)\Big)

    because :math:`e^{\ell_r} - 1` is the sum of the negatives of shard *r*, relative to the own key's term.

    Args:
        loss: InfoNCE.
        lookup: Of the queries of all processes; the own key is the only positive of each.
        processes: Over which the negatives are sharded.

    Returns:
        The sum over the local queries, divided by the number of all queries.
    """
    cost = loss(lookup)
    # in float64: e^l of logits of some hundreds would overflow float32
    gathered = processes.all_gather_with_grad(cost.double()[None], processes.world_size)
    total = gathered[:, processes.local_slice(len(lookup))].expm1().sum(dim=0).log1p()
    return (total.sum() / len(lookup)).to(cost.dtype)


def without_gradient(lookup: Lookup) -> Lookup:
    """The same lookup with detached queries and keys.

    Args:
        lookup: Any.

    Returns:
        A lookup for metrics.
    """
    queries, keys = lookup.queries.detach(), lookup.keys.detach()
    return Lookup(queries, keys, lookup.pairs, lookup.score, shard_group=lookup.shard_group)


Classes = TypeVar("Classes")


def encode_preserving_buffers(
    encoder: nn.Module, batches: Iterable[tuple[Tensor, Ids, Classes]], context: StepContext
) -> Iterator[tuple[Rows, Ids, Classes]]:
    """Encode batches without gradient, in the encoder's current mode, and restore its buffers.

    During training that is train mode: rows made by steps use batch statistics, and these rows should
    resemble them. The running statistics of batch norm do not move.

    Args:
        encoder: images -> (h, z).
        batches: (views [images, channels, height, width] of this process, ids and classes of the whole
            batch).
        context: Precision, normalisation and processes; chunks and checkpointing are not used.

    Yields:
        (rows as they are looked up [images of all processes, dim], ids, classes).
    """
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    try:
        for view, ids, classes in batches:
            yield context.encode_keys(encoder, view, None, len(ids)), ids, classes
    finally:
        with torch.no_grad():
            for name, buffer in encoder.named_buffers():
                buffer.copy_(before[name])
