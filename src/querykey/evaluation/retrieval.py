"""Retrieval metrics: one number per query from its ranking, NaN without a relevant key.

Each takes a `Ranking`; `measure_rankings` computes all of them in one pass over a look-up.
"""

import torch

from querykey.evaluation.ranking import Ranking
from querykey.types import PerQuery

__all__ = ["average_precision_at_r", "hit_at", "ndcg_at", "r_precision", "recall_at", "reciprocal_rank"]


def hit_at(ranking: Ranking, k: int) -> PerQuery:
    r"""Whether one of the k nearest keys is relevant: what metric learning calls Recall@k.

    .. math:: \max_{i \le k} [\text{key } i \text{ is relevant}]

    Args:
        ranking: Of depth k or more.
        k: Number of keys, at least 1.

    Returns:
        0 or 1 per query; NaN where no key is relevant.

    Raises:
        RangeError: If the ranking is less than k deep.

    Example:
        >>> found = Ranking(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
        >>> hit_at(found, 1), hit_at(found, 2)
        (tensor([0.]), tensor([1.]))

    Source:
        Wang et al. 2020, arXiv:1912.06798, sec. 4 (Recall@k of XBM). `recall_at` is the fraction of
        the relevant keys that are found, the definition of information retrieval.
    """
    return _or_nan(ranking.first(k).hits.any(dim=1).float(), ranking)


def recall_at(ranking: Ranking, k: int) -> PerQuery:
    r"""The fraction of a query's relevant keys that are among its k nearest.

    .. math:: \frac{1}{R} \sum_{i \le k} [\text{key } i \text{ is relevant}]

    Args:
        ranking: Of depth k or more.
        k: Number of keys, at least 1. If R is above k, 1 can't be reached.

    Returns:
        In [0, 1] per query; NaN where no key is relevant.

    Raises:
        RangeError: If the ranking is less than k deep.

    Example:
        >>> found = Ranking(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([2]))
        >>> recall_at(found, 2)
        tensor([0.5000])

    Source:
        Thakur et al. 2021, arXiv:2104.08663 (BEIR), as trec_eval's recall.
    """
    return _or_nan(ranking.first(k).hits.sum(dim=1) / ranking.relevant.clamp(min=1), ranking)


def r_precision(ranking: Ranking) -> PerQuery:
    r"""The fraction of relevant keys among the R nearest, where R keys are relevant.

    .. math:: \frac{1}{R} \sum_{i \le R} [\text{key } i \text{ is relevant}]

    Args:
        ranking: Of the depth of the largest R, as `rankings` makes it.

    Returns:
        In [0, 1] per query; NaN where no key is relevant.

    Raises:
        RangeError: If the ranking is less than R deep.

    Example:
        >>> found = Ranking(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([2]))
        >>> r_precision(found)
        tensor([0.5000])

    Source:
        Musgrave et al. 2020, arXiv:2003.08505, sec. 3.3.
    """
    hits, _ = _within_r(ranking)
    return _or_nan(hits.sum(dim=1) / ranking.relevant.clamp(min=1), ranking)


def average_precision_at_r(ranking: Ranking) -> PerQuery:
    r"""MAP@R: R-precision that also rewards relevant keys for being first.

    .. math:: \frac{1}{R} \sum_{i \le R} P(i) \, [\text{key } i \text{ is relevant}]

    with the precision :math:`P(i)` among the first i keys.

    Args:
        ranking: Of the depth of the largest R, as `rankings` makes it.

    Returns:
        In [0, 1] per query, at most `r_precision`; NaN where no key is relevant.

    Raises:
        RangeError: If the ranking is less than R deep.

    Example:
        >>> found = Ranking(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([2]))
        >>> average_precision_at_r(found)
        tensor([0.2500])

    Source:
        Musgrave et al. 2020, arXiv:2003.08505, eq. 4 and 5.
    """
    hits, ranks = _within_r(ranking)
    precision = hits.cumsum(dim=1) / ranks
    return _or_nan((precision * hits).sum(dim=1) / ranking.relevant.clamp(min=1), ranking)


def reciprocal_rank(ranking: Ranking, k: int = 10) -> PerQuery:
    r"""MRR@k: one over the rank of the first relevant key, 0 if that is above k.

    .. math:: \frac{1}{\min \{ i \le k : \text{key } i \text{ is relevant} \}}

    Args:
        ranking: Of depth k or more.
        k: Number of keys, at least 1.

    Returns:
        In [0, 1] per query; NaN where no key is relevant.

    Raises:
        RangeError: If the ranking is less than k deep.

    Example:
        >>> found = Ranking(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
        >>> reciprocal_rank(found, 2)
        tensor([0.5000])

    Source:
        MS MARCO's MRR@10, Bajaj et al. 2016, arXiv:1611.09268.
    """
    hits = ranking.first(k).hits
    ranks = torch.arange(1, k + 1)
    return _or_nan((hits / ranks).max(dim=1).values, ranking)


def ndcg_at(ranking: Ranking, k: int = 10) -> PerQuery:
    r"""NDCG@k: the discounted gain of the k nearest keys over that of the ideal order.

    .. math:: \frac{\sum_{i \le k} g_i / \log_2(i + 1)}{\sum_{i \le k} g^*_i / \log_2(i + 1)}

    with :math:`g_i` the grade of key i and :math:`g^*` all grades of the query in descending order. The gain
    is the grade itself, as in trec_eval and BEIR; :math:`2^g - 1` gives other numbers.

    Args:
        ranking: Of depth k or more.
        k: Number of keys, at least 1.

    Returns:
        In [0, 1] per query; NaN where no key is relevant.

    Raises:
        RangeError: If the ranking is less than k deep.

    Example:
        >>> found = Ranking(torch.tensor([[1.0, 3.0]]), torch.tensor([[3.0, 1.0]]), torch.tensor([2]))
        >>> ndcg_at(found, 2)
        tensor([0.7967])

    Source:
        Järvelin and Kekäläinen 2002; Thakur et al. 2021, arXiv:2104.08663 (BEIR).
    """
    cut = ranking.first(k)
    discount = 1.0 / torch.log2(torch.arange(2.0, k + 2.0))
    best = (cut.ideal * discount).sum(dim=1)
    return _or_nan((cut.grades * discount).sum(dim=1) / best, ranking)


def _within_r(ranking: Ranking) -> tuple[torch.Tensor, torch.Tensor]:
    """Hits at ranks up to R [queries, largest R], and the ranks from 1."""
    depth = max(1, int(ranking.relevant.max()))
    hits = ranking.first(depth).hits
    ranks = torch.arange(1, depth + 1)
    return hits & (ranks <= ranking.relevant[:, None]), ranks


def _or_nan(values: torch.Tensor, ranking: Ranking) -> PerQuery:
    return values.masked_fill(ranking.relevant == 0, torch.nan)
