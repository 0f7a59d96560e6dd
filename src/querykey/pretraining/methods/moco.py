"""One step of MoCo: with a queue (v1, v2), and with the keys of the batch (v3)."""

import torch
from torch import Tensor, nn

from querykey.dictionaries.queue import KeyQueue
from querykey.distributed.process_group import ProcessGroup
from querykey.encoders.momentum import MomentumEncoder
from querykey.encoders.norm.shuffle import encode_shuffled
from querykey.errors import RangeError
from querykey.lookup.lookup import Lookup, PairRule, look_up
from querykey.lookup.own_key_pairs import SameId, look_up_own_key
from querykey.losses.by_name import ViewLoss
from querykey.pretraining.methods.step import (
    Computing,
    Seen,
    ViewStep,
    all_reduce_and_step,
    backward,
    mean_of_own,
    projections,
    sharded_mean_loss,
    without_gradient,
)
from querykey.types import Ids, Rows

__all__ = ["encode_keys", "moco_step", "moco_v3_step"]


def moco_step(
    encoder: nn.Module,
    key_encoder: MomentumEncoder,
    optimizer: torch.optim.Optimizer,
    queue: KeyQueue,
    views: tuple[Tensor, Tensor],
    *,
    ids: Ids,
    loss: ViewLoss,
    momentum: float,
    same_id: SameId = "masked",
    symmetric: bool = False,
    permutation: Tensor | None = None,
    computing: Computing | None = None,
    seen: Seen | None = None,
) -> ViewStep:
    r"""Update the key encoder (EMA), encode keys, then queries; logits against own key + queue; enqueue.

    The queue holds keys of earlier steps only: a query's positive is never among its negatives. Other
    in-batch keys are ignored (neither positive nor negative).

    Args:
        encoder: images -> (h, z), in train mode; makes the queries.
        key_encoder: A copy of it, in train mode; makes the keys.
        optimizer: Of the encoder's parameters, and of a learned temperature.
        queue: Of the keys of earlier steps; gets this step's in the end. Where it is sharded over
            processes, the loss must be `info_nce`, and same_id not "positive".
        views: Two views of the same images, each [images, channels, height, width]: of the queries, and of
            the keys.
        ids: Which items they show [images].
        loss: On a look-up; see `view_objective`.
        momentum: Of the key encoder, from 0 to 1; see `momentum_at`.
        same_id: What older keys of the query's own item are; the paper's are "negative".
        symmetric: Also compute the loss with the two views swapped: two look-ups in the same queue, the
            loss is their mean, and the keys of both are enqueued at once, twice `images` rows.
        permutation: In which the keys are encoded; see `encode_shuffled`. None: in their order.
        computing: How the encoder is run. Keys have no gradient, so one pass over all of them at once
            holds little; `chunks` and `checkpointing` are the queries' alone.
        seen: Shown each look-up: one, or two where it is symmetric.

    Returns:
        The loss before the step, mean over the queries; the queries of the first look-up and their keys.

    Raises:
        CollapseError: If the loss is not finite; the encoder's weights and the queue are left as they were.
        RangeError: If momentum is not from 0 to 1; nothing has changed.

    Source:
        He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2019,
        arXiv:1911.05722, algorithm 1; the key encoder follows before the keys are encoded, as in the authors'
        code. Their CIFAR notebook has the symmetric form and adds the two losses; their mean, here, sends
        half the gradient.
    """
    computing = computing or Computing()
    processes = computing.processes
    directions = [views, (views[1], views[0])] if symmetric else [views]
    taken: list[tuple[Rows, Rows]] = []
    value = 0.0

    def loss_of_q(own: Rows) -> Tensor:
        q = processes.all_gather_with_grad(own, len(ids))
        lookup = look_up_own_key(
            q, keys, ids=ids, held_vectors=held.vectors, held_ids=held.ids, same_id=same_id
        )
        taken.append((q.detach(), keys))
        return _mean(loss, lookup, processes, seen, shard_group=queue.processes.world_size > 1) / len(
            directions
        )

    # The authors' code encodes the queries first. The keys depend on the encoder's weights alone,
    # which change at optimizer.step, and made first they need no room beside the queries' activations.
    optimizer.zero_grad()
    key_encoder.ema_update_(encoder, momentum)
    held = queue.read()
    for of_queries, of_keys in directions:
        keys = encode_keys(key_encoder, of_keys, permutation, computing, rows=len(ids))
        value += backward(encoder, of_queries, loss_of_q, computing)
    all_reduce_and_step(optimizer, [encoder, key_encoder], processes)
    queue.enqueue(torch.cat([k for _, k in taken]), ids.repeat(len(directions)))
    return ViewStep(value, *taken[0])


def moco_v3_step(
    encoder: nn.Module,
    key_encoder: MomentumEncoder,
    predictor: nn.Module,
    optimizer: torch.optim.Optimizer,
    views: tuple[Tensor, Tensor],
    *,
    ids: Ids,
    loss: ViewLoss,
    momentum: float,
    temperature: float,
    permutation: Tensor | None = None,
    computing: Computing | None = None,
    seen: Seen | None = None,
) -> ViewStep:
    r"""Follow, keys, predicted queries -> look up the batch's keys -> loss, the other way round, step.

    There is no queue: the keys are those that the momentum encoder makes of the other view. With
    :math:`q = \text{norm}(p(z))` of the query encoder and its prediction head *p*, and *k* of the key
    encoder, which has none,

    .. math:: L = 2\tau\,(\ell(q_1, k_2) + \ell(q_2, k_1))

    Args:
        encoder: images -> (h, z), in train mode.
        key_encoder: A copy of it, in train mode.
        predictor: z to rows of the same width, in train mode: a `ProjectionHead` on z.
        optimizer: Of the parameters of encoder and predictor.
        views: Two views of the same images, each [images, channels, height, width].
        ids: Which items they show [images]; a further key of the query's item is a positive too.
        loss: On a look-up; see `view_objective`.
        momentum: Of the key encoder, from 0 to 1; see `momentum_at`.
        temperature: Of that loss, > 0. It is multiplied by twice that, so that the gradient keeps its size
            when the temperature is changed; 0.5 takes the loss as it is.
        permutation: In which the keys are encoded; see `encode_shuffled`. None: in their order.
        computing: How the encoder is run; as in `moco_step`.
        seen: Shown both look-ups.

    Returns:
        L before the step; the queries of the first view and the keys of the second.

    Raises:
        CollapseError: If the loss is not finite; the weights of encoder and predictor are left as they were.
        RangeError: If momentum is not from 0 to 1 or temperature not above 0; nothing has changed.

    Source:
        Chen et al., An Empirical Study of Training Self-Supervised Vision Transformers, 2021,
        arXiv:2104.02057, algorithm 1.
    """
    if not temperature > 0:
        raise RangeError(f"temperature must be > 0, got {temperature}; 0.2 to 1 is usual")
    computing = computing or Computing()
    processes = computing.processes
    predicting = _Predicting(encoder, predictor)
    taken: list[tuple[Rows, Rows]] = []
    value = 0.0

    def loss_of_q(own: Rows) -> Tensor:
        q = processes.all_gather_with_grad(own, len(ids))
        rule = PairRule(positive="id", same_id="positive")
        lookup = look_up(q, keys, query_ids=ids, key_ids=ids, rule=rule)
        taken.append((q.detach(), keys))
        return _mean(loss, lookup, processes, seen) * (2 * temperature)

    optimizer.zero_grad()
    key_encoder.ema_update_(encoder, momentum)
    for of_queries, of_keys in (views, (views[1], views[0])):
        keys = encode_keys(key_encoder, of_keys, permutation, computing, rows=len(ids))
        value += backward(predicting, of_queries, loss_of_q, computing)
    all_reduce_and_step(optimizer, [predicting, key_encoder], processes)
    return ViewStep(value, *taken[0])


class _Predicting(nn.Module):
    """images -> (h, p(z))."""

    def __init__(self, encoder: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.encoder, self.predictor = encoder, predictor

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        h, z = self.encoder(images)
        return h, self.predictor(z)


def encode_keys(
    key_encoder: MomentumEncoder,
    images: Tensor,
    permutation: Tensor | None,
    computing: Computing,
    *,
    rows: int,
) -> Rows:
    """The keys of a step, as the key encoder is now.

    In train mode its running statistics move.

    Args:
        key_encoder: images -> (h, z).
        images: [images, channels, height, width], this process's part; encoded all at once.
        permutation: In which they are encoded; see `encode_shuffled`. None: in their order.
        computing: Precision, whether keys are scaled to length 1, and the processes.
        rows: Images of all processes.

    Returns:
        [rows, dim] in float32 at least, without gradient; row i is the key of image i.
    """

    def encode(some: Tensor) -> Rows:
        with computing.autocast(some.device):
            _, z = key_encoder(some)
        return projections(z, normalised=computing.normalised)

    processes = computing.processes
    if permutation is None:
        return processes.all_gather_with_grad(encode(images), rows)
    return encode_shuffled(encode, images, permutation=permutation, processes=processes)


def _mean(
    loss: ViewLoss, lookup: Lookup, processes: ProcessGroup, seen: Seen | None, *, shard_group: bool = False
) -> Tensor:
    """This process's part of the mean over the queries."""
    if seen is not None:
        seen(without_gradient(lookup))
    return (sharded_mean_loss if shard_group else mean_of_own)(loss, lookup, processes)
