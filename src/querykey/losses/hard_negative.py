"""InfoNCE corrected for false negatives (debiased), and with weights on hard negatives."""

import math

import torch
from torch import Tensor

from querykey.errors import RangeError
from querykey.lookup.lookup import Lookup
from querykey.losses._pair_weights import FAR, as_numbers, penalty, scores_and_masks, softmax, weigh
from querykey.losses.info_nce import check_temperature
from querykey.types import PerQuery

__all__ = ["debiased", "hard_negative"]


def debiased(lookup: Lookup, *, temperature: float | Tensor, tau_plus: float = 0.1) -> PerQuery:
    r"""InfoNCE whose sum over negatives is corrected for those that are of the query's class.

    With :math:`e = \exp(s / \tau)`, :math:`P_i` the positives and :math:`N_i` the negatives of query *i*,

    .. math:: \ell_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \log \frac{e_{ip}}{\sum_{q \in P_i} e_{iq} + G_i},
              \quad G_i = \max\Bigl(|N_i| \, e^{-1/\tau},\; \frac{1}{1 - \tau^+}
              \Bigl(\sum_{n \in N_i} e_{in} - \tau^+ \frac{|N_i|}{|P_i|} \sum_{q \in P_i} e_{iq}\Bigr)\Bigr)

    The floor is what negatives at a cosine of -1 would add: no estimate can be below it.

    Args:
        lookup: Scores in [-1, 1] with their pair masks.
        temperature: :math:`\tau > 0`, dimensionless; 0.5 is usual. A tensor of one number gets a
            gradient.
        tau_plus: :math:`\tau^+` in [0, 1), the share of the negatives that are of the query's own
            class: about 1 / classes. At 0 it is `info_nce`.

    Returns:
        Nats per query [queries], not reduced. A query with no positive costs exactly 0 and sends
        no gradient; where the floor holds, the negatives get none.

    Raises:
        RangeError: If temperature or tau_plus is outside its range.
        ShapeError: If temperature is a tensor of more than one number.

    Example:
        A positive and a negative at a right angle to the query: nothing to correct, one bit.

        >>> from querykey.lookup.lookup import Lookup
        >>> mask = torch.tensor([[True, False]])
        >>> debiased(Lookup.from_scores(torch.zeros(1, 2), mask, ~mask), temperature=0.5)
        tensor([0.6931])

    Source:
        Chuang et al. 2020, arXiv:2007.00224, eq. 7 and 8, with as many positives in its estimate as
        the query has; the denominator then holds all of them, as in `info_nce`.
    """
    return hard_negative(lookup, temperature=temperature, tau_plus=tau_plus, beta=0.0)


def hard_negative(
    lookup: Lookup, *, temperature: float | Tensor, tau_plus: float = 0.1, beta: float = 1.0
) -> PerQuery:
    r"""The debiased loss with negatives weighted by their scores (HCL).

    As `debiased`, with a sum over negatives in which high scores have more weight:

    .. math:: \sum_{n \in N_i} e_{in} \;\to\;
              |N_i| \frac{\sum_n e_{in}^{\beta} \, e_{in}}{\sum_n e_{in}^{\beta}}

    The weights :math:`e^\beta` carry gradient. So a negative far below the others is pulled
    up a little: as its weight grows, theirs shrink.

    Args:
        lookup: Scores in [-1, 1] with their pair masks.
        temperature: :math:`\tau > 0`, dimensionless; 0.5 is usual. A tensor of one number gets a
            gradient.
        tau_plus: :math:`\tau^+` in [0, 1), the share of the negatives that are of the query's own class.
        beta: :math:`\beta \ge 0`, how much harder negatives count, dimensionless. 0 is `debiased`,
            and with a tau_plus of 0 `info_nce`. Hard negatives are those most likely of the query's
            own class, so a large beta wants a tau_plus.

    Returns:
        Nats per query [queries], not reduced. A query with no positive costs exactly 0 and sends
        no gradient; where the floor holds, the negatives get none.

    Raises:
        RangeError: If temperature, tau_plus or beta is outside its range.
        ShapeError: If temperature is a tensor of more than one number.

    Example:
        A negative beside the positive outweighs the one on the far side:

        >>> from querykey.lookup.lookup import Lookup
        >>> mask = torch.tensor([[True, False, False]])
        >>> found = Lookup.from_scores(torch.tensor([[1.0, 1.0, -1.0]]), mask, ~mask)
        >>> hard_negative(found, temperature=0.5, tau_plus=0.0, beta=0.0)
        tensor([0.7023])
        >>> hard_negative(found, temperature=0.5, tau_plus=0.0, beta=1.0)
        tensor([1.0868])

    Source:
        Robinson et al. 2021, arXiv:2010.04592, sec. 3; the defaults and the gradient through the weights
        as in the released code.
    """
    check_temperature("temperature", temperature)
    if not 0.0 <= tau_plus < 1.0:
        raise RangeError(
            f"tau_plus must be from 0 to below 1, got {tau_plus}; "
            "it is the share of negatives of the query's own class, about 1 / classes"
        )
    if not 0.0 <= beta < math.inf:
        raise RangeError(f"beta must be >= 0 and finite, got {beta}; 1 is usual")
    scores, is_positive, is_negative = scores_and_masks(lookup)
    logits = scores / temperature
    floor = -1.0 / temperature
    with torch.no_grad():
        positive, negative = (as_numbers(mask, scores.dtype) for mask in (is_positive, is_negative))
        positives, negatives = (mask.sum(dim=1, keepdim=True) for mask in (positive, negative))
        share = positive / positives.clamp(min=1.0)
        # Sums of exp: of the positives, of the negatives as weighed, of the floor; as logarithms.
        found = softmax(logits, positive)
        if beta:
            # Relative to the highest negative: beta multiplies the rounding error of what is left.
            highest = (logits + penalty(negative)).amax(dim=1, keepdim=True).clamp_(min=-FAR / 2)
            relative = (logits - highest).clamp_(max=0.0)
            hard, even = softmax((beta + 1.0) * relative, negative), softmax(beta * relative, negative)
            log_negative = highest + (hard.log_total - even.log_total) + negatives.clamp(min=1.0).log()
            slopes = hard.probability.mul_(beta + 1.0).sub_(even.probability, alpha=beta)
        else:
            hard = softmax(logits, negative)
            log_negative, slopes = hard.top + hard.log_total, hard.probability
        absent = penalty(negatives.clamp(max=1.0))
        log_negative = log_negative + absent
        log_positive = found.top + found.log_total
        log_floor = (negatives.clamp(min=1.0).log() + floor).to(scores.dtype) + absent
        top = torch.maximum(torch.maximum(log_positive, log_negative), log_floor)
        sum_positive, sum_negative = (log_positive - top).exp_(), (log_negative - top).exp_()
        correction = tau_plus / (1.0 - tau_plus) * negatives / positives.clamp(min=1.0)
        estimate = sum_negative / (1.0 - tau_plus) - correction * sum_positive
        least = (log_floor - top).exp_() * negatives.clamp(max=1.0)
        is_floor = (estimate < least).to(scores.dtype)
        total = sum_positive + torch.maximum(estimate, least)

        has_positive = positives.clamp(max=1.0)
        value = (total.log() + (top - (logits * share).sum(dim=1, keepdim=True))) * has_positive
        rest = (1.0 - is_floor) * has_positive / total
        slopes = slopes.mul_(rest * sum_negative / (1.0 - tau_plus)).sub_(share)
        slopes.addcmul_(found.probability, (has_positive / total - rest * correction) * sum_positive)
    cost = weigh(logits, value[:, 0], slopes)
    if isinstance(floor, Tensor):  # a learned temperature moves the floor as well
        weights = is_floor * has_positive * least / total
        cost = cost + weigh(floor.expand(weights.shape), torch.zeros_like(cost), weights)
    return cost
