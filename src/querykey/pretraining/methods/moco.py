"""One step of MoCo: with a queue (v1, v2), and with the keys of the batch (v3)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from querykey.dictionaries.queue import KeyQueue
from querykey.encoders.momentum import MomentumEncoder
from querykey.errors import RangeError
from querykey.lookup.lookup import PairRule, SameId, look_up, look_up_own_key
from querykey.pretraining.methods.step import StepContext, StepOutput, ViewPair

__all__ = ["MoCo", "MoCoV3", "moco_step", "moco_v3_step"]


@dataclass(frozen=True, eq=False)
class MoCo:
    """The modules of MoCo v1 and v2, and what does not change during a run.

    Args:
        encoder: images -> (h, z), in train mode; makes the queries.
        key_encoder: A copy of it, in train mode; makes the keys.
        queue: Of the keys of earlier steps. If it is sharded over processes, the loss must be `info_nce`, and
            same_id not "positive".
        optimizer: Of the encoder's parameters, and of a learned temperature.
        same_id: What older keys of the query's own item are; in the paper they are "negative".
        symmetric: Whether each view is the query once: two lookups in the same queue, the loss is their mean,
            and the keys of both views are enqueued, twice `images` rows.
    """

    encoder: nn.Module
    key_encoder: MomentumEncoder
    queue: KeyQueue
    optimizer: torch.optim.Optimizer
    same_id: SameId = "masked"
    symmetric: bool = False


def moco_step(moco: MoCo, batch: ViewPair, context: StepContext, momentum: float) -> StepOutput:
    r"""Update the key encoder; keys, queries, lookup, loss, backward; optimizer step; enqueue.

    A query is looked up among its own key and the queue of earlier steps, so its positive is never among its
    negatives. The other keys of the batch are neither positive nor negative.

    Args:
        moco: Encoder, key encoder, queue and optimizer.
        batch: Two views of the same images: of the queries, and of the keys.
        context: Loss, precision, processes. Keys have no gradient and are encoded all at once; `chunks` and
            `checkpointing` apply to the queries.
        momentum: Of the key encoder, from 0 to 1; see `momentum_at`.

    Returns:
        The loss before the step, mean over the queries; the queries of the first lookup and their keys.

    Raises:
        CollapseError: If the loss is not finite; the encoder's weights and the queue are unchanged.
        RangeError: If momentum is not from 0 to 1; nothing has changed.

    Source:
        He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2019,
        arXiv:1911.05722, algorithm 1. The key encoder is updated before the keys are encoded, as in the
        authors' code. The symmetric loss is in their CIFAR notebook, which adds the two losses; the mean,
        here, has half the gradient.
    """
    rows, directions = len(batch.ids), [batch, batch.swapped] if moco.symmetric else [batch]
    order, value, looked_up = context.draw_key_order(rows), 0.0, []
    moco.optimizer.zero_grad()
    moco.key_encoder.ema_update_(moco.encoder, momentum)
    stored = moco.queue.read()
    for views in directions:
        # keys first: they depend on the weights before the step alone, and need no room beside activations
        k = context.encode_keys(moco.key_encoder, views.view_2, order, rows)
        encoded = context.encode(moco.encoder, views.view_1)
        q = context.gather(encoded.rows, rows)
        lookup = look_up_own_key(
            q, k, ids=batch.ids, stored_vectors=stored.vectors, stored_ids=stored.ids, same_id=moco.same_id
        )
        loss = context.mean_loss(lookup, is_sharded=moco.queue.processes.world_size > 1) / len(directions)
        value += context.backward(loss, encoded)
        looked_up.append((q.detach(), k))
    context.optimizer_step(moco.optimizer, moco.encoder, moco.key_encoder)
    moco.queue.enqueue(torch.cat([k for _, k in looked_up]), batch.ids.repeat(len(directions)))
    return StepOutput(value, *looked_up[0])


@dataclass(frozen=True, eq=False)
class MoCoV3:
    """The modules of MoCo v3, and what does not change during a run.

    Args:
        encoder: images -> (h, z), in train mode.
        key_encoder: A copy of it, in train mode.
        predictor: z to rows of the same width, in train mode: a `ProjectionHead` on z.
        optimizer: Of the parameters of encoder and predictor.
        temperature: Of the loss, > 0. The loss is multiplied by twice the temperature, so that the size of
            the gradient does not depend on it; at 0.5 the loss is taken as it is.

    Raises:
        RangeError: If temperature is not above 0.
    """

    encoder: nn.Module
    key_encoder: MomentumEncoder
    predictor: nn.Module
    optimizer: torch.optim.Optimizer
    temperature: float

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise RangeError(f"temperature must be > 0, got {self.temperature}; 0.2 to 1 is usual")


def moco_v3_step(moco: MoCoV3, batch: ViewPair, context: StepContext, momentum: float) -> StepOutput:
    r"""Update the key encoder; keys, predicted queries, lookup in the batch, loss, in both directions; step.

    There is no queue: the keys are those of the other view's momentum encoder. With
    :math:`q = \text{norm}(p(z))` of the query encoder and the prediction head *p*, and *k* of the key
    encoder, which has no prediction head,

    .. math:: L = 2\tau\,(\ell(q_1, k_2) + \ell(q_2, k_1))

    Args:
        moco: Encoder, key encoder, predictor and optimizer.
        batch: Two views of the same images; a further key of the query's item is a positive too.
        context: As for `moco_step`.
        momentum: Of the key encoder, from 0 to 1; see `momentum_at`.

    Returns:
        L before the step; the queries of the first view and the keys of the second.

    Raises:
        CollapseError: If the loss is not finite; the weights of encoder and predictor are unchanged.
        RangeError: If momentum is not from 0 to 1; nothing has changed.

    Source:
        Chen et al., An Empirical Study of Training Self-Supervised Vision Transformers, 2021,
        arXiv:2104.02057, algorithm 1.
    """
    rows, predicting = len(batch.ids), _Predicting(moco.encoder, moco.predictor)
    order, value, looked_up = context.draw_key_order(rows), 0.0, []
    rule = PairRule(positive="id", same_id="positive")
    moco.optimizer.zero_grad()
    moco.key_encoder.ema_update_(moco.encoder, momentum)
    for views in (batch, batch.swapped):
        k = context.encode_keys(moco.key_encoder, views.view_2, order, rows)
        encoded = context.encode(predicting, views.view_1)
        q = context.gather(encoded.rows, rows)
        lookup = look_up(q, k, query_ids=batch.ids, key_ids=batch.ids, rule=rule)
        value += context.backward(context.mean_loss(lookup) * (2 * moco.temperature), encoded)
        looked_up.append((q.detach(), k))
    context.optimizer_step(moco.optimizer, predicting, moco.key_encoder)
    return StepOutput(value, *looked_up[0])


class _Predicting(nn.Module):
    """images -> (h, p(z))."""

    def __init__(self, encoder: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.encoder, self.predictor = encoder, predictor

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        h, z = self.encoder(images)
        return h, self.predictor(z)
