"""Losses that weight each pair by its hardness: multi-similarity and circle."""

import math

import torch

from querykey.errors import RangeError
from querykey.lookup.lookup import Lookup
from querykey.losses._pair_weights import FAR, NOTHING, as_numbers, penalty, scores_and_masks, softmax, weigh
from querykey.types import PerQuery

__all__ = ["circle", "multi_similarity"]


def multi_similarity(
    lookup: Lookup,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = 0.1,
) -> PerQuery:
    r"""Soft worst positive and soft worst negative against a base score, of informative pairs.

    .. math:: \ell_i = \frac{1}{\alpha} \log\Bigl(1 + \sum_{p \in P_i} e^{-\alpha (s_{ip} - \lambda)}\Bigr)
              + \frac{1}{\beta} \log\Bigl(1 + \sum_{n \in N_i} e^{\beta (s_{in} - \lambda)}\Bigr)

    where :math:`N_i` holds the negatives with :math:`s_{in} > \min_p s_{ip} - \epsilon` and
    :math:`P_i` the positives with :math:`s_{ip} < \max_n s_{in} + \epsilon`, minimum and maximum
    over all positives and all negatives of the query.

    Args:
        lookup: Scores in [-1, 1] with their pair masks.
        alpha: Sharpness over positives, > 0.
        beta: Sharpness over negatives, > 0. XBM uses 40.
        base: :math:`\lambda`, the score that divides good from bad, in the unit of the scores.
        epsilon: Margin of the mining, >= 0, in the unit of the scores. None keeps all pairs,
            and then a query without positives still pushes its negatives away.

    Returns:
        Cost per query [queries], in the unit of the scores, not reduced. A query of which no
        pair is kept costs exactly 0 and sends no gradient; with mining that is any query
        without positives or without negatives. Which pairs are kept carries no gradient.

    Raises:
        RangeError: If alpha or beta is not positive, epsilon is negative, or one is not finite.

    Example:
        A positive and a negative, both at the base, cost log(2) / alpha + log(2) / beta:

        >>> from querykey.lookup.lookup import Lookup
        >>> mask = torch.tensor([[True, False]])
        >>> multi_similarity(Lookup.from_scores(torch.full((1, 2), 0.5), mask, ~mask), alpha=1.0, beta=2.0)
        tensor([1.0397])

    Source:
        Wang et al. 2019, "Multi-similarity loss with general pair weighting", arXiv:1904.06627,
        sec. 4. The paper sets the base to 1, its released code to 0.5; we take the code's.
    """
    _require_positive(alpha=alpha, beta=beta)
    if not math.isfinite(base):
        raise RangeError(f"base must be finite, got {base}; 0.5 is usual")
    if epsilon is not None and not 0.0 <= epsilon < math.inf:
        raise RangeError(f"epsilon must be >= 0, got {epsilon}; None selects all pairs")
    scores, positive, negative = scores_and_masks(lookup)
    with torch.no_grad():
        near = scores + penalty(as_numbers(negative, scores.dtype))  # -FAR where not a negative
        far = scores - penalty(as_numbers(positive, scores.dtype))  # FAR where not a positive
        nearest, farthest = near.amax(dim=1, keepdim=True), far.amin(dim=1, keepdim=True)
        lowest, best = farthest, nearest
        if epsilon is not None:
            # Both sides compare with a positive less epsilon: if one side added it to a negative, rounding
            # could keep one of a tied pair without the other.
            lowest = farthest - epsilon
            informative = nearest > lowest
            nearest = torch.where(informative, nearest, -FAR)
            farthest = torch.where(informative, farthest, FAR)
        # Subtract the largest exponent of the selected pairs, or 0, the exponent of the 1 inside the
        # logarithm, against overflow; the clamp covers rows without selected pairs.
        top_near = ((nearest - base) * beta).clamp_(min=0.0)
        top_far = ((base - farthest) * alpha).clamp_(min=0.0)
        weights = (near * beta).sub_(beta * base + top_near).clamp_(min=NOTHING, max=0.0).exp_()
        weights_far = (far * -alpha).add_(alpha * base - top_far).clamp_(min=NOTHING, max=0.0).exp_()
        weights.mul_(near.gt_(-FAR / 2 if epsilon is None else lowest))
        weights_far.mul_(far.lt_(FAR / 2) if epsilon is None else far.sub_(epsilon).lt_(best))

        total_near = weights.sum(dim=1, keepdim=True) + (-top_near).exp_()
        total_far = weights_far.sum(dim=1, keepdim=True) + (-top_far).exp_()
        value = (total_near.log() + top_near) / beta + (total_far.log() + top_far) / alpha
        weights.div_(total_near).addcdiv_(weights_far, total_far, value=-1.0)
    return weigh(scores, value[:, 0], weights)


def circle(lookup: Lookup, *, margin: float = 0.4, gamma: float = 80.0) -> PerQuery:
    r"""Each pair is pulled towards its optimum, weighted by its distance from it.

    .. math:: \ell_i = \log\Bigl(1 + \sum_n e^{\gamma \alpha_n (s_{in} - m)}
              \sum_p e^{-\gamma \alpha_p (s_{ip} - 1 + m)}\Bigr), \quad
              \alpha_n = [s_{in} + m]_+, \; \alpha_p = [1 + m - s_{ip}]_+

    The weights :math:`\alpha` carry no gradient, so the gradient is not that of the value.

    Args:
        lookup: Scores in [-1, 1] with their pair masks.
        margin: *m* in (0, 1), in the unit of the scores: positives aim above 1 - m, negatives
            below m. The paper uses 0.4 for retrieval and 0.25 for faces.
        gamma: :math:`\gamma > 0`, dimensionless. The paper uses 80 and 256.

    Returns:
        Nats per query [queries], not reduced. A query without positives or without negatives
        costs exactly 0 and sends no gradient.

    Raises:
        RangeError: If margin or gamma is outside its range.

    Example:
        A positive and a negative, both on their boundary, cost one bit:

        >>> from querykey.lookup.lookup import Lookup
        >>> mask = torch.tensor([[True, False]])
        >>> circle(Lookup.from_scores(torch.tensor([[0.75, 0.25]]), mask, ~mask), margin=0.25)
        tensor([0.6931])

    Source:
        Sun et al. 2020, arXiv:2002.10857, sec. 3. The paper sums over all positives and
        negatives of a batch in one logarithm or of one anchor; here it is one anchor, the query.
    """
    if not 0.0 < margin < 1.0:
        raise RangeError(f"margin must be above 0 and below 1, got {margin}; 0.4 is usual for retrieval")
    _require_positive(gamma=gamma)
    scores, positive, negative = scores_and_masks(lookup)
    with torch.no_grad():
        push = (scores + margin).clamp_(min=0.0).mul_(gamma)
        pull = (1.0 + margin - scores).clamp_(min=0.0).mul_(gamma)
        near = softmax(push * (scores - margin), as_numbers(negative, scores.dtype))
        far = softmax(pull * (1.0 - margin - scores), as_numbers(positive, scores.dtype))
        both = near.log_sum + far.log_sum
        weights = near.probability.mul_(push).sub_(far.probability.mul_(pull))
        weights *= both.sigmoid()[:, None]
        value = torch.logaddexp(both, torch.zeros_like(both))
    return weigh(scores, value, weights)


def _require_positive(**settings: float) -> None:
    for name, value in settings.items():
        if not 0.0 < value < math.inf:
            raise RangeError(f"{name} must be > 0 and finite, got {value}")
