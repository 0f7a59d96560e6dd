"""A step of XBM: an encoder is trained on labels with a cross-batch memory of projections."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from querykey.dictionaries.alignment import MomentAlignment
from querykey.dictionaries.cross_batch import CrossBatchMemory
from querykey.dictionaries.protocol import MemoryRows
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.errors import RangeError, ShapeError
from querykey.lookup.lookup import IGNORE_ID, Lookup, PairRule, look_up
from querykey.pretraining.methods.step import (
    StepContext,
    StepOutput,
    ViewPair,
    encode_preserving_buffers,
)
from querykey.types import Ids, Labels, Rows

__all__ = ["XBM", "prefill", "xbm_step"]

XBM_RULE = PairRule(positive="label", same_id="masked")


@dataclass(frozen=True, eq=False)
class XBM:
    """The modules and constants of a run with a cross-batch memory of projections.

    Args:
        encoder: images -> (h, z), in train mode.
        memory: Memory of projections, at least as large as the batch. If it is sharded over processes, the
            loss must be one that merges shards: `contrastive`.
        optimizer: Optimizer of the encoder's parameters, and of a learned temperature.
        weight: Weight of the loss over the memory, >= 0; 1 is the authors'.
        align: Moves the stored rows to the moments of the batch before the batch is enqueued; None: they are
            not changed.

    Raises:
        RangeError: If weight is negative or not finite.
    """

    encoder: nn.Module
    memory: CrossBatchMemory
    optimizer: torch.optim.Optimizer
    weight: float = 1.0
    align: MomentAlignment | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight < float("inf"):
            raise RangeError(
                f"weight of the memory's loss must be >= 0 and finite, got {self.weight}; 1 is usual"
            )


def xbm_step(xbm: XBM, batch: ViewPair, context: StepContext, is_warm: bool) -> StepOutput:
    r"""Encode, enqueue, look up in the batch and in the memory, loss, backward, optimizer step.

    The loss is the batch's plus `weight` times the memory's. The batch is enqueued before the loss is
    computed, so its own pairs count there too. Only the rows of the batch have a gradient.

    Rows of one class are positive. A query's own row, which is in the batch and by then in the memory
    too, is neither; nor is another row of its item in this batch. A row of its item from an earlier
    step is positive like any other row of its class: it is another view of the item.

    Args:
        xbm: Encoder, memory and optimizer.
        batch: The first view and the labels are used; a row with label -1 is neither positive nor negative.
        context: Loss, precision, processes.
        is_warm: If False, the memory is not used and not changed: in the first steps the encoder changes too
            fast for stored rows. The authors wait 1,000 steps, then `prefill`.

    Returns:
        The loss before the step, each part a mean over the queries; z; and for each row another row
        of its class in the batch, itself if there is none.

    Raises:
        CollapseError: If the loss is not finite; the weights are unchanged, and the memory contains the
            batch.
        ShapeError: If the batch has more rows than the memory has slots.

    Source:
        Wang et al. 2020, arXiv:1912.06798, algorithm 1. There a key counts as the query's own if its score
        is 1 to within 1e-5; here by its item and step, whatever the score.
    """
    ids, labels, memory = batch.ids, batch.labels, xbm.memory
    assert labels is not None
    if len(ids) > memory.capacity:
        raise ShapeError(
            f"a batch of {len(ids)} does not fit a memory of {memory.capacity}; "
            "raise the capacity or lower the batch size"
        )
    xbm.optimizer.zero_grad()
    encoded = context.encode(xbm.encoder, batch.view_1)
    z = context.gather(encoded.rows, len(ids))
    loss = context.mean_loss(_in_batch(z, ids, labels), is_shown=not is_warm)
    if is_warm:
        if xbm.align is not None:
            xbm.align.align_(memory.read().vectors, z.detach(), memory.processes)
        memory.enqueue(z.detach(), ids, labels)
        loss = loss + xbm.weight * context.mean_loss(_in_memory(z, ids, labels, memory))
    value = context.backward(loss, encoded)
    context.optimizer_step(xbm.optimizer, xbm.encoder)
    return StepOutput(value, z.detach(), z.detach()[_positive_rows(labels)])


def prefill(
    encoder: nn.Module,
    memory: CrossBatchMemory,
    batches: Iterable[tuple[Tensor, Ids, Labels]],
    context: StepContext,
) -> int:
    """Fill a memory with the projections of some images, without training the encoder.

    Use it at the first step with the memory: it is full at once, with rows of one encoder. The encoder runs
    in its current mode, which is train mode during training: rows of later steps use batch statistics, and
    these rows should resemble them. Its buffers, such as running statistics, are restored afterwards.

    Args:
        encoder: images -> (h, z).
        memory: Memory of projections.
        batches: Views [images, channels, height, width], ids and labels [images], drawn at random; read
            until the memory is full.
        context: Precision, normalisation and processes; chunks and checkpointing are not used.

    Returns:
        The number of rows that were enqueued.

    Raises:
        ShapeError: If a batch has more rows than the memory has slots.

    Source:
        Wang et al. 2020, arXiv:1912.06798, section 3.2: after the warm-up the memory is initialised with
        features of randomly sampled training images. The paper does not say in which mode.
    """
    count = 0
    for rows, ids, labels in encode_preserving_buffers(encoder, batches, context):
        memory.enqueue(rows, ids, labels)
        count += len(ids)
        if len(memory) == memory.capacity:
            break
    return count


def _in_batch(z: Rows, ids: Ids, labels: Labels) -> Lookup:
    return _look_up_labels(MemoryRows(z, ids, labels), z, ids, labels, SINGLE_PROCESS)


def _in_memory(z: Rows, ids: Ids, labels: Labels, memory: CrossBatchMemory) -> Lookup:
    stored, shard_group = memory.read(), memory.processes
    # rows of earlier steps have no id here, so that one of the query's own item is positive like its class
    is_new = memory.age()[shard_group.rank :: shard_group.world_size] == 0
    stored = stored._replace(ids=stored.ids.where(is_new, IGNORE_ID))
    return _look_up_labels(stored, z, ids, labels, shard_group)


def _look_up_labels(
    stored: MemoryRows, z: Rows, ids: Ids, labels: Labels, shard_group: ProcessGroup
) -> Lookup:
    return look_up(
        z,
        stored.vectors,
        query_ids=ids,
        key_ids=stored.ids,
        query_labels=labels,
        key_labels=stored.labels,
        rule=XBM_RULE,
        shard_group=shard_group,
    )


def _positive_rows(labels: Labels) -> Ids:
    """For each row the index of the first other row of its class; its own index if there is none."""
    own = torch.arange(len(labels), device=labels.device)
    other = (labels[:, None] == labels[None, :]) & (labels >= 0)[:, None] & (own[:, None] != own[None, :])
    return own.where(~other.any(dim=1), other.to(torch.uint8).argmax(dim=1))
