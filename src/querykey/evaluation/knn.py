"""Weighted kNN: classify queries by the nearest rows of a bank."""

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional as F

from querykey.distributed.process_group import in_default_torch_state
from querykey.errors import DataError, RangeError, ShapeError
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.lookup.nearest import in_fast_blocks, nearest, rough_cosines
from querykey.types import Keys, Neighbours, PerQuery, Queries, QueryLabels, TopScores

__all__ = ["knn_correct", "knn_predict"]

AnyLabels = Int64[Tensor, " ..."]
"""One a row; the number is checked, with a message, and not by the type."""

VOTE_ELEMENTS = 2**22
"""Neighbours that vote at once: 16 MB of votes at most, whatever the number of classes."""
EPSILON = torch.finfo(torch.float32).eps


@in_default_torch_state
def knn_predict(
    bank: Keys, bank_labels: AnyLabels, queries: Queries, *, k: int = 10, temperature: float = 0.1
) -> QueryLabels:
    r"""Give each query the class that its k nearest bank rows vote for, weighted by similarity.

    .. math:: \arg\max_c \sum_{j \in \text{nearest } k} [y_j = c] \, \exp(s_j / \tau)

    Classes are those of the bank; no matrix of rows x classes and none of queries x bank is stored. Votes are
    counted by the scores of fast products first: bfloat16 where this machine has it, then float32. Where the
    rounding of a score, or of the last place among the k, could elect another class, the exact neighbours of
    `nearest` vote again, so the class is that of the equation.

    Args:
        bank: [keys, dim], scored by cosine.
        bank_labels: Class of each bank row, any integers; rows labelled -1 don't vote.
        queries: [queries, dim].
        k: Neighbours that vote, at least 1; at most the bank's labelled rows do.
        temperature: :math:`\tau > 0`, dimensionless. 0.1 and 0.07 are in use and give other
            scores, so it belongs in the record.

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
    elected = in_fast_blocks(
        queries, bank, lambda at, dtype: _elected(queries[at], bank, members, k, temperature, dtype)
    )
    return classes[torch.cat(elected)]


@in_default_torch_state
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


def _elected(
    queries: Tensor, bank: Tensor, members: Tensor, k: int, temperature: float, dtype: torch.dtype
) -> tuple[Tensor, float]:
    """(class per query, share of queries whose votes are settled by scores in `dtype`).

    The others vote again by scores of float32, and then by the exact neighbours.
    """
    # some rows beyond the k show whether rounding may have excluded one of the true k
    count = k + 1 if dtype == torch.float32 else 2 * k + 1
    scores, index, error = rough_cosines(queries, bank, min(count, len(bank)), dtype=dtype)
    size = max(1, VOTE_ELEMENTS // count)
    parts = [
        _elect_roughly(scores[at], members[index[at]], k, temperature, error[at])
        for at in (slice(i, i + size) for i in range(0, len(queries), size))
    ]
    elected, is_sure = torch.cat([one for one, _ in parts]), torch.cat([sure for _, sure in parts])
    unsure = (~is_sure).nonzero()[:, 0]
    settled = 1.0 - len(unsure) / len(queries)
    if len(unsure) and dtype != torch.float32:
        elected[unsure], _ = _elected(queries[unsure], bank, members, k, temperature, torch.float32)
        return elected, settled
    for start in range(0, len(unsure), size):
        some = unsure[start : start + size]
        scores, index = nearest(queries[some], bank, k)
        elected[some] = _elect(scores, members[index], temperature)
    return elected, settled


def _elect(scores: TopScores, members: Neighbours, temperature: float) -> QueryLabels:
    """The class with most votes; of equals, the one with the nearest row."""
    columns, votes = _votes(scores, members, temperature)
    # votes in the order of the neighbours: argmax takes the first of equals, the class of the nearest row
    winner = votes.gather(1, columns).argmax(dim=1, keepdim=True)
    return members.gather(1, winner)[:, 0]


def _elect_roughly(
    scores: Tensor, members: Tensor, k: int, temperature: float, error: Tensor
) -> tuple[Tensor, Tensor]:
    """(class, whether exact scores could not elect another) by scores within `error` of the truth.

    The k best are followed by some that were not chosen, where the bank has them. Members of the k that
    rounding could have put before one of these do not vote. Each other class is given as many votes as
    it has rows that could take their places; any number, if rows that are not listed could.
    """
    last, best = scores[:, k - 1], scores[:, 0]
    reach = 2 * error  # two scores may each be wrong by `error`, in opposite directions
    is_certain = (scores > (last + reach)[:, None]) & (torch.arange(scores.shape[1]) < k)
    could_belong = (scores >= (last - reach)[:, None]) & ~is_certain
    is_settled = ~could_belong[:, k:].any(dim=1)  # the k are the k, in whatever order
    is_certain[:, :k] |= is_settled[:, None]
    # places among the k that are open, and the largest vote that a row in one of them can have
    places = (k - is_certain.sum(dim=1)).double()
    most = torch.exp((last + 2 * reach - best).double() / temperature)
    columns, votes, many = _votes(scores, members, temperature, is_certain, could_belong)
    is_listed = scores[:, -1] < last - reach
    many = torch.where(is_listed[:, None], many.double(), torch.inf).minimum(places[:, None])
    first, winner = votes.double().max(dim=1, keepdim=True)
    # an error in the score is a factor of the vote; EPSILON covers the sum of k float32 votes
    rounding = (torch.exp(error.double() / temperature) * (1 + k * EPSILON))[:, None]
    others = (votes * rounding + many * most[:, None]).scatter(1, winner, 0.0).amax(dim=1)
    unlisted = torch.where(is_listed, 0.0, places * most)
    at = (columns == winner).long().argmax(dim=1, keepdim=True)
    # sure: the winner's smallest possible votes beat the largest possible votes of any other class
    is_sure = (first / rounding)[:, 0] > torch.maximum(others, unlisted)
    return members.gather(1, at)[:, 0], is_sure


def _votes(
    scores: TopScores, members: Neighbours, temperature: float, *counted: Tensor
) -> tuple[Tensor, ...]:
    """(the column of each neighbour's class, the votes of each column [queries, at most k]).

    With `counted`, masks of the neighbours: the votes of the first alone, and how many the second has.
    """
    # relative to the best score the largest vote is 1: exp(1 / 0.01) itself is beyond float32
    weights = torch.exp((scores - scores[:, :1]) / temperature)
    width = int(members.max()) + 1
    if width > members.shape[1]:
        # k neighbours have at most k classes: renumbered, votes are [queries, k] whatever the classes
        ordered, order = members.sort(dim=1)
        numbers = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0)).cumsum(dim=1)
        members, width = torch.empty_like(members).scatter_(1, order, numbers), members.shape[1]
    empty = torch.zeros(len(scores), width)
    if not counted:
        return members, empty.scatter_add_(1, members, weights)
    certain, possible = counted
    votes = empty.scatter_add(1, members, weights.masked_fill(~certain, 0.0))
    return members, votes, empty.scatter_add_(1, members, possible.float())
