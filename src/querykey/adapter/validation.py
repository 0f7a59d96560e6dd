"""Validation of candidates: held-out queries look up all keys, and the relevant ones should be likely.

The keys are all rows, including the training rows, as in a search by a user. Copies of a query are not among
its keys. A tie never favours a relevant key.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from querykey.adapter.relevance import NEAR_EQUAL, Relevance, unit_rows
from querykey.lookup.nearest import TIE
from querykey.lookup.unit_length import unit_length
from querykey.types import FrozenRows, Keys, Labels, Numbers, PerQuery, Queries, Rows

__all__ = [
    "TEMPERATURES",
    "DistillationScorer",
    "HeldOutQueries",
    "LabelScorer",
    "PairScorer",
    "Ragged",
    "Scorer",
    "Transform",
    "ValidationQueries",
    "copies_of",
    "in_blocks",
    "log_probability",
    "padded",
    "ranks",
]

BLOCK = 8192
DENSE = 2**22
"""Numbers of padded rows, 32 MB, up to which they are stored padded."""
ELEMENTS, FEWEST = 2**20, 64
"""Scores per block: 4 MB, which stay in the cache while all temperatures read them; and the fewest queries
per block, since each block reads all keys."""
MOST_KEYS = 200_000
TEMPERATURES = (0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.5, 2.0, 20.0)
"""Each candidate is scored at its best temperature; a common one would compare calibration. The last ones
give all keys nearly the same probability: without them uninformative scores would lose to flatter ones."""
HALVINGS = ((20.0,), (2.0,), (0.5,), (0.2, 0.1, 0.05), (0.15,), (0.07,), (0.04, 0.02), (0.03,))
"""The same, grouped by halving: the terms of a softmax at half the temperature are the squares, which cost
less than another exponential."""

Transform = Callable[[Tensor], Tensor]
Places = Int64[Tensor, "queries _"]
"""Columns of keys per query, padded with -1."""


@torch.no_grad()
def in_blocks(transform: Transform, rows: Tensor) -> Tensor:
    """Apply a transform block by block, to bound the memory of intermediate results."""
    parts = [transform(rows[i : i + BLOCK]) for i in range(0, len(rows), BLOCK)]
    return torch.cat(parts) if parts else transform(rows)


class Ragged:
    """Rows of different lengths, of which a slice is padded with -1 to the longest of all.

    One query with 100,000 documents among 500 takes 0.8 MB, and not 400. A slice has the values and the width
    that it has of the padded whole, so that no bit of a sum depends on which of the two it is.

    Args:
        lists: The rows.
    """

    def __init__(self, lists: "list[Tensor]") -> None:
        self._lists, self._most = lists, max(map(len, lists))

    def __getitem__(self, at: slice) -> Places:
        some = self._lists[at]
        out = torch.full((len(some), self._most), -1)
        for place, one in enumerate(some):
            out[place, : len(one)] = one
        return out


@torch.no_grad()
def log_probability(
    queries: Queries, keys: Keys, relevant: Places | Ragged, excluded: Places | Ragged
) -> Float[Tensor, "queries temperatures"]:
    r"""The log-likelihood of the relevant keys under a softmax over the keys, at each of `TEMPERATURES`.

    .. math:: \log \sum_{j \in \text{relevant}} e^{s_j / \tau}
              - \log \sum_{j \notin \text{excluded}} e^{s_j / \tau}

    Args:
        queries: Unit rows [queries, dim].
        keys: Unit rows [keys, dim].
        relevant: Which keys are relevant; none of them excluded.
        excluded: Keys that are left out.

    Returns:
        Nats, at most 0; -inf for a query without a relevant key.
    """
    out = torch.empty(len(queries), len(TEMPERATURES))
    size = _block(len(keys))
    for start in range(0, len(queries), size):
        stop = start + size
        scores = _scores(queries[start:stop], keys, excluded[start:stop])
        own = relevant[start:stop]
        found = scores.gather(1, own.clamp(min=0)).masked_fill(own < 0, -torch.inf)
        top, best = scores.amax(dim=1, keepdim=True), found.amax(dim=1, keepdim=True)
        scores -= top
        found, scratch = found - best.clamp(min=-2.0), torch.empty_like(scores)
        for halvings in HALVINGS:
            torch.mul(scores, 1 / halvings[0], out=scratch).exp_()
            for temperature in halvings:
                every = scratch.sum(dim=1)
                mine = (found / temperature).exp().sum(dim=1)
                likely = mine.log() - every.log() + ((best - top) / temperature)[:, 0]
                out[start:stop, TEMPERATURES.index(temperature)] = likely
                scratch *= scratch  # a term at half the temperature
    return out


@torch.no_grad()
def ranks(
    queries: Queries, keys: Keys, relevant: Places | Ragged, excluded: Places | Ragged
) -> dict[str, PerQuery]:
    """Recall@1, MAP@R and the reciprocal rank of the first relevant key; at a tie another key ranks higher.

    Args:
        queries: Unit rows [queries, dim].
        keys: Unit rows [keys, dim].
        relevant: Which keys are relevant.
        excluded: Keys that are left out.

    Returns:
        "R@1", "MAP@R" and "MRR" of each query, from 0 to 1.

    Source:
        Musgrave et al. 2020, arXiv:2003.08505 (MAP@R).
    """
    found: dict[str, list[Tensor]] = {"R@1": [], "MAP@R": [], "MRR": []}
    size = _block(len(keys))
    for start in range(0, len(queries), size):
        own = relevant[start : start + size]
        scores = _scores(queries[start : start + size], keys, excluded[start : start + size])
        mine = scores.gather(1, own.clamp(min=0)).masked_fill(own < 0, -torch.inf)
        mine = mine.sort(dim=1, descending=True).values
        padded = torch.cat([scores, torch.full((len(scores), 1), -torch.inf)], dim=1)
        wrong = padded.scatter(1, own.where(own >= 0, len(keys)), -torch.inf)[:, :-1]
        first = (wrong >= mine[:, :1] - TIE).sum(dim=1)
        depth = min(own.shape[1], wrong.shape[1])
        others = -wrong.topk(depth, dim=1).values  # ascending, for searchsorted
        before = torch.searchsorted(others.contiguous(), -(mine - TIE).contiguous(), right=True)
        place = torch.arange(1, own.shape[1] + 1)
        rank, count = before + place, (own >= 0).sum(dim=1, keepdim=True)
        hits = (rank <= count) & (place <= count)
        found["MAP@R"].append((hits * place / rank).sum(dim=1) / count[:, 0])
        found["R@1"].append((first == 0).float())
        found["MRR"].append(1 / (first + 1))
    return {name: torch.cat(parts).float() for name, parts in found.items()}


def _block(keys: int) -> int:
    """Queries that are scored at once."""
    return max(FEWEST, ELEMENTS // max(1, keys))


def _scores(queries: Tensor, keys: Tensor, excluded: Tensor) -> Tensor:
    scores = queries @ keys.T
    rows = torch.arange(len(queries))[:, None].expand_as(excluded)[excluded >= 0]
    scores[rows, excluded[excluded >= 0]] = -torch.inf
    return scores


@dataclass(frozen=True, eq=False)
class ValidationQueries:
    """Queries that evaluate a fit without labels.

    Args:
        queries: Frozen rows of queries.
        pairs: (query, row that answers it) by number [pairs, 2]; None where no answer is known.
        are_real: Whether users typed them: then they enter the moments.
    """

    queries: FrozenRows
    pairs: Tensor | None = None
    are_real: bool = True


class HeldOutQueries(NamedTuple):
    """Queries by number, with the keys that are relevant to each and those that are excluded."""

    numbers: Numbers
    relevant: Places | Ragged
    excluded: Places | Ragged


@dataclass(frozen=True, eq=False)
class LabelScorer:
    """Scores how well a row finds rows of its own class.

    Args:
        rows: Frozen unit rows of all items that are keys [keys, width].
        labels: Class of each key, -1 where it is not known: those can only be wrong, and are no keys.
    """

    rows: Rows
    labels: Labels
    name: str = "log p(own class)"

    def prepare(self, numbers: Numbers, copies: "list[Tensor]") -> HeldOutQueries:
        """Find the relevant keys of some rows; their copies are excluded.

        Args:
            numbers: Indices of the rows.
            copies: Indices of the copies of each, including itself.

        Returns:
            The rows that have a relevant key.
        """
        order = self.labels.argsort(stable=True)
        sorted_labels = self.labels[order]
        first = torch.searchsorted(sorted_labels, self.labels[numbers])
        last = torch.searchsorted(sorted_labels, self.labels[numbers], right=True)
        relevant = []
        for start, stop, own in zip(first.tolist(), last.tolist(), copies, strict=True):
            members = order[start:stop]
            relevant.append(members[~torch.isin(members, own)])
        kept = [place for place, some in enumerate(relevant) if len(some)]
        return HeldOutQueries(
            numbers[kept], padded([relevant[i] for i in kept]), padded([copies[i] for i in kept])
        )

    def score(self, transform: Transform, held_out: HeldOutQueries, sizes: Sequence[int] = ()) -> Tensor:
        keys = in_blocks(transform, self.rows)
        return _log_probabilities(keys[held_out.numbers], keys, held_out, sizes)

    def ranks(
        self, transform: Transform, held_out: HeldOutQueries, keys_as: Transform | None = None
    ) -> dict[str, PerQuery]:
        keys = in_blocks(keys_as or transform, self.rows)
        queries = keys[held_out.numbers] if keys_as is None else transform(self.rows[held_out.numbers])
        found = ranks(queries, keys, held_out.relevant, held_out.excluded)
        return {name: found[name] for name in ("R@1", "MAP@R")}


@dataclass(frozen=True, eq=False)
class PairScorer:
    """Scores how well a query finds its documents.

    Args:
        queries: Frozen unit rows of queries.
        documents: Frozen unit rows of documents: the keys.
        relevance: Which belong together, by number.
        moves_documents: Whether documents are transformed too.
    """

    queries: Queries
    documents: Keys
    relevance: Relevance
    moves_documents: bool
    name: str = "log p(right document)"

    def prepare(self, numbers: Numbers) -> HeldOutQueries:
        """Find the relevant documents of some queries, each of which must have one."""
        relevant = [self.relevance.documents_of(int(number)) for number in numbers]
        return HeldOutQueries(numbers, padded(relevant), torch.full((len(numbers), 0), -1))

    def score(self, transform: Transform, held_out: HeldOutQueries, sizes: Sequence[int] = ()) -> Tensor:
        return _log_probabilities(*self._rows(transform, held_out), held_out, sizes)

    def ranks(
        self, transform: Transform, held_out: HeldOutQueries, keys_as: Transform | None = None
    ) -> dict[str, PerQuery]:
        found = ranks(*self._rows(transform, held_out, keys_as), held_out.relevant, held_out.excluded)
        return {name: found[name] for name in ("MRR", "R@1")}

    def _rows(
        self, transform: Transform, held_out: HeldOutQueries, keys_as: Transform | None = None
    ) -> tuple[Tensor, Tensor]:
        move = keys_as or (transform if self.moves_documents else None)
        documents = self.documents if move is None else in_blocks(move, self.documents)
        return in_blocks(transform, self.queries[held_out.numbers]), documents


@dataclass(frozen=True, eq=False)
class DistillationScorer:
    """Scores how well a query keeps the scores that the target gives it.

    Args:
        queries: Frozen unit rows of the queries.
        keys: Frozen unit rows.
        target: Makes the rows whose scores are to be kept.
        temperature: Of both softmaxes.
    """

    queries: Queries
    keys: Keys
    target: Transform
    temperature: float
    name: str = "scores of the target kept (-KL)"

    def score(self, transform: Transform, held_out: HeldOutQueries, sizes: Sequence[int] = ()) -> Tensor:
        keys, wanted = in_blocks(transform, self.keys), self._wanted
        queries, size = in_blocks(transform, self.queries[held_out.numbers]), self._size
        every = _prefixes(queries, keys, sizes)
        out = torch.empty(len(queries), 1, len(every))
        for start in range(0, len(queries), size):
            part = slice(start, start + size)
            theirs = _scores(wanted[0][held_out.numbers[part]], wanted[1], held_out.excluded[part])
            there = (theirs / self.temperature).log_softmax(dim=1)
            for place, (some, own) in enumerate(every):
                scores = _scores(some[part], own, held_out.excluded[part]) / self.temperature
                gap = (there - scores.log_softmax(dim=1)).masked_fill(theirs == -torch.inf, 0)
                out[part, 0, place] = -(there.exp() * gap).sum(dim=1)
        return _of_sizes(out, sizes)

    def ranks(
        self, transform: Transform, held_out: HeldOutQueries, keys_as: Transform | None = None
    ) -> dict[str, PerQuery]:
        """Fraction of the ten nearest frozen keys that are among the ten nearest transformed keys."""
        keys, queries = (
            in_blocks(keys_as or transform, self.keys), in_blocks(transform, self.queries[held_out.numbers])
        )  # fmt: skip
        kept, k = [], min(10, len(self.keys) - 1)
        for start in range(0, len(queries), self._size):
            part = slice(start, start + self._size)
            now = _scores(queries[part], keys, held_out.excluded[part]).topk(k, dim=1).indices
            rows = self.queries[held_out.numbers[part]]
            then = _scores(rows, self.keys, held_out.excluded[part]).topk(k, dim=1).indices
            kept.append((now[:, :, None] == then[:, None, :]).any(dim=2).float().mean(dim=1))
        return {"overlap@10": torch.cat(kept)}

    @property
    def _size(self) -> int:
        return _block(len(self.keys))

    @property
    def _wanted(self) -> tuple[Tensor, Tensor]:
        if "_rows" not in self.__dict__:
            rows = in_blocks(self.target, self.queries), in_blocks(self.target, self.keys)
            object.__setattr__(self, "_rows", rows)
        found: tuple[Tensor, Tensor] = self.__dict__["_rows"]
        return found


Scorer = LabelScorer | PairScorer | DistillationScorer
"""`score` gives log-likelihoods [queries, temperatures], of several sizes [queries, temperatures, sizes];
`ranks` the ranking metrics of the report. A size is a prefix of the transformed rows, scaled to length 1.
`keys_as` is the transform of the keys if it differs from that of the queries, as for codes."""


def _prefixes(queries: Tensor, keys: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """The queries and keys of each size; with one size, the rows as they are."""
    if len(sizes) <= 1:
        return [(queries, keys)]
    return [(unit_length(queries[:, :size]), unit_length(keys[:, :size])) for size in sizes]


def _log_probabilities(
    queries: Tensor, keys: Tensor, held_out: HeldOutQueries, sizes: Sequence[int]
) -> Tensor:
    every = [
        log_probability(some, own, held_out.relevant, held_out.excluded)
        for some, own in _prefixes(queries, keys, sizes)
    ]
    return _of_sizes(torch.stack(every, dim=2), sizes)


def _of_sizes(scores: Tensor, sizes: Sequence[int]) -> Tensor:
    return scores if len(sizes) > 1 else scores[:, :, 0]


@torch.no_grad()
def copies_of(rows: FrozenRows, numbers: Numbers, *, near_equal: float = NEAR_EQUAL) -> list[Tensor]:
    """The copies and near-copies of some rows, including the rows themselves.

    Args:
        rows: Frozen rows; read block by block.
        numbers: Indices of those rows.
        near_equal: Cosine from which two rows are copies.

    Returns:
        For each of them row indices in ascending order.
    """
    queries, places = unit_rows(rows, numbers), torch.arange(len(numbers))
    # a row may score below 1 with itself because of rounding
    pairs, count = torch.stack([places, numbers], dim=1), len(numbers)
    for start in range(0, len(rows), BLOCK):
        near = (queries @ unit_rows(rows[start : start + BLOCK]).T >= near_equal).nonzero()
        # In one array that doubles: small ones between the large ones of each block would keep the allocator
        # from using the memory of the last block again, a gigabyte for each million rows.
        if count + len(near) > len(pairs):
            pairs = torch.cat([pairs, pairs.new_empty(len(pairs) + len(near), 2)])
        pairs[count : count + len(near)] = near.add_(torch.tensor([0, start]))
        count += len(near)
    found = torch.unique(pairs[:count], dim=0)
    return list(torch.split(found[:, 1], torch.bincount(found[:, 0], minlength=len(numbers)).tolist()))


def padded(lists: "list[Tensor]") -> "Places | Ragged":
    """Stack rows of different lengths, padded with -1; where one is very long, as they are."""
    most = max((len(one) for one in lists), default=0)
    if len(lists) * most > DENSE and sum(map(len, lists)) < len(lists) * most / 2:
        return Ragged(lists)
    out = np.full((len(lists), most), -1, dtype=np.int64)
    for place, one in enumerate(lists):
        out[place, : len(one)] = one.numpy()
    return torch.from_numpy(out)
