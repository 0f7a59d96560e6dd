"""Losses that preserve the scores of the frozen model: they are the target, and no label is needed."""

import torch
from torch import Tensor

from querykey.lookup.lookup import Lookup
from querykey.losses._pair_weights import (
    as_numbers,
    read_target,
    require_same_size,
    scores_and_masks,
    softmax,
    softmax_of_all,
    weigh,
)
from querykey.losses.info_nce import check_temperature
from querykey.losses.margin import soft_triplets
from querykey.losses.streaming import Form, takes_chunked
from querykey.losses.streaming_blocks import Target, dot_product_rows, softmax_of_blocks
from querykey.types import PerQuery

__all__ = ["rank_loss", "score_difference", "score_distillation"]


def score_distillation(
    lookup: Lookup,
    target: Lookup,
    *,
    temperature: float | Tensor,
    target_temperature: float | None = None,
    form: Form = "auto",
) -> PerQuery:
    r"""KL divergence of each query's distribution over the keys from the frozen model's.

    With :math:`t` the target's scores and :math:`A_i` the pairs that are positive or negative in
    the target,

    .. math:: p_{ia} = \frac{e^{t_{ia} / \tau_t}}{\sum_{b \in A_i} e^{t_{ib} / \tau_t}}, \quad
              q_{ia} = \frac{e^{s_{ia} / \tau}}{\sum_{b \in A_i} e^{s_{ib} / \tau}}, \quad
              \ell_i = \sum_{a \in A_i} p_{ia} \log \frac{p_{ia}}{q_{ia}}

    This is InfoNCE with the frozen scores as soft positives, less the entropy of the target:
    the gradient is the cross-entropy's, and 0 means that nothing was lost.

    Args:
        lookup: Scores to be trained. Its pair masks are not read.
        target: Frozen scores of the same queries and keys; its masks say which pairs take
            part. It gets no gradient.
        temperature: :math:`\tau > 0`, dimensionless; a tensor of one number gets a gradient,
            through the trained scores alone. The adapter starts from 0.05.
        target_temperature: :math:`\tau_t > 0`; the same as temperature where not given.
        form: "dense", "chunked" or "auto", as for `info_nce`; of keys that are sharded over processes
            always dense.

    Returns:
        Nats per query [queries], not reduced, at least 0 up to rounding. A query of which no
        pair takes part costs exactly 0 and sends no gradient.

    Raises:
        RangeError: If a temperature is not a positive number.
        ShapeError: If the target is of another size.
        ConfigError: If there is no such form.

    Example:
        A target of probability 1 for one key, against two equal scores, costs one bit:

        >>> from querykey.lookup.lookup import Lookup
        >>> take_part = torch.tensor([[True, True]])
        >>> frozen, even = (Lookup.from_scores(torch.tensor([s]), take_part, ~take_part)
        ...                 for s in ([1.0, -1.0], [0.5, 0.5]))
        >>> score_distillation(even, frozen, temperature=0.05)
        tensor([0.6931])
        >>> score_distillation(frozen, frozen, temperature=0.05)
        tensor([0.])

    Source:
        Hinton et al. 2015, arXiv:1503.02531, sec. 2, over keys in place of classes. The factor
        :math:`\tau^2` of that paper is left out.
    """
    check_temperature("temperature", temperature)
    if target_temperature is not None:
        check_temperature("target_temperature", target_temperature)
    require_same_size(lookup, target)
    if form != "dense" and takes_chunked(lookup, form):
        with torch.no_grad():
            queries, keys = dot_product_rows(target)
            divisor = target_temperature or temperature
            frozen_logits = Lookup(queries / divisor, keys, target.pairs)
        return softmax_of_blocks(lookup, temperature, Target(frozen_logits))
    scores, _, _ = scores_and_masks(lookup, merges=True)
    logits, shard_group = scores / temperature, lookup.shard_group
    with torch.no_grad():
        frozen, pairs = read_target(lookup, target)
        frozen = frozen.to(scores.dtype) / (target_temperature or temperature)
        takes_part = as_numbers(pairs, scores.dtype)
        trained, wanted = (
            softmax_of_all(softmax(some, takes_part), shard_group) for some in (logits, frozen)
        )
        gap = frozen.sub_(logits).mul_(wanted.probability).sum(dim=1)
        value = (
            gap
            + (trained.top - wanted.top + trained.log_total - wanted.log_total)[:, 0] / shard_group.world_size
        )
        weights = trained.probability.sub_(wanted.probability)
    return weigh(logits, value, weights)


def score_difference(lookup: Lookup, target: Lookup) -> PerQuery:
    r"""Mean absolute difference of each query's scores from the frozen model's.

    With :math:`A_i` the pairs that are positive or negative in the target (the selected ones),

    .. math:: \ell_i = \frac{1}{|A_i|} \sum_{a \in A_i} |t_{ia} - s_{ia}|

    Args:
        lookup: Scores to be trained. Its pair masks are not read.
        target: Frozen scores of the same queries and keys; its masks say which pairs take
            part. It gets no gradient.

    Returns:
        Mean absolute difference per query [queries], in the unit of the scores, not reduced
        over queries. A query of which no pair takes part costs exactly 0 and sends no gradient.

    Raises:
        ShapeError: If the target is of another size.

    Example:
        >>> from querykey.lookup.lookup import Lookup
        >>> take_part = torch.tensor([[True, True]])
        >>> trained, frozen = (Lookup.from_scores(torch.tensor([s]), take_part, ~take_part)
        ...                 for s in ([0.5, 0.0], [1.0, 0.25]))
        >>> score_difference(trained, frozen)
        tensor([0.3750])

    Source:
        Zhang et al. 2025, "SMEC", arXiv:2510.12474, eq. 7, where the selected pairs are the
        top-k of the frozen scores. On its own it can end below the PCA it starts from.
    """
    scores, _, _ = scores_and_masks(lookup)
    with torch.no_grad():
        frozen, pairs = read_target(lookup, target)
        share = as_numbers(pairs, scores.dtype)
        share /= share.sum(dim=1, keepdim=True).clamp(min=1.0)
        difference = scores - frozen.to(scores.dtype)
        value = (difference.abs() * share).sum(dim=1)
        weights = difference.sign_().mul_(share)
    return weigh(scores, value, weights)


def rank_loss(lookup: Lookup) -> PerQuery:
    r"""How often, softly, a query's negatives score above its positives.

    .. math:: \ell_i = \frac{1}{|P_i| |N_i|} \sum_{p \in P_i} \sum_{n \in N_i}
              \log(1 + e^{s_{in} - s_{ip}})

    Args:
        lookup: Scores in [-1, 1] with their pair masks: in the batch, a query's own document
            is positive and the others negative.

    Returns:
        Nats per query [queries], not reduced. A query without positives or without negatives
        costs exactly 0 and sends no gradient.

    Example:
        >>> from querykey.lookup.lookup import Lookup
        >>> mask = torch.tensor([[True, False]])
        >>> rank_loss(Lookup.from_scores(torch.tensor([[0.5, 0.5]]), mask, ~mask))
        tensor([0.6931])

    Source:
        Zhang et al. 2025, "SMEC", arXiv:2510.12474, eq. 8.
    """
    return soft_triplets(*scores_and_masks(lookup), margin=0.0)
