"""Classify by the nearest rows of a bank."""

import torch
from jaxtyping import Int64
from torch import Tensor

from querykey.errors import DataError, RangeError, ShapeError
from querykey.lookup import UNLABELLED
from querykey.nearest import nearest
from querykey.types import KeyLabels, Keys, Neighbours, PerQuery, Queries, QueryLabels, TopScores

__all__ = ["knn_correct", "knn_predict"]

AnyLabels = Int64[Tensor, " ..."]
"""One a row; the number is checked, with a message, and not by the type."""

VOTE_ELEMENTS = 2**22
"""Pairs of neighbours compared at once: 16 MB of votes, whatever the number of classes."""


def knn_predict(
    bank: Keys, bank_labels: AnyLabels, queries: Queries, *, k: int = 10, temperature: float = 0.1
) -> QueryLabels:
    r"""Give each query the class that its k nearest bank rows vote for, the near ones louder.

    .. math:: \arg\max_c \sum_{j \in \text{nearest } k} [y_j = c] \, \exp(s_j / \tau)

    Classes are those of the bank; no matrix of rows x classes and none of queries x bank is held.

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
    labelled = bank_labels != UNLABELLED
    if not labelled.any():
        raise DataError("no row of the bank is labelled, so no neighbour can vote; give labels of the bank")
    if not labelled.all():
        bank, bank_labels = bank[labelled], bank_labels[labelled]
    k = min(k, len(bank))
    scores, index = nearest(queries, bank, k)
    size = max(1, VOTE_ELEMENTS // k**2)
    parts = [
        _elect(scores[i : i + size], index[i : i + size], bank_labels, temperature)
        for i in range(0, len(queries), size)
    ]
    return torch.cat(parts) if parts else bank_labels[:0]


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
    return (predicted == labels).float().masked_fill(labels == UNLABELLED, torch.nan)


def _elect(scores: TopScores, index: Neighbours, bank_labels: KeyLabels, temperature: float) -> QueryLabels:
    votes = torch.exp((scores - scores[:, :1]) / temperature)
    candidates = bank_labels[index]
    alike = candidates[:, :, None] == candidates[:, None, :]  # [queries, k, k]
    winner = (alike * votes[:, None, :]).sum(dim=2).argmax(dim=1, keepdim=True)
    return candidates.gather(1, winner)[:, 0]
