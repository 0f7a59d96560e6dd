"""Sums over (query, positive, negative) without a cube of all triplets."""

import torch
from torch import Tensor
from torch.nn import functional as F

from querykey.losses._pair_weights import FAR, as_numbers, weigh
from querykey.types import PairMask, PerQuery, Scores

CUBE = 2**20
"""Triplets held at once: 4 MB in float32."""


def hinge_triplets(
    scores: Scores, positive: PairMask, negative: PairMask, *, margin: float, semi_hard: bool = False
) -> PerQuery:
    """Mean of max(0, s_n - s_p + margin) over a query's triplets above 0.

    A hinge is linear where it is above 0. So each pair's weight is the number of triplets it is
    active in, found by bisection among the sorted positives.

    Args:
        scores: [queries, keys].
        positive: Pairs to be found.
        negative: Pairs not to be found.
        margin: By how much a positive should win.
        semi_hard: Leave out the triplets whose negative scores at or above the positive.
    """
    with torch.no_grad():
        is_positive, column = _pack(positive)
        found = torch.where(is_positive, scores.gather(1, column), FAR)
        found, order = found.sort(dim=1)
        # A negative meets the positives, lowest first, from `first` up to before `last`.
        last = torch.searchsorted(found, scores + margin)
        first = torch.searchsorted(found, scores, right=True) if semi_hard else torch.zeros_like(last)
        first = torch.minimum(first, last)
        is_negative = as_numbers(negative, scores.dtype)
        weights = (last - first) * is_negative
        steps = scores.new_zeros(len(scores), column.shape[1] + 1)
        steps.scatter_add_(1, first, is_negative).scatter_add_(1, last, -is_negative)
        met = steps.cumsum(dim=1)[:, :-1]  # 0 where there is no positive: FAR is met by none
        count = weights.sum(dim=1, keepdim=True)
        weights.scatter_add_(1, column.gather(1, order), -met)
        weights /= count.clamp(min=1.0)
        value = (weights * scores).sum(dim=1) + margin * count[:, 0].clamp(max=1.0)
    return weigh(scores, value, weights)


def soft_triplets(
    scores: Scores, positive: PairMask, negative: PairMask, *, margin: float, semi_hard: bool = False
) -> PerQuery:
    """Mean of log(1 + exp(s_n - s_p + margin)) over a query's triplets.

    The positives are walked, a few at a time.

    Args:
        scores: [queries, keys].
        positive: Pairs to be found.
        negative: Pairs not to be found.
        margin: By how much a positive should win.
        semi_hard: Take only the triplets whose negative scores below the positive, but by
            less than the margin.
    """
    with torch.no_grad():
        is_positive, column = _pack(positive)
        is_found = as_numbers(is_positive, scores.dtype)
        is_negative = as_numbers(negative, scores.dtype)
        weights, value, count = (
            torch.zeros_like(scores),
            torch.zeros_like(scores[:, 0]),
            torch.zeros_like(scores[:, 0]),
        )
        reach = (scores + margin)[:, None, :]
        step = max(1, CUBE // max(1, scores.numel()))
        for start in range(0, column.shape[1], step):
            chosen, found = column[:, start : start + step], is_found[:, None, start : start + step]
            lead = scores.gather(1, chosen)[:, :, None] - reach  # [queries, some positives, keys]
            logs = F.logsigmoid(lead)
            slope = logs.expm1()
            taken = is_negative[:, :, None]
            if semi_hard:
                middle = (lead < 0.0) & (lead > -margin)
                logs, slope = logs * middle, slope * middle
                count += _total(found, middle.to(scores.dtype), taken)
            else:
                count += found.sum(dim=(1, 2)) * is_negative.sum(dim=1)
            value -= _total(found, logs, taken)
            weights -= torch.bmm(found, slope)[:, 0] * is_negative
            weights.scatter_add_(1, chosen, torch.bmm(slope, taken)[:, :, 0] * found[:, 0])
        value /= count.clamp(min=1.0)
        weights /= count.clamp(min=1.0)[:, None]
    return weigh(scores, value, weights)


def _total(found: Tensor, triplets: Tensor, taken: Tensor) -> PerQuery:
    """Sum over the positives found and the negatives taken of [queries, positives, keys]."""
    return torch.bmm(found, torch.bmm(triplets, taken))[:, 0, 0]


def _pack(positive: PairMask) -> tuple[Tensor, Tensor]:
    """Positives of each query side by side: (is one, its column), [queries, most of any query]."""
    most = int(positive.sum(dim=1).max()) if len(positive) else 0
    is_positive, column = positive.view(torch.uint8).topk(most, dim=1)
    return is_positive.bool(), column
