"""Pair masks as numbers, and losses given by the weight of each pair.

On a CPU `torch.where` and `mask.float()` over a boolean mask cost as much as `exp` over the
matrix: PyTorch does not vectorise them. The same mask read as bytes converts ten times
faster, and from there on everything is plain arithmetic.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from querykey.distributed.process_group import ProcessGroup
from querykey.errors import ConfigError, SecondDerivativeError, ShapeError
from querykey.lookup.lookup import Lookup
from querykey.types import PairMask, PerQuery, Scores

FAR = 1e30
"""Stands for infinity: for a row where no pair takes part, inf - inf would be NaN, and 1e30 - 1e30 is 0."""

NOTHING = -80.0
"""The lowest exponent: exp(-80) is negligible beside 1. From about -87 on the result is subnormal, and
`exp` is 10 to 25 times slower."""


def scores_and_masks(lookup: Lookup, *, merges: bool = False) -> tuple[Scores, PairMask, PairMask]:
    """Scores and the masks of positive and negative pairs, with at least one column.

    A look-up without keys, as in a memory that is still empty, gets one key that is neither positive nor
    negative. The maximum over a row is then defined, and the loss is 0.

    Args:
        lookup: Its keys may be sharded only where the loss `merges`.
        merges: Whether the losses over the shards of keys sum to the loss over all keys.

    Raises:
        ConfigError: If the keys are sharded over processes and the loss needs all of them.
    """
    if lookup.shard_group.world_size > 1 and not merges:
        raise ConfigError(
            "this loss needs a query's keys in one place, and they are sharded over "
            f"{lookup.shard_group.world_size} processes; take contrastive or score_distillation, "
            "or leave the memory whole"
        )
    scores, (positive, negative) = lookup.scores, lookup.masks
    if scores.shape[1] == 0:
        scores, positive, negative = (F.pad(x, (0, 1)) for x in (scores, positive, negative))
    return scores, positive, negative


def as_numbers(mask: PairMask, dtype: torch.dtype) -> Scores:
    """1.0 where the mask is True and 0.0 elsewhere."""
    # PyTorch stores a bool as a byte of 0 or 1, so the view copies nothing
    return mask.view(torch.uint8).to(dtype)


def penalty(weights: Scores) -> Scores:
    """0 where the weight is 1 and -FAR where it is 0: added to a logit, it excludes the pair."""
    return weights.sub(1.0).mul_(FAR)


class Softmax(NamedTuple):
    """The softmax of each row over the pairs that take part."""

    top: Tensor
    """Largest logit [queries, 1]; about -FAR where no pair takes part."""
    log_total: Tensor
    """log of the sum of exp(logit - top) [queries, 1]; 0 where no pair takes part."""
    probability: Scores
    """exp(logit - top) / total; all 0 where no pair takes part."""

    @property
    def log_sum(self) -> PerQuery:
        """Log of the sum of exp(logit); about -FAR where no pair takes part."""
        return (self.top + self.log_total)[:, 0]


def softmax(logits: Scores, takes_part: Scores) -> Softmax:
    """Softmax over the pairs whose number in `takes_part` is 1; nothing over those at 0."""
    shifted = logits + penalty(takes_part)
    # relative to the maximum no exponent is above 0, so nothing overflows at any temperature
    top = shifted.amax(dim=1, keepdim=True)
    # the clamp lifts excluded pairs to exp(-80); the product with the mask makes them exactly 0
    shifted.sub_(top).clamp_(min=NOTHING).exp_().mul_(takes_part)
    # The largest term is 1, so a sum below 1 means that no pair takes part: without the clamp 0 / 0 is NaN.
    total = shifted.sum(dim=1, keepdim=True).clamp_(min=1.0)
    return Softmax(top, total.log(), shifted.div_(total))


def softmax_of_all(local: Softmax, processes: ProcessGroup) -> Softmax:
    """The softmax over the keys of all ranks, from the softmax over this rank's shard of them.

    Args:
        local: Over this rank's keys; its probabilities are overwritten.
        processes: Over which the keys are sharded.

    Returns:
        Maximum and total over all keys, probabilities of this rank's keys.
    """
    if processes.world_size == 1:
        return local
    # one number a query and rank is sent, not its scores: log-sum-exp of log-sum-exps is that of all keys
    log_sums = processes.all_gather_with_grad(local.log_sum[None], processes.world_size)
    top = log_sums.amax(dim=0)
    log_total = (log_sums - top).clamp_(min=NOTHING).exp_().sum(dim=0).log_()
    # the probability that falls on this rank's keys; 0 for a rank without a pair, whose log-sum is -FAR
    share = (local.log_sum - top - log_total).exp_()
    return Softmax(top[:, None], log_total[:, None], local.probability.mul_(share[:, None]))


def require_same_size(lookup: Lookup, target: Lookup) -> None:
    """Check that a target has the same queries and keys.

    Raises:
        ShapeError: If it is not.
    """
    ours, theirs = (len(lookup), len(lookup.keys)), (len(target), len(target.keys))
    if ours != theirs:
        raise ShapeError(
            f"the look-up is {ours[0]} x {ours[1]} (queries x keys), its target {theirs[0]} x {theirs[1]}; "
            "look the same queries up among the same keys for both"
        )


def read_target(lookup: Lookup, target: Lookup) -> tuple[Scores, PairMask]:
    """The frozen scores and the pairs that take part, if they are of the same queries and keys.

    Raises:
        ShapeError: If they are not.
    """
    require_same_size(lookup, target)
    scores, positive, negative = scores_and_masks(target, merges=True)
    return scores.detach(), positive | negative


class _Weighed(torch.autograd.Function):
    """Forward returns the loss computed before; backward returns its derivative by each score."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, value: Tensor, weights: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(weights)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # the weights are numbers without a graph: a second derivative through them would be silently 0
        if torch.is_grad_enabled():
            raise SecondDerivativeError
        (weights,) = ctx.saved_tensors
        return gradient[:, None] * weights, None, None


def weigh(scores: Scores, value: PerQuery, weights: Scores) -> PerQuery:
    """A loss whose derivative by each score is known: the weight of the pair.

    Every loss on pairs is a weighting of pairs. Where computing the value gives the weights too, backward is
    one multiplication, and no intermediate matrix is saved for it.

    Args:
        scores: What receives the gradient.
        value: The loss, computed without gradient.
        weights: Its derivative by each score.
    """
    weighed: Tensor = _Weighed.apply(scores, value, weights)
    return weighed
