"""NT-logistic: binary logistic regression on each pair."""

from typing import Literal, assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from querykey.errors import require_choice
from querykey.lookup.lookup import Lookup
from querykey.losses._pair_weights import FAR, as_numbers, penalty, scores_and_masks, weigh
from querykey.losses.info_nce import check_temperature
from querykey.types import PerQuery, Scores

__all__ = ["nt_logistic"]


def nt_logistic(
    lookup: Lookup, *, temperature: float | Tensor, mining: Literal["all", "semi_hard"] = "all"
) -> PerQuery:
    r"""Binary logistic regression on each pair: is it positive or negative?

    With :math:`P_i` the positives and :math:`N_i` the negatives of query *i*, and :math:`s` the scores,

    .. math:: \ell_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \log \sigma(s_{ip} / \tau)
              - \frac{1}{|N_i|} \sum_{n \in N_i} \log \sigma(-s_{in} / \tau)

    A negative's gradient depends on its own score alone, so easy negatives are not
    outweighed by hard ones as in `info_nce`: SimCLR finds that worse by 6 to 12 points.

    Args:
        lookup: Scores in [-1, 1] with their pair masks.
        temperature: :math:`\tau > 0`, dimensionless; SimCLR tried 0.1 to 1. A tensor of one number
            gets a gradient.
        mining: "all" negatives, or "semi_hard": of those that score below every positive
            the nearest alone (ties share), and none where there is none such.

    Returns:
        Nats per query [queries], not reduced: the mean over positives plus the mean over the
        negatives taken, each 0 where there is none. A query with neither sends no gradient.

    Raises:
        RangeError: If temperature is not a positive number.
        ShapeError: If temperature is a tensor of more than one number.
        ConfigError: If there is no such mining.

    Example:
        Two pairs with a score of 0 cost one bit each:

        >>> from querykey.lookup.lookup import Lookup
        >>> mask = torch.tensor([[True, False]])
        >>> nt_logistic(Lookup.from_scores(torch.zeros(1, 2), mask, ~mask), temperature=0.1)
        tensor([1.3863])

    Source:
        Chen et al. 2020, arXiv:2002.05709, Table 2 (one positive, one negative) and Table 4 (semi-hard
        "sh"). The paper gives no reduction over negatives, and takes them from one view; we take their
        mean, from whichever keys the look-up calls negative: with `look_up_views` both views.
    """
    check_temperature("temperature", temperature)
    require_choice("mining", mining, ["all", "semi_hard"])
    scores, is_positive, is_negative = scores_and_masks(lookup)
    logits = scores / temperature
    with torch.no_grad():
        positive, negative = (as_numbers(mask, scores.dtype) for mask in (is_positive, is_negative))
        match mining:
            case "all":
                pass
            case "semi_hard":
                negative = _nearest_below(scores, positive, negative)
            case never:
                assert_never(never)
        share = positive / positive.sum(dim=1, keepdim=True).clamp(min=1.0)
        share.addcdiv_(negative, negative.sum(dim=1, keepdim=True).clamp(min=1.0))
        sign = positive.mul_(2.0).sub_(1.0)
        right = logits * sign
        value = -(F.logsigmoid(right) * share).sum(dim=1)
        weights = right.neg_().sigmoid_().mul_(share).mul_(sign).neg_()
    return weigh(logits, value, weights)


def _nearest_below(scores: Scores, positive: Scores, negative: Scores) -> Scores:
    """1.0 at the semi-hard negatives: the highest scores below that of the query's farthest positive."""
    farthest = (scores - penalty(positive)).amin(dim=1, keepdim=True)
    below = negative * (scores < farthest) * positive.amax(dim=1, keepdim=True)
    nearest = (scores + penalty(below)).amax(dim=1, keepdim=True).clamp_(min=-FAR / 2)
    return below * (scores == nearest)
