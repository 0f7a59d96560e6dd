"""Weighted kNN: classify queries by the nearest rows of a bank."""

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional as F

from querykey.distributed.process_group import in_default_torch_state
from querykey.errors import DataError, RangeError, ShapeError
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.lookup.nearest import MANY_QUERIES, SLACK, TIE, in_fast_blocks, nearest, rough_cosines
from querykey.lookup.unit_length import are_plain, unit_length
from querykey.types import Keys, Neighbours, PerQuery, Queries, QueryLabels, TopScores

__all__ = ["knn_correct", "knn_predict"]

AnyLabels = Int64[Tensor, " ..."]
"""One a row; the number is checked, with a message, and not by the type."""

VOTE_ELEMENTS = 2**22
"""Neighbours that vote at once: 16 MB of votes at most, whatever the number of classes."""
GATHERED = 2**21
"""Numbers of bank rows that are scored again at once: 8 MB, which the allocator keeps."""
EPSILON = torch.finfo(torch.float32).eps


@in_default_torch_state
def knn_predict(
    bank: Keys, bank_labels: AnyLabels, queries: Queries, *, k: int = 10, temperature: float = 0.1
) -> QueryLabels:
    r"""Give each query the class that its k nearest bank rows vote for, weighted by similarity.

    .. math:: \arg\max_c \sum_{j \in \text{nearest } k} [y_j = c] \, \exp(s_j / \tau)

    Classes are those of the bank; no matrix of rows x classes and none of queries x bank is stored. Votes are
    counted by the scores of fast products first: bfloat16 where this machine has it, then float32 scores of
    the same rows. Where the rounding of a score, or of the last place among the k, could elect another class,
    the exact neighbours of `nearest` vote again, so the class is that of the equation.

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
    """(class per query, share of queries whose votes are settled without another product).

    Votes that scores in `dtype` leave open are counted by float32 scores of the same rows, then by a product
    in float32, and then by the exact neighbours.
    """
    # rows beyond the k show whether rounding may have excluded one of the true k
    count = min(k + (k // 2 if dtype != torch.float32 else k // 8) + SLACK, len(bank))
    scores, index, error, floor = rough_cosines(queries, bank, count, dtype=dtype)
    size = max(1, VOTE_ELEMENTS // count)
    elected, is_sure = torch.empty_like(index[:, 0]), torch.empty_like(error, dtype=torch.bool)
    for start in range(0, len(queries), size):
        at = slice(start, start + size)
        elected[at], is_sure[at] = _elect_roughly(
            scores[at], members[index[at]], k, temperature, error[at], floor[at]
        )
    if dtype != torch.float32:
        for some in filter(len, torch.split((~is_sure).nonzero()[:, 0], size)):
            exact, rows = _scored_again(queries[some], bank, scores[some], index[some])
            # a row that is not listed is below the floor by its score in `dtype`, so below it plus the error
            highest = torch.where(floor[some] == -torch.inf, floor[some], floor[some] + error[some])
            elected[some], is_sure[some] = _elect_roughly(
                exact, members[rows], k, temperature, torch.full_like(highest, TIE), highest
            )
    unsure = (~is_sure).nonzero()[:, 0]
    settled = 1.0 - len(unsure) / len(queries)
    if len(unsure) >= MANY_QUERIES and dtype != torch.float32:
        elected[unsure], _ = _elected(queries[unsure], bank, members, k, temperature, torch.float32)
        return elected, settled
    for start in range(0, len(unsure), size):
        some = unsure[start : start + size]
        scores, index = nearest(queries[some], bank, k)
        elected[some] = _elect(scores, members[index], temperature)
    return elected, settled


def _scored_again(
    queries: Tensor, bank: Tensor, scores: Tensor, index: Tensor
) -> tuple[TopScores, Neighbours]:
    """The same rows with their scores in float32, best first; -inf stays."""
    queries, lengths = unit_length(queries).float(), bank.norm(dim=1)
    is_plain = bank.dtype == torch.float32 and are_plain(lengths)
    exact = torch.empty_like(scores)
    size = max(1, GATHERED // (index.shape[1] * bank.shape[1]))
    for start in range(0, len(queries), size):
        at = slice(start, start + size)
        rows = bank.index_select(0, index[at].flatten())
        rows = (rows if is_plain else unit_length(rows).float()).view(len(index[at]), -1, bank.shape[1])
        torch.bmm(queries[at, None], rows.transpose(1, 2), out=exact[at, None])
    if is_plain:
        exact /= lengths[index]
    exact, order = exact.masked_fill_(scores == -torch.inf, -torch.inf).sort(dim=1, descending=True)
    return exact, index.gather(1, order)


def _elect(scores: TopScores, members: Neighbours, temperature: float) -> QueryLabels:
    """The class with most votes; of equals, the one with the nearest row."""
    columns, votes = _votes(scores, members, temperature)
    # votes in the order of the neighbours: argmax takes the first of equals, the class of the nearest row
    winner = votes.gather(1, columns).argmax(dim=1, keepdim=True)
    return members.gather(1, winner)[:, 0]


def _elect_roughly(
    scores: Tensor, members: Tensor, k: int, temperature: float, error: Tensor, floor: Tensor
) -> tuple[Tensor, Tensor]:
    """(class, whether exact scores could not elect another) by scores within `error` of the truth.

    The k best are followed by some that were not chosen, where the bank has them. Rows that are not among
    them have scores up to `floor`, which are as wrong. Members of the k that rounding could have put before
    one of these do not vote. Each other class is given as many votes as it has rows that could take their
    places; any number, if rows that are not listed could.
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
    is_listed = floor < last - reach
    many = torch.where(is_listed[:, None], many.double(), torch.inf).minimum(places[:, None])
    first, winner = votes.double().max(dim=1, keepdim=True)
    # an error in the score is a factor of the vote; EPSILON covers the sum of k float32 votes
    rounding = (torch.exp(error.double() / temperature) * (1 + k * EPSILON))[:, None]
    others = (votes * rounding + many * most[:, None]).scatter(1, winner, 0.0).amax(dim=1)
    unlisted = torch.where(is_listed, 0.0, places * most)
    at = (columns == winner).long().argmax(dim=1, keepdim=True)
    # sure: the winner's smallest possible votes beat the largest possible votes of any other class
    is_sure = (first / rounding)[:, 0] > torch.maximum(others, unlisted)
    # above the last place there may be no row that is not listed, nor may the place be empty
    is_sure &= (floor <= last) & (last > -torch.inf)
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
