"""Classify by the nearest rows of a bank."""

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional as F

from querykey.errors import DataError, RangeError, ShapeError
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.lookup.nearest import TIE, nearest, rough_cosines
from querykey.types import Keys, Neighbours, PerQuery, Queries, QueryLabels, TopScores

__all__ = ["knn_correct", "knn_predict"]

AnyLabels = Int64[Tensor, " ..."]
"""One a row; the number is checked, with a message, and not by the type."""

VOTE_ELEMENTS = 2**22
"""Neighbours that vote at once: 16 MB of votes at most, whatever the number of classes."""
EPSILON = torch.finfo(torch.float32).eps


def knn_predict(
    bank: Keys, bank_labels: AnyLabels, queries: Queries, *, k: int = 10, temperature: float = 0.1
) -> QueryLabels:
    r"""Give each query the class that its k nearest bank rows vote for, the near ones louder.

    .. math:: \arg\max_c \sum_{j \in \text{nearest } k} [y_j = c] \, \exp(s_j / \tau)

    Classes are those of the bank; no matrix of rows x classes and none of queries x bank is held. Votes are
    counted by the scores of float32 products first; where the rounding of a score, or of the last place
    among the k, could elect another class, the exact neighbours of `nearest` vote again.

    Args:
        bank: [keys, dim], scored by cosine.
        bank_labels: Class of each bank row, any integers; rows labelled -1 don't vote.
        queries: [queries, dim].
        k: Neighbours that vote, at least 1; at most the bank's labelled rows do.
        temperature: :math:`\tau > 0`, dimensionless. 0.1 and 0.07 are in use and give other
            numbers, so it belongs in the record.

    Returns:
        A class per query [queries]. Of classes with equal votes, the one with the nearest row.

    Raises:
        RangeError: If k or temperature is not positive.
        ShapeError: If labels and rows differ in number.
        DataError: If no bank row is labelled.

    Example:
        >>> bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
        >>> knn_predict(bank, torch.tensor([4, 7, 7]), torch.tensor([[0.9, 0.1]]), k=1)
        tensor([4])

    Source:
        Wu et al. 2018, arXiv:1805.01978, sec. 3.4, with temperature 0.07 and k = 200 there.
    """
    if k < 1 or temperature <= 0:
        raise RangeError(f"k must be at least 1 and temperature above 0, got {k} and {temperature}")
    if len(bank) != len(bank_labels):
        raise ShapeError(f"the bank has {len(bank)} rows and {len(bank_labels)} labels; it needs one each")
    labelled = bank_labels != IGNORE_LABEL
    if not labelled.any():
        raise DataError("no row of the bank is labelled, so no neighbour can vote; give labels of the bank")
    if not labelled.all():
        bank, bank_labels = bank[labelled], bank_labels[labelled]
    k = min(k, len(bank))
    if not len(queries):
        return bank_labels[:0]
    classes: Tensor
    classes, members = torch.unique(bank_labels, return_inverse=True)
    scores, index = rough_cosines(queries, bank, min(k + 1, len(bank)))
    size = max(1, VOTE_ELEMENTS // k)
    parts = [
        _elect_roughly(scores[i : i + size], members[index[i : i + size]], k, temperature)
        for i in range(0, len(queries), size)
    ]
    elected = torch.cat([elected for elected, _ in parts])
    unsure = (~torch.cat([is_sure for _, is_sure in parts])).nonzero()[:, 0]
    for start in range(0, len(unsure), size):
        some = unsure[start : start + size]
        scores, index = nearest(queries[some], bank, k)
        elected[some] = _elect(scores, members[index], temperature)
    return classes[elected]


def knn_correct(
    bank: Keys,
    bank_labels: AnyLabels,
    queries: Queries,
    labels: AnyLabels,
    *,
    k: int = 10,
    temperature: float = 0.1,
) -> PerQuery:
    """Whether `knn_predict` gives each query its class.

    Args:
        bank: [keys, dim].
        bank_labels: Class of each bank row, -1 where unknown.
        queries: [queries, dim].
        labels: Class of each query, -1 where unknown. A class that the bank doesn't have is
            never given, and so counts as wrong.
        k: Neighbours that vote, at least 1.
        temperature: Above 0, dimensionless.

    Returns:
        0 or 1 per query; NaN where its class isn't known.

    Raises:
        RangeError: If k or temperature is not positive.
        ShapeError: If labels and rows differ in number.
        DataError: If no bank row is labelled.

    Example:
        >>> rows = torch.eye(2)
        >>> knn_correct(rows, torch.tensor([0, 1]), rows, torch.tensor([0, -1]), k=1)
        tensor([1., nan])
    """
    if len(queries) != len(labels):
        raise ShapeError(f"there are {len(queries)} queries and {len(labels)} labels; one each is needed")
    predicted = knn_predict(bank, bank_labels, queries, k=k, temperature=temperature)
    return (predicted == labels).float().masked_fill(labels == IGNORE_LABEL, torch.nan)


def _elect(scores: TopScores, members: Neighbours, temperature: float) -> QueryLabels:
    """The class with most votes; of equals, the one with the nearest row."""
    columns, votes = _votes(scores, members, temperature)
    winner = votes.gather(1, columns).argmax(dim=1, keepdim=True)
    return members.gather(1, winner)[:, 0]


def _elect_roughly(scores: Tensor, members: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """(class, whether exact scores could not elect another) by scores within `TIE` of the truth.

    There is one neighbour more than k, where the bank has one: it tells whether the k nearest could be
    others. If so, each of the k that could be left out is counted as lost by the first class and as won
    by the second.
    """
    last, best = scores[:, k - 1], scores[:, 0]
    lost = torch.zeros(len(scores), dtype=torch.float64)
    if scores.shape[1] > k:
        could_go = (scores[:, :k] <= last[:, None] + 2 * TIE).sum(dim=1)
        most = torch.exp((last + 4 * TIE - best).double() / temperature)
        lost = torch.where(scores[:, k] >= last - 2 * TIE, could_go * most, lost)
    columns, votes = _votes(scores[:, :k], members[:, :k], temperature)
    first, second = F.pad(votes, (0, 1)).topk(2, dim=1).values.double().T
    winner = votes.gather(1, columns).argmax(dim=1, keepdim=True)
    rounding = torch.tensor(TIE / temperature, dtype=torch.float64).exp() * (1 + k * EPSILON)
    is_sure = first / rounding - lost > second * rounding + lost
    return members.gather(1, winner)[:, 0], is_sure


def _votes(scores: TopScores, members: Neighbours, temperature: float) -> tuple[Neighbours, Tensor]:
    """(the column of each neighbour's class, the votes of each column [queries, at most k])."""
    weights = torch.exp((scores - scores[:, :1]) / temperature)
    width = int(members.max()) + 1
    if width > members.shape[1]:  # many classes: a query's own ones, numbered anew
        ordered, order = members.sort(dim=1)
        numbers = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0)).cumsum(dim=1)
        members, width = torch.empty_like(members).scatter_(1, order, numbers), members.shape[1]
    return members, torch.zeros(len(scores), width).scatter_add_(1, members, weights)
