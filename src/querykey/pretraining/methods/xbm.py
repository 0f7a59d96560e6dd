"""One step with a cross-batch memory of projections, for an encoder that is trained on labels."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from querykey.dictionaries.alignment import MomentAlignment
from querykey.dictionaries.cross_batch import CrossBatchMemory
from querykey.errors import RangeError, ShapeError
from querykey.lookup.lookup import Lookup, PairRule, look_up
from querykey.pretraining.methods.step import (
    Computing,
    Seen,
    ViewStep,
    all_reduce_and_step,
    backward,
    encode_preserving_buffers,
    mean_of_own,
    without_gradient,
)
from querykey.types import Ids, Labels, PerQuery, Rows

__all__ = ["prefill", "xbm_step"]

XBM_RULE = PairRule(positive="label", same_id="masked")
OLDER = -1
"""The id under which rows of earlier steps are looked up: their class alone counts."""


def xbm_step(
    encoder: nn.Module,
    optimizer: torch.optim.Optimizer,
    memory: CrossBatchMemory,
    view: Tensor,
    *,
    ids: Ids,
    labels: Labels,
    loss: Callable[[Lookup], PerQuery],
    is_warm: bool,
    weight: float = 1.0,
    align: MomentAlignment | None = None,
    computing: Computing | None = None,
    seen: Seen | None = None,
) -> ViewStep:
    r"""Encode, enqueue, look up in the batch and in the memory, loss, backward, step.

    The loss is the batch's plus `weight` times the memory's. The batch is in the memory before the
    loss is computed, so its own pairs count there too. Gradient goes to the batch's rows alone.

    Rows of one class are positive. A query's own row, which is in the batch and by then in the memory
    too, is neither; nor is another row of its item in this batch. A row of its item from an earlier
    step is a row of its class like any other, and positive: it is another look at it.

    Args:
        encoder: images -> (h, z), in train mode.
        optimizer: Of the encoder's parameters, and of a learned temperature.
        memory: Of projections, at least as large as the batch.
        view: One view of the batch [images, channels, height, width].
        ids: Which items they show [images].
        labels: Their classes; -1 where not known: such a row is neither positive nor negative.
        loss: On a look-up; any of `querykey.losses` that takes one. Where the memory is sharded over
            processes, one that merges shares: `contrastive`.
        is_warm: False leaves the memory as it is and out of the loss: the first steps move the encoder
            too fast for its rows to last. The authors wait 1,000 steps, then `prefill`.
        weight: Of the memory's loss, >= 0; 1 is the authors'.
        align: Moves the rows that are held to the moments of this batch before it is enqueued; None
            leaves them as they were written.
        computing: How the encoder is run.
        seen: Shown the look-up in the memory, or in the batch while that is not warm.

    Returns:
        The loss before the step, each part a mean over the queries; z; and for each row another row
        of its class in the batch, itself where there is none.

    Raises:
        CollapseError: If the loss is not finite; the weights are left as they were, and the memory
            holds the batch.
        ShapeError: If the batch has more rows than the memory holds.
        RangeError: If weight is negative.

    Source:
        Wang et al. 2020, arXiv:1912.06798, algorithm 1. There a key counts as the query's own if its score
        is 1 to within 1e-5; here by its item and step, whatever the score.
    """
    if not 0.0 <= weight < float("inf"):
        raise RangeError(f"weight of the memory's loss must be >= 0 and finite, got {weight}; 1 is usual")
    if len(ids) > memory.capacity:
        raise ShapeError(
            f"a batch of {len(ids)} does not fit a memory of {memory.capacity}; "
            "raise the capacity or lower the batch size"
        )
    computing = computing or Computing()
    processes = computing.processes
    found: dict[str, Rows] = {}

    def loss_of_z(own: Rows) -> Tensor:
        z = processes.all_gather_with_grad(own, len(ids))
        found["z"] = z.detach()
        parts = [_in_batch(z, ids, labels)]
        if is_warm:
            if align is not None:
                align.align_(memory.read().vectors, z.detach(), memory.processes)
            memory.enqueue(z.detach(), ids, labels)
            parts.append(_in_memory(z, ids, labels, memory))
        if seen is not None:
            seen(without_gradient(parts[-1]))
        costs = [mean_of_own(loss, part, processes) for part in parts]
        return costs[0] + weight * costs[1] if is_warm else costs[0]

    optimizer.zero_grad()
    value = backward(encoder, view, loss_of_z, computing)
    all_reduce_and_step(optimizer, [encoder], processes)
    return ViewStep(value, found["z"], found["z"][_partners(labels)])


def prefill(
    encoder: nn.Module,
    memory: CrossBatchMemory,
    batches: Iterable[tuple[Tensor, Ids, Labels]],
    *,
    computing: Computing | None = None,
) -> int:
    """Fill a memory with what the encoder makes of some images, without training it.

    For the moment a memory is switched on: it is full at once, of rows of one encoder. The encoder runs
    in the mode it is in, train mode within a training: rows of later steps are made by batch
    statistics, and these should be like them. Its buffers, as the running statistics of batch norm,
    are put back afterwards.

    Args:
        encoder: images -> (h, z).
        memory: Of projections.
        batches: Views [images, channels, height, width], ids and labels [images], drawn at random; read
            until the memory is full.
        computing: How the encoder is run; chunks and checkpointing make no difference here.

    Returns:
        How many rows were put in.

    Raises:
        ShapeError: If a batch has more rows than the memory holds.

    Source:
        Wang et al. 2020, arXiv:1912.06798, section 3.2: after the warm-up the memory begins with features
        of randomly sampled training images under the warm model. The paper does not say in which mode.
    """
    count = 0
    for rows, ids, labels in encode_preserving_buffers(encoder, batches, computing or Computing()):
        memory.enqueue(rows, ids, labels)
        count += len(ids)
        if len(memory) == memory.capacity:
            break
    return count


def _in_batch(z: Rows, ids: Ids, labels: Labels) -> Lookup:
    return look_up(
        z, z, query_ids=ids, key_ids=ids, query_labels=labels, key_labels=labels, rule=XBM_RULE
    )  # fmt: skip


def _in_memory(z: Rows, ids: Ids, labels: Labels, memory: CrossBatchMemory) -> Lookup:
    held, shard_group = memory.read(), memory.processes
    is_new = memory.age()[shard_group.rank :: shard_group.world_size] == 0
    return look_up(
        z, held.vectors, query_ids=ids, key_ids=held.ids.where(is_new, OLDER),
        query_labels=labels, key_labels=held.labels, rule=XBM_RULE, shard_group=shard_group,
    )  # fmt: skip


def _partners(labels: Labels) -> Ids:
    """For each row the place of the first other row of its class; its own where there is none."""
    own = torch.arange(len(labels), device=labels.device)
    other = (labels[:, None] == labels[None, :]) & (labels >= 0)[:, None] & (own[:, None] != own[None, :])
    return own.where(~other.any(dim=1), other.to(torch.uint8).argmax(dim=1))
