"""Noise-contrastive estimation: is a key the query's own item, or drawn as noise?"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.errors import RangeError, ShapeError
from querykey.lookup.lookup import Lookup
from querykey.losses._pair_weights import as_numbers, penalty, scores_and_masks, weigh
from querykey.losses.info_nce import check_temperature
from querykey.types import PerQuery

__all__ = ["nce", "nce_normaliser"]


def nce(
    lookup: Lookup, *, temperature: float | Tensor, normaliser: float | Tensor, noise_items: int
) -> PerQuery:
    r"""Binary cross-entropy of the query's own item against noise, one key at a time.

    With a fixed normaliser *Z* the model gives item *k* the probability
    :math:`P_{ik} = \exp(s_{ik} / \tau) / Z`. With :math:`K_i` negatives drawn uniformly from *N*
    items, a key that is seen is the query's own with probability
    :math:`h_{ik} = P_{ik} / (P_{ik} + K_i / N)`, and

    .. math:: \ell_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \log h_{ip} - \sum_{n \in N_i} \log (1 - h_{in})

    As :math:`\log h = -\log(1 + e^{-a})` with :math:`a = s / \tau - \log Z - \log(K_i / N)`, nothing
    is divided by a small number and no constant is added to keep it from 0.

    `info_nce` asks which of the keys is the own one and needs no Z; this asks of each key alone.

    Args:
        lookup: Scores in [-1, 1] with their pair masks; negatives are the noise that was drawn.
        temperature: :math:`\tau > 0`, dimensionless: 0.07 on ImageNet, 0.1 on CIFAR-10. A tensor of one
            number gets a gradient.
        normaliser: :math:`Z > 0`, as `nce_normaliser` gives it for the first batch; it gets no
            gradient. A tensor of one number is not read.
        noise_items: N, how many items noise is drawn from, at least 1.

    Returns:
        Nats per query [queries], not reduced; a sum over the negatives. A query with no positive or
        with no negative costs exactly 0 and sends no gradient.

    Raises:
        RangeError: If temperature, normaliser or noise_items is not positive.
        ShapeError: If temperature or normaliser is a tensor of more than one number.

    Example:
        Two items, one drawn as noise, and P = K / N for both: two bits.

        >>> from querykey.lookup.lookup import Lookup
        >>> mask = torch.tensor([[True, False]])
        >>> found = Lookup.from_scores(torch.zeros(1, 2), mask, ~mask)
        >>> nce(found, temperature=0.1, normaliser=2.0, noise_items=2)
        tensor([1.3863])

    Source:
        Wu et al. 2018, arXiv:1805.01978, eq. 4 to 7; the sum over the noise stands for eq. 7's m times an
        expectation. There each query draws noise of its own; a look-up whose queries share one draw
        estimates the same expectation, with errors that are alike for all queries of a batch.
    """
    check_temperature("temperature", temperature)
    _check_normaliser(normaliser)
    _check_items("noise_items", noise_items)
    scores, is_positive, is_negative = scores_and_masks(lookup)
    logits = scores / temperature
    with torch.no_grad():
        positive, negative = (as_numbers(mask, scores.dtype) for mask in (is_positive, is_negative))
        positives, drawn = (mask.sum(dim=1, keepdim=True) for mask in (positive, negative))
        has_both = (positives.clamp(max=1.0) * drawn.clamp(max=1.0)).to(scores.dtype)
        # before it is rounded: exp(1 / .0115), of two equal unit rows, is beyond float32
        log_z: float | Tensor
        if isinstance(normaliser, Tensor):
            log_z = normaliser.to(torch.promote_types(normaliser.dtype, scores.dtype)).log().to(scores)
        else:
            log_z = math.log(normaliser)
        right = logits - (log_z + (drawn.clamp(min=1.0) / noise_items).log())
        share = positive.div(positives.clamp(min=1.0)).add_(negative).mul_(has_both)
        sign = positive.mul_(2.0).sub_(1.0)
        right.mul_(sign)
        value = -(F.logsigmoid(right) * share).sum(dim=1)
        weights = right.neg_().sigmoid_().mul_(share).mul_(sign).neg_()
    return weigh(logits, value, weights)


def nce_normaliser(
    lookup: Lookup, *, temperature: float | Tensor, items: int, processes: ProcessGroup = SINGLE_PROCESS
) -> Tensor:
    r"""An estimate of the normaliser of `nce`: N times the mean of exp(s / tau) over the pairs.

    .. math:: Z = \frac{N}{M} \sum_{i, k} \exp(s_{ik} / \tau)

    over the *M* pairs that are positive or negative. It is taken once, of the first batch, and kept: a
    first batch that is unlike the others scales the probabilities of the whole run.

    Args:
        lookup: Scores with their pair masks.
        temperature: :math:`\tau > 0`, the one of the loss.
        items: N, at least 1.
        processes: Over which the pairs are parted; each gives the look-up of its own queries.

    Returns:
        A float64 tensor of one number [] on the CPU, without gradient, the same on all processes; 0 where no
        pair counts. At temperatures below about 0.0015 it is beyond float64 too, and refused.

    Raises:
        RangeError: If temperature or items is not positive, or the temperature so low that Z is not finite.
        ShapeError: If temperature is a tensor of more than one number.

    Example:
        >>> from querykey.lookup.lookup import Lookup
        >>> mask = torch.tensor([[True, False]])
        >>> found = Lookup.from_scores(torch.zeros(1, 2), mask, ~mask)
        >>> round(float(nce_normaliser(found, temperature=0.1, items=50)), 3)
        50.0

    Source:
        Wu et al. 2018, arXiv:1805.01978, eq. 8. The mean is over the own item and the noise, as in the
        released code.
    """
    check_temperature("temperature", temperature)
    _check_items("items", items)
    scores, positive, negative = scores_and_masks(lookup)  # with its graph: the look-up keeps it for the loss
    with torch.no_grad():
        takes_part = as_numbers(positive | negative, scores.dtype)
        logits = (scores / temperature).add_(penalty(takes_part))
        log_sum, pairs = torch.logsumexp(logits.flatten(), dim=0), takes_part.sum()
        if processes.world_size > 1:
            total, every = processes.sum(torch.stack([log_sum.double().exp(), pairs.double()]))
            log_sum, pairs = total.log(), every
        # on the CPU: some accelerators have no float64
        log_mean = log_sum.cpu().double() - pairs.cpu().clamp(min=1.0).log()
        found = (log_mean + math.log(items)).exp()
    if not bool(found.isfinite()):
        raise RangeError(
            f"at temperature {float(temperature):.3g} the normaliser is beyond float64; "
            "raise the temperature: 0.07 to 0.1 is usual"
        )
    return found


def _check_items(name: str, items: int) -> None:
    if not items >= 1:
        raise RangeError(f"{name} must be at least 1, got {items}; it is the number of items")
    if items >= 2**63:
        raise RangeError(f"{name} must be below 2^63, got {items}; it is the number of items")


def _check_normaliser(normaliser: float | Tensor) -> None:
    if isinstance(normaliser, Tensor):
        if normaliser.numel() != 1:
            raise ShapeError(f"normaliser has shape {list(normaliser.shape)}; it is a tensor of one number")
    elif not 0.0 < normaliser < math.inf:
        raise RangeError(
            f"normaliser must be > 0 and finite, got {normaliser}; nce_normaliser of the first batch gives it"
        )
