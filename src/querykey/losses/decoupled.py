"""The decoupled contrastive loss: InfoNCE without the positives in the denominator."""

import math

import torch
from torch import Tensor

from querykey.errors import RangeError
from querykey.lookup.lookup import Lookup
from querykey.losses._pair_weights import NOTHING, as_numbers, penalty, scores_and_masks, softmax, weigh
from querykey.losses.info_nce import LOWEST, check_temperature
from querykey.losses.streaming import Form, takes_chunked
from querykey.losses.streaming_blocks import Positives, log_mean_of_positives, softmax_of_blocks
from querykey.losses.streaming_views import two_views
from querykey.types import PerQuery

__all__ = ["decoupled"]


def decoupled(
    lookup: Lookup, *, temperature: float | Tensor, sigma: float | None = None, form: Form = "auto"
) -> PerQuery:
    r"""InfoNCE with its positives left out of the denominator (DCL; with sigma DCLW).

    With :math:`P_i` the positives and :math:`N_i` the negatives of query *i*, and :math:`s` the scores,

    .. math:: \ell_i = -\frac{1}{|P_i|} \sum_{p \in P_i} w_{ip} \frac{s_{ip}}{\tau}
              + \log \sum_{n \in N_i} \exp(s_{in} / \tau)

    In InfoNCE a positive that is found holds its own negatives' gradient down, most of all where
    negatives are few; here it does not, so that small batches lose less. The price is a cost with
    no floor: it falls on after every query is answered, and is negative then.

    The weights are 1, or with sigma :math:`w_{ip} = 2 - e^{s_{ip}/\sigma} / \langle e^{s/\sigma}
    \rangle`, where the brackets are the mean over all positive pairs of the look-up, or of the whole one
    that it is `rows` of: near positives count less, and one that is :math:`n` times nearer than the mean, in
    that exponential, with :math:`n > 2` is pushed away.

    Args:
        lookup: Scores in [-1, 1] with their pair masks.
        temperature: :math:`\tau > 0`, dimensionless; 0.1 is usual. A tensor of one number gets a
            gradient.
        sigma: :math:`\sigma > 0`, in the unit of the scores, the width of the weights; 0.5 in DCLW.
            None for weights of 1.
        form: "dense", "chunked" or "auto", as for `info_nce`.

    Returns:
        Nats per query [queries], not reduced, and possibly negative. A query with no positive or
        no negative costs exactly 0 and sends no gradient.

    Raises:
        RangeError: If temperature or sigma is not a positive number.
        ShapeError: If temperature is a tensor of more than one number.
        ConfigError: If there is no such form.

    Example:
        Three candidates with equal scores: log 2, and log 3 for `info_nce`:

        >>> from querykey.lookup.lookup import Lookup
        >>> mask = torch.tensor([[True, False, False]])
        >>> decoupled(Lookup.from_scores(torch.zeros(1, 3), mask, ~mask), temperature=0.1)
        tensor([0.6931])

    Source:
        Yeh et al. 2022, "Decoupled contrastive learning", arXiv:2110.06848, sec. 3. The weights carry
        no gradient here: with one, each query's cost would pull at the positives of all others, and
        what weighs would be learned. The released code lets the gradient through them, and adds
        the two views' means, which is twice the mean over queries.
    """
    check_temperature("temperature", temperature)
    if sigma is not None and not LOWEST <= sigma < math.inf:
        raise RangeError(
            f"sigma must be > 0 and finite, or None for equal weights, got {sigma}; 0.5 is usual"
        )
    if form != "dense" and takes_chunked(lookup, form):
        return _chunked(lookup, temperature, sigma)
    scores, is_positive, is_negative = scores_and_masks(lookup)
    logits = scores / temperature
    with torch.no_grad():
        positive = as_numbers(is_positive, scores.dtype)
        negative = as_numbers(is_negative, scores.dtype)
        top, log_total, weights = softmax(logits, negative)
        count = positive.sum(dim=1, keepdim=True)
        has_both = (count > 0) * negative.amax(dim=1, keepdim=True)
        share = positive / count.clamp(min=1.0) * has_both
        if sigma is not None:
            above = (scores / sigma - log_mean_of_positives(lookup, sigma)).add_(penalty(positive))
            share *= above.clamp_(min=NOTHING).exp_().neg_().add_(2.0)
        value = (log_total + top) * has_both - (logits * share).sum(dim=1, keepdim=True)
        weights = weights.mul_(has_both).sub_(share)
    return weigh(logits, value[:, 0], weights)


def _chunked(lookup: Lookup, temperature: float | Tensor, sigma: float | None) -> PerQuery:
    views = two_views(lookup, temperature)
    if views is None:
        weight = (
            None if sigma is None else (_number(temperature) / sigma, log_mean_of_positives(lookup, sigma))
        )
        terms = Positives(lookup.pairs, is_decoupled=True, weight=weight)
        return softmax_of_blocks(lookup, temperature, terms)
    pull = views.positive
    if sigma is not None:
        above = views.all_positives.detach() * (_number(temperature) / sigma)
        log_mean = above.logsumexp(dim=0) - math.log(len(above))
        pull = pull * (2.0 - (pull.detach() * (_number(temperature) / sigma) - log_mean).exp())
    # 1 in place of an empty sum: its logarithm is not used, but must be finite.
    has_negative = views.negatives > 0
    return torch.where(has_negative, views.negatives.where(has_negative, 1.0).log() - pull, 0.0)


def _number(temperature: float | Tensor) -> float | Tensor:
    return temperature.detach() if isinstance(temperature, Tensor) else temperature
