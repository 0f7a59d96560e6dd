"""Contrastive and triplet loss, without a tensor [queries, positives, negatives] of all triplets."""

import math
from typing import Literal, assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from querykey.errors import RangeError, require_choice
from querykey.lookup.lookup import Lookup
from querykey.losses._pair_weights import FAR, as_numbers, penalty, scores_and_masks, weigh
from querykey.types import PairMask, PerQuery, Scores

__all__ = [
    "contrastive",
    "triplet",
]

CUBE = 2**20
"""Triplets in memory at once: 4 MB in float32."""


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

    Computed for a few positives at a time.

    Args:
        scores: [queries, keys].
        positive: Pairs to be found.
        negative: Pairs not to be found.
        margin: By how much a positive should win.
        semi_hard: Take only the triplets whose negative scores below the positive, but by
            less than the margin.
    """
    with torch.no_grad(), torch.autocast(scores.device.type, enabled=False):
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
            own = scores.gather(1, chosen)[:, :, None]
            lead = own - reach  # [queries, some positives, keys]
            logs = F.logsigmoid(lead)
            slope = logs.expm1()
            taken = is_negative[:, :, None]
            if semi_hard:
                # compare the scores, not their difference, which is rounded; a tie is no smaller score
                middle = (own < reach) & (scores[:, None, :] < own)
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
    """Positives of each query in adjacent columns: (is one, its key), each [queries, largest number]."""
    most = int(positive.sum(dim=1).max()) if len(positive) else 0
    is_positive, column = positive.view(torch.uint8).topk(most, dim=1)
    return is_positive.bool(), column


MARGINS = {"cosine": (1.0, 0.5), "euclidean": (0.0, 1.0)}
"""Default margins of `contrastive`: of positives and of negatives."""


def contrastive(
    lookup: Lookup,
    *,
    positive_margin: float | None = None,
    negative_margin: float | None = None,
    distance: Literal["cosine", "euclidean"] = "cosine",
) -> PerQuery:
    r"""Contrastive loss: positives are pulled to one margin, negatives pushed beyond another.

    "cosine", with :math:`s` the scores, margins :math:`m_p, m_n`, and :math:`P_i, N_i` the
    positives below and the negatives above their margin:

    .. math:: \ell_i = \frac{1}{|P_i|} \sum_{p \in P_i} (1 - s_{ip})
              + \frac{1}{|N_i|} \sum_{n \in N_i} s_{in}, \quad
              P_i: s_{ip} < m_p, \; N_i: s_{in} > m_n

    "euclidean", with :math:`d = \sqrt{2 - 2 s}` the distance of unit rows:

    .. math:: \ell_i = \frac{1}{|P_i|} \sum_{p \in P_i} (d_{ip} - m_p)^2
              + \frac{1}{|N_i|} \sum_{n \in N_i} (m_n - d_{in})^2, \quad
              P_i: d_{ip} > m_p, \; N_i: d_{in} < m_n

    Both are averages over the terms that are not 0, positives and negatives apart. A plain sum
    grows with the memory, so that each capacity would need a learning rate of its own. The
    price: a pair that passes its margin leaves the average, and the cost of the query may rise.

    Args:
        lookup: Cosines in [-1, 1] with their pair masks.
        positive_margin: Where a positive is good enough. Cosine in (-1, 1]; None: 1, as in XBM.
            Euclidean in [0, 2); None: 0, as in Hadsell et al.
        negative_margin: Where a negative is good enough. Cosine in [0, 1); None: 0.5, as in XBM.
            Euclidean in (0, 2]; None: 1, as is usual.
        distance: "cosine" or "euclidean".

    Returns:
        Cost per query [queries], in the unit of the scores ("cosine") or of squared distance,
        not reduced. A query of which every pair is good enough, or that has none, costs exactly
        0 and sends no gradient.

    Raises:
        RangeError: If a margin is outside its range.
        ConfigError: If there is no such distance.

    Example:
        >>> from querykey.lookup.lookup import Lookup
        >>> positive = torch.tensor([[True, False, False]])
        >>> found = Lookup.from_scores(torch.tensor([[0.75, 0.5, 0.25]]), positive, ~positive)
        >>> contrastive(found, negative_margin=0.375)
        tensor([0.7500])

    Source:
        Hadsell et al. 2006, eq. 4, without its factor 1/2 (euclidean); Wang et al. 2020,
        "Cross-batch memory", arXiv:1912.06798 (cosine), whose released code sums over the pairs
        and divides by the batch.
    """
    require_choice("distance", distance, list(MARGINS))
    usual_positive, usual_negative = MARGINS[distance]
    positive_margin = usual_positive if positive_margin is None else positive_margin
    negative_margin = usual_negative if negative_margin is None else negative_margin
    _check_margins(distance, positive_margin, negative_margin)
    scores, is_positive, is_negative = scores_and_masks(lookup, merges=True)
    with torch.no_grad():
        positive, negative = as_numbers(is_positive, scores.dtype), as_numbers(is_negative, scores.dtype)
        match distance:
            case "cosine":
                beyond, within = positive_margin - scores, scores - negative_margin
                cost_positive, cost_negative = 1.0 - scores, scores
                slope_positive, slope_negative = -torch.ones_like(scores), torch.ones_like(scores)
            case "euclidean":
                length = (2.0 - 2.0 * scores).clamp_(min=0.0).sqrt_()
                beyond, within = length - positive_margin, negative_margin - length
                cost_positive, cost_negative = beyond.square(), within.square()
                length.clamp_(min=torch.finfo(scores.dtype).eps ** 0.5)  # a root is infinitely steep at 0
                slope_positive, slope_negative = -2.0 * beyond / length, 2.0 * within / length
            case never:
                assert_never(never)
        positive *= beyond.gt_(0.0)
        negative *= within.gt_(0.0)
        for pulled in (positive, negative):
            pulled.div_(lookup.shard_group.sum(pulled.sum(dim=1, keepdim=True)).clamp(min=1))
        value = (cost_positive * positive + cost_negative * negative).sum(dim=1)
        weights = slope_positive * positive + slope_negative * negative
    return weigh(scores, value, weights)


def triplet(
    lookup: Lookup,
    *,
    margin: float = 0.2,
    mining: Literal["all", "hard", "semi_hard"] = "all",
    soft: bool = False,
) -> PerQuery:
    r"""Triplet loss: each positive should be nearer than each negative by a margin.

    With the cosine distance :math:`d = 1 - s`, over triplets of a query, a positive and a negative,

    .. math:: \max(0,\; d_{ip} - d_{in} + m) = \max(0,\; s_{in} - s_{ip} + m)

    Args:
        lookup: Scores in [-1, 1] with their pair masks.
        margin: *m* >= 0, in the unit of the scores; > 0 for "semi_hard".
        mining: Which triplets count. "all": the mean over all that cost something; "hard": one a
            query, its farthest positive against its nearest negative; "semi_hard": the mean over
            those with :math:`s_{ip} - m < s_{in} < s_{ip}`.
        soft: :math:`\log(1 + e^{s_{in} - s_{ip} + m})` in place of the hinge, and the mean over
            all mined triplets. Soft margin in the literature is this at margin 0.

    Returns:
        Cost per query [queries], in the unit of the scores (nats where soft), not reduced. A query
        without such a triplet costs exactly 0 and sends no gradient.

    Raises:
        RangeError: If margin is outside its range.
        ConfigError: If there is no such mining.

    Example:
        >>> from querykey.lookup.lookup import Lookup
        >>> positive = torch.tensor([[True, False, False]])
        >>> found = Lookup.from_scores(torch.tensor([[0.5, 0.25, 0.75]]), positive, ~positive)
        >>> for mining in ("all", "hard", "semi_hard"):
        ...     triplet(found, margin=0.5, mining=mining)
        tensor([0.5000])
        tensor([0.7500])
        tensor([0.2500])

    Source:
        Schroff et al. 2015, arXiv:1503.03832, eq. 2 and sec. 3.2 (semi-hard, on squared euclidean
        distance, which is twice ours); Hermans et al. 2017, arXiv:1703.07737, sec. 2 (batch-hard,
        soft margin).
    """
    require_choice("mining", mining, ["all", "hard", "semi_hard"])
    lowest = "> 0" if mining == "semi_hard" else ">= 0"
    if not 0.0 <= margin < math.inf or (mining == "semi_hard" and margin == 0.0):
        finite = " and finite" if margin == math.inf else ""
        raise RangeError(
            f"margin must be {lowest}{finite} with {mining} triplets, got {margin}; 0.05 to 0.2 is usual"
        )
    scores, positive, negative = scores_and_masks(lookup)
    match mining:
        case "hard":
            near = (scores + penalty(as_numbers(negative, scores.dtype))).amax(dim=1)
            far = (scores - penalty(as_numbers(positive, scores.dtype))).amin(dim=1)
            gap = near - far + margin  # about -FAR where there is no triplet
            return torch.logaddexp(gap, torch.zeros_like(gap)) if soft else gap.relu()
        case "all" | "semi_hard":
            mean = soft_triplets if soft else hinge_triplets
            return mean(scores, positive, negative, margin=margin, semi_hard=mining == "semi_hard")
        case never:
            assert_never(never)


def _check_margins(distance: str, positive_margin: float, negative_margin: float) -> None:
    if distance == "cosine":
        fits = -1.0 < positive_margin <= 1.0 and 0.0 <= negative_margin < 1.0
        ranges = "positive_margin in (-1, 1] and negative_margin in [0, 1)"
    else:
        fits = 0.0 <= positive_margin < 2.0 and 0.0 < negative_margin <= 2.0
        ranges = "positive_margin in [0, 2) and negative_margin in (0, 2]"
    if not fits:
        raise RangeError(
            f"{distance} distance needs {ranges}, got {positive_margin} and {negative_margin}; "
            "the two distances have different units"
        )
