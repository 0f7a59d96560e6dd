"""InfoNCE averages the log-probability over positives; NCA takes the log of their summed probability."""

import math

import torch
from torch import Tensor

from querykey.errors import RangeError, ShapeError
from querykey.lookup.lookup import Lookup
from querykey.lookup.two_view_pairs import look_up_views
from querykey.lookup.unit_length import unit_length
from querykey.losses._pair_weights import as_numbers, scores_and_masks, softmax, weigh
from querykey.losses.streaming import Form, takes_chunked
from querykey.losses.streaming_blocks import Positives, softmax_of_blocks
from querykey.losses.streaming_views import two_views
from querykey.types import Ids, PerQuery, Rows

__all__ = [
    "info_nce",
    "nca",
    "nt_xent",
]


LOWEST = 1e-20
"""The lowest temperature: logits stay far below `FAR`, which stands for infinity."""


def info_nce(lookup: Lookup, *, temperature: float | Tensor, form: Form = "auto") -> PerQuery:
    r"""Cross-entropy of telling each query's positive keys from its other keys.

    With :math:`P_i` the positives of query *i*, :math:`A_i` all its positives and
    negatives, and :math:`s` the scores,

    .. math:: \ell_i = -\frac{1}{|P_i|} \sum_{p \in P_i}
              \log \frac{\exp(s_{ip} / \tau)}{\sum_{a \in A_i} \exp(s_{ia} / \tau)}

    One positive per query gives the loss of MoCo and SimCLR; labels give SupCon. With
    :math:`n` positives it cannot go below :math:`\log n`: they share the probability.

    Args:
        lookup: Scores in [-1, 1] with their pair masks.
        temperature: :math:`\tau > 0`, dimensionless. Small values weigh the hardest
            negatives most: MoCo uses 0.07, SimCLR 0.1 to 0.5. A tensor of one number gets
            a gradient; keep it positive by learning its logarithm.
        form: "dense" holds all scores at once. "chunked" walks them, with memory that grows with
            queries plus keys, and is faster where they are many. "auto" goes by `is_chunked`.

    Returns:
        Nats per query [queries], not reduced. A query with no positive costs exactly 0 and
        sends no gradient; average over `lookup.positive.any(1)` to leave it out.

    Raises:
        RangeError: If temperature is not a positive number.
        ShapeError: If temperature is a tensor of more than one number.
        ConfigError: If there is no such form.

    Example:
        Two equal candidates cost one bit:

        >>> from querykey.lookup.lookup import Lookup
        >>> mask = torch.tensor([[True, False]])
        >>> info_nce(Lookup.from_scores(torch.zeros(1, 2), mask, ~mask), temperature=0.1)
        tensor([0.6931])

    Source:
        van den Oord et al. 2018, arXiv:1807.03748, eq. 4 (one positive); Khosla et al. 2020,
        arXiv:2004.11362, eq. 2, "out" (many positives). The released code of the latter
        multiplies by temperature / 0.07; the paper does not, and neither do we.
    """
    check_temperature("temperature", temperature)
    if form != "dense" and takes_chunked(lookup, form):
        views = two_views(lookup, temperature)
        if views is not None:
            return torch.log1p(views.negatives * (-views.positive).exp())
        return softmax_of_blocks(lookup, temperature, Positives(lookup.pairs))
    scores, is_positive, is_negative = scores_and_masks(lookup)
    logits = scores / temperature
    with torch.no_grad():
        positive = as_numbers(is_positive, scores.dtype)
        top, log_total, weights = softmax(logits, as_numbers(is_positive | is_negative, scores.dtype))
        count = positive.sum(dim=1, keepdim=True)
        has_positive = (count > 0).to(scores.dtype)
        share = positive.div_(count.clamp(min=1.0))
        # The top goes out first: a loss near 0 keeps its digits.
        value = log_total + (top - (logits * share).sum(dim=1, keepdim=True))
        weights = weights.mul_(has_positive).sub_(share)
    return weigh(logits, (value * has_positive)[:, 0], weights)


def nca(lookup: Lookup, *, temperature: float | Tensor) -> PerQuery:
    r"""Cross-entropy of picking any of a query's positive keys from all of its keys.

    With :math:`P_i` the positives of query *i*, :math:`A_i` all its positives and negatives,
    and :math:`s` the scores,

    .. math:: \ell_i = -\log \frac{\sum_{p \in P_i} \exp(s_{ip} / \tau)}
              {\sum_{a \in A_i} \exp(s_{ia} / \tau)}

    Finding one positive is enough: a far one is not pulled, where `info_nce` pulls each. That suits
    broad or noisy classes; with one positive the two are the same.

    Args:
        lookup: Scores in [-1, 1] with their pair masks.
        temperature: :math:`\tau > 0`, dimensionless; 0.05 to 0.1 is usual. A tensor of one number
            gets a gradient.

    Returns:
        Nats per query [queries], not reduced, at least 0. A query with no positive costs exactly 0
        and sends no gradient.

    Raises:
        RangeError: If temperature is not a positive number.
        ShapeError: If temperature is a tensor of more than one number.

    Example:
        Two positives and two negatives alike: one bit.

        >>> from querykey.lookup.lookup import Lookup
        >>> mask = torch.tensor([[True, True, False, False]])
        >>> nca(Lookup.from_scores(torch.zeros(1, 4), mask, ~mask), temperature=0.1)
        tensor([0.6931])

    Source:
        Goldberger et al. 2004, "Neighbourhood components analysis", eq. 1 and 6, the logarithm of;
        over a memory: Wu et al. 2018, arXiv:1808.04699, eq. 4 to 6.
    """
    check_temperature("temperature", temperature)
    scores, is_positive, is_negative = scores_and_masks(lookup)
    logits = scores / temperature
    with torch.no_grad():
        top, log_total, weights = softmax(logits, as_numbers(is_positive | is_negative, scores.dtype))
        positive = as_numbers(is_positive, scores.dtype)
        best, log_found, found = softmax(logits, positive)
        has_positive = positive.amax(dim=1, keepdim=True)  # `any` of a mask takes ten times as long
        value = ((log_total - log_found) + (top - best)) * has_positive
        weights = weights.mul_(has_positive).sub_(found)
    return weigh(logits, value[:, 0], weights)


def check_temperature(name: str, temperature: float | Tensor) -> None:
    """Refuse what cannot divide scores.

    A learned temperature is not read: that would make every step wait for the device.

    Raises:
        RangeError: If it is not a positive number, or so small that float32 does not hold its inverse.
        ShapeError: If it is a tensor of more than one number, or of more than two dimensions.
    """
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1 or temperature.ndim > 2:
            raise ShapeError(
                f"{name} has shape {list(temperature.shape)}; a learned one is a tensor of one number"
            )
    elif not 0.0 < temperature < math.inf:
        raise RangeError(f"{name} must be > 0 and finite, got {temperature}; 0.05 to 0.5 is usual")
    elif temperature < LOWEST:
        raise RangeError(
            f"{name} must be at least {LOWEST:g}, got {temperature}: float32 does not hold the logits; "
            "0.05 to 0.5 is usual"
        )


def nt_xent(
    view_1: Rows,
    view_2: Rows,
    *,
    temperature: float | Tensor,
    ids: Ids | None = None,
    normalised: bool = True,
    form: Form = "auto",
) -> PerQuery:
    r"""Cross-entropy of finding an image's other view among all rows of both views.

    With :math:`z` the 2B rows of both views, scaled to length 1, and :math:`j = (i + B) \bmod 2B`,

    .. math:: \ell_i = -\log \frac{\exp(z_i \cdot z_j / \tau)}{\sum_{k \ne i} \exp(z_i \cdot z_k / \tau)}

    It is `info_nce` over `look_up_views`. The average does not change when the images are
    permuted or the views swapped; the gradient of a row is at right angles to the row, for its
    length does not count; rows that say nothing cost about :math:`\log(2B - 1)`.

    Args:
        view_1: Projections [B, dim] of one view; they need not have length 1.
        view_2: Projections [B, dim] of another view of the same images in the same order.
        temperature: :math:`\tau > 0`, dimensionless. SimCLR uses 0.1 on ImageNet with batches of
            4096, 0.5 on CIFAR-10. A tensor of one number gets a gradient.
        ids: Which item each image is, where an item may be in the batch twice: its further rows
            leave the sum. None: each image its own.
        normalised: False takes the rows as they are, so that scores are dot products: the
            ablation of SimCLR's Table 5, at temperatures of 10 and 100.
        form: "dense", "chunked" or "auto", as for `info_nce`. Chunked, each score is computed once
            for both of its rows, and none is kept.

    Returns:
        Nats per row [2B], view 1 first, not reduced. A batch of one image has no negatives and
        costs 0. Computed in float32 at least, under autocast too.

    Raises:
        RangeError: If temperature is not a positive number.
        ShapeError: If the views differ in shape, ids do not number B, or temperature is a tensor of
            more than one number.
        ConfigError: If there is no such form.

    Example:
        Four rows that cannot be told apart cost log 3 each:

        >>> nt_xent(torch.ones(2, 8), torch.ones(2, 8), temperature=0.5)
        tensor([1.0986, 1.0986, 1.0986, 1.0986])

    Source:
        Chen et al. 2020, arXiv:2002.05709, eq. 1 and algorithm 1: the mean over the 2B rows. The
        released code adds the means of the two views, which is twice that; take the mean.
    """
    # Autocast would take the scores to 3 digits, and a temperature of 0.1 a tenth of that again.
    with torch.autocast(view_1.device.type, enabled=False):
        rows = [view.float() if view.element_size() < 4 else view for view in (view_1, view_2)]
        if normalised:
            rows = [unit_length(view) for view in rows]
        return info_nce(look_up_views(*rows, ids=ids), temperature=temperature, form=form)
