"""One step with an encoder for queries and an encoder for keys, and gradient into both."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from querykey.encoders.norm.split import in_order, shuffled
from querykey.errors import ConfigError, ShapeError
from querykey.lookup.lookup import PairRule, look_up
from querykey.pretraining.chunked.gradient_cache import checkpointed_blocks
from querykey.pretraining.methods.step import (
    StepContext,
    StepOutput,
    ViewPair,
    projections,
    require_finite,
)
from querykey.types import Rows

__all__ = ["EndToEnd", "end_to_end_step"]


@dataclass(frozen=True, eq=False)
class EndToEnd:
    """The modules of end-to-end training, and what does not change during a run.

    One module as both encoders means shared weights: views of the same images, in two forward passes. Two
    modules are two encoders, and may be of two kinds: image and text, query and document.

    Args:
        query_encoder: First view to (h, z), or to z alone, in train mode.
        key_encoder: Second view likewise, z of the same width; may be the same module.
        optimizer: Of the parameters of both, each once, and of a learned temperature.
        symmetric: Whether the keys are also looked up among the queries; then the loss is the mean of both
            directions.
    """

    query_encoder: nn.Module
    key_encoder: nn.Module
    optimizer: torch.optim.Optimizer
    symmetric: bool = False


def end_to_end_step(modules: EndToEnd, batch: ViewPair, context: StepContext) -> StepOutput:
    r"""Queries, keys (shuffled), lookup in the batch, loss, backward into both encoders, optimizer step.

    Row *i* of the queries should find row *i* of the keys; with *B* different items there are
    :math:`K = B - 1` negatives. With queries *q* and keys *k*, each looked up among the other:

    .. math:: L = \ell(q, k) \qquad\text{or, symmetric,}\qquad
              L = \tfrac{1}{2}\,(\ell(q, k) + \ell(k, q))

    Args:
        modules: Two encoders and an optimizer.
        batch: What the two encoders take, a row each item: images, features, token ids. An item that is in
            the batch twice has two positives, and is no negative of itself; for queries that share a
            document, `ids` are those of the documents.
        context: Loss, precision, processes. The batch is encoded at once: `chunks` is 1.

    Returns:
        The loss before the step, mean over the rows; queries and keys as they were looked up.

    Raises:
        CollapseError: If the loss is not finite; the weights are unchanged.
        ConfigError: If `context` asks for chunks.
        ShapeError: If the encoders' rows differ in number or width; the weights are unchanged.

    Source:
        He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2019,
        arXiv:1911.05722, figure 2a and section 4.1 (end-to-end). Symmetric: Radford et al., Learning
        Transferable Visual Models From Natural Language Supervision, 2021, arXiv:2103.00020, figure 3.
    """
    if context.chunks > 1:
        raise ConfigError(
            f"a step with two encoders takes its batch whole, got chunks={context.chunks}; "
            "use chunks=1, with checkpointing if memory is short, or simclr, which can be computed in chunks"
        )
    ids, order = batch.ids, context.draw_key_order(len(batch.ids))
    modules.optimizer.zero_grad()
    with ExitStack() as stack:
        if context.checkpointing:
            for encoder in {id(one): one for one in (modules.query_encoder, modules.key_encoder)}.values():
                stack.enter_context(checkpointed_blocks(encoder))
        q = context.gather(_encode(modules.query_encoder, batch.view_1, context), len(ids))
        k_views = batch.view_2 if order is None else shuffled(batch.view_2, order, context.process_group)
        k = context.gather(_encode(modules.key_encoder, k_views, context), len(ids))
        k = k if order is None else in_order(k, order)
        _require_same_shape(q, k, ids)
        rule = PairRule(positive="id", same_id="positive")
        directions = [(q, k), (k, q)] if modules.symmetric else [(q, k)]
        lookups = [look_up(one, other, query_ids=ids, key_ids=ids, rule=rule) for one, other in directions]
        loss = torch.stack([context.mean_loss(lookup) for lookup in lookups]).mean()
        value = require_finite(loss, context.process_group)
        loss.backward()  # type: ignore[no-untyped-call]
    context.optimizer_step(modules.optimizer, modules.query_encoder, modules.key_encoder)
    return StepOutput(value, q.detach(), k.detach())


def _require_same_shape(q: Tensor, k: Tensor, ids: Tensor) -> None:
    if q.shape != k.shape or len(q) != len(ids):
        raise ShapeError(
            f"queries are {list(q.shape)}, keys {list(k.shape)} and ids {list(ids.shape)}; "
            "row i of all must be of the same item, and both encoders must end in the same width"
        )


def _encode(encoder: nn.Module, items: Any, context: StepContext) -> Rows:
    """Rows of whatever the encoder takes, with gradient."""
    first = next(encoder.parameters(), None)
    device = items.device if isinstance(items, Tensor) or first is None else first.device
    with context.autocast(device):
        output = encoder(items)
    z: Tensor = output[-1] if isinstance(output, tuple) else output
    return projections(z, normalised=context.normalised)
