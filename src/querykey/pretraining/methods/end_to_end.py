"""One step with an encoder for queries and an encoder for keys, and gradient into both."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from querykey.distributed.process_group import ProcessGroup
from querykey.encoders.norm.shuffle import encode_shuffled
from querykey.errors import ConfigError, ShapeError
from querykey.lookup.lookup import PairRule, look_up
from querykey.losses.by_name import ViewLoss
from querykey.pretraining.chunked.gradient_cache import checkpointed_blocks
from querykey.pretraining.methods.step import (
    Computing,
    Seen,
    ViewStep,
    all_reduce_and_step,
    mean_of_own,
    projections,
    require_finite,
    without_gradient,
)
from querykey.types import Ids, Rows

__all__ = ["end_to_end_step"]


def end_to_end_step(
    query_encoder: nn.Module,
    key_encoder: nn.Module,
    optimizer: torch.optim.Optimizer,
    views: tuple[Any, Any],
    *,
    ids: Ids,
    loss: ViewLoss,
    symmetric: bool = False,
    permutation: Tensor | None = None,
    computing: Computing | None = None,
    seen: Seen | None = None,
) -> ViewStep:
    r"""Queries; keys (shuffled) -> look up in the batch -> loss, backward into both encoders, step.

    Row *i* of the queries should find row *i* of the keys; with *B* different items there are
    :math:`K = B - 1` negatives. With queries *q* and keys *k*, each looked up among the other:

    .. math:: L = \ell(q, k) \qquad\text{or, symmetric,}\qquad
              L = \tfrac{1}{2}\,(\ell(q, k) + \ell(k, q))

    One module as both encoders is shared weights: views of the same images, in two forward passes. Two
    modules are two encoders, and may be of two kinds: image and text, query and document.

    Args:
        query_encoder: First view to (h, z), or to z alone, in train mode.
        key_encoder: Second view likewise, z of the same width; may be the same module.
        optimizer: Of the parameters of both, each once, and of a learned temperature.
        views: What the two encoders take, `rows` each: images, features, token ids.
        ids: Which item each row is [rows]. An item that is in the batch twice has two positives, and is no
            negative of itself; for queries that share a document, the ids are those of the documents.
        loss: On a look-up; see `view_objective`.
        symmetric: Whether the keys also look up the queries; then the loss is the mean of both directions.
        permutation: In which the keys are encoded; see `encode_shuffled`. None: in their order.
        computing: How the encoders are run, all rows at once: `chunks` is 1.
        seen: Shown each look-up: one, or two where it is symmetric.

    Returns:
        The loss before the step, mean over the rows; queries and keys as they were looked up.

    Raises:
        CollapseError: If the loss is not finite; the weights are left as they were.
        ConfigError: If `computing` asks for chunks.
        ShapeError: If the encoders' rows differ in number or width; the weights are left as they were.

    Source:
        He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2019,
        arXiv:1911.05722, figure 2a and section 4.1 (end-to-end). Symmetric: Radford et al., Learning
        Transferable Visual Models From Natural Language Supervision, 2021, arXiv:2103.00020, figure 3.
    """
    computing = computing or Computing()
    processes = computing.processes
    if computing.chunks > 1:
        raise ConfigError(
            f"a step with two encoders takes its batch whole, got chunks={computing.chunks}; "
            "use chunks=1, with checkpointing if memory is short, or simclr, which can be computed in chunks"
        )

    def encode(encoder: nn.Module) -> Callable[[Any], Rows]:
        return lambda rows: projections(_run(encoder, rows, computing), normalised=computing.normalised)

    optimizer.zero_grad()
    with ExitStack() as stack:
        if computing.checkpointing:
            for encoder in {id(one): one for one in (query_encoder, key_encoder)}.values():
                stack.enter_context(checkpointed_blocks(encoder))
        q = processes.all_gather_with_grad(encode(query_encoder)(views[0]), len(ids))
        k = _keys(encode(key_encoder), views[1], permutation, processes, rows=len(ids))
        cost = _loss(q, k, ids, loss, processes, symmetric=symmetric, seen=seen)
        value = require_finite(cost, processes)
        cost.backward()  # type: ignore[no-untyped-call]
    all_reduce_and_step(optimizer, [query_encoder, key_encoder], processes)
    return ViewStep(value, q.detach(), k.detach())


def _loss(
    q: Tensor,
    k: Tensor,
    ids: Tensor,
    loss: ViewLoss,
    processes: ProcessGroup,
    *,
    symmetric: bool,
    seen: Seen | None,
) -> Tensor:
    """This process's part of the mean over the rows, and over the directions."""
    if q.shape != k.shape or len(q) != len(ids):
        raise ShapeError(
            f"queries are {list(q.shape)}, keys {list(k.shape)} and ids {list(ids.shape)}; "
            "row i of all must be of the same item, and both encoders must end in the same width"
        )
    rule = PairRule(positive="id", same_id="positive")
    directions = [(q, k), (k, q)] if symmetric else [(q, k)]
    lookups = [look_up(asking, asked, query_ids=ids, key_ids=ids, rule=rule) for asking, asked in directions]
    if seen is not None:
        for lookup in lookups:
            seen(without_gradient(lookup))
    return torch.stack([mean_of_own(loss, lookup, processes) for lookup in lookups]).mean()


def _run(encoder: nn.Module, rows: Any, computing: Computing) -> Tensor:
    """Z of what an encoder gives."""
    first = next(encoder.parameters(), None)
    device = rows.device if isinstance(rows, Tensor) or first is None else first.device
    with computing.autocast(device):
        given = encoder(rows)
    z: Tensor = given[-1] if isinstance(given, tuple) else given
    return z


def _keys(
    encode: Callable[[Any], Rows],
    given: Any,
    permutation: Tensor | None,
    processes: ProcessGroup,
    *,
    rows: int,
) -> Rows:
    if permutation is None:
        return processes.all_gather_with_grad(encode(given), rows)
    return encode_shuffled(encode, given, permutation=permutation, processes=processes)
