"""Validation of candidates: held-out queries look up all keys, and the right ones should be likely.

The keys are all rows, including the training rows, as in a search by a user. Copies of a query are not among
its keys. A tie never favours the right answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from querykey.adapter.relevance import NEAR_EQUAL, Relevance, unit_rows
from querykey.lookup.nearest import TIE
from querykey.types import FrozenRows, Keys, Labels, Numbers, PerQuery, Queries, Rows

__all__ = [
    "TEMPERATURES",
    "DistillationQuestion",
    "HeldOutQueries",
    "LabelQuestion",
    "PairQuestion",
    "Question",
    "Transform",
    "copies_of",
    "in_blocks",
    "log_probability",
    "ranks",
]

BLOCK = 8192
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


@torch.no_grad()
def log_probability(
    queries: Queries, keys: Keys, right: Places, excluded: Places
) -> Float[Tensor, "queries temperatures"]:
    r"""The log-likelihood that a softmax over the keys gives the right ones, at each of `TEMPERATURES`.

    .. math:: \log \sum_{j \in \text{right}} e^{s_j / \tau}
              - \log \sum_{j \notin \text{excluded}} e^{s_j / \tau}

    Args:
        queries: Unit rows [queries, dim].
        keys: Unit rows [keys, dim].
        right: Which keys are right; none of them excluded.
        excluded: Keys that are left out.

    Returns:
        Nats, at most 0; -inf for a query without a right key.
    """
    out = torch.empty(len(queries), len(TEMPERATURES))
    size = _block(len(keys))
    for start in range(0, len(queries), size):
        stop = start + size
        scores = _scores(queries[start:stop], keys, excluded[start:stop])
        own = right[start:stop]
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
def ranks(queries: Queries, keys: Keys, right: Places, excluded: Places) -> dict[str, PerQuery]:
    """Recall@1, MAP@R and the reciprocal rank of the first right key; at a tie the wrong key ranks higher.

    Args:
        queries: Unit rows [queries, dim].
        keys: Unit rows [keys, dim].
        right: Which keys are right.
        excluded: Which keys do not take part.

    Returns:
        "R@1", "MAP@R" and "MRR" of each query, from 0 to 1.

    Source:
        Musgrave et al. 2020, arXiv:2003.08505 (MAP@R).
    """
    found: dict[str, list[Tensor]] = {"R@1": [], "MAP@R": [], "MRR": []}
    size = _block(len(keys))
    for start in range(0, len(queries), size):
        own = right[start : start + size]
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


class HeldOutQueries(NamedTuple):
    """Queries that are asked, with what is right for them and what they must not find."""

    numbers: Numbers
    right: Tensor
    excluded: Tensor


@dataclass(frozen=True, eq=False)
class LabelQuestion:
    """Does a row find rows of its own class?

    Args:
        rows: Frozen unit rows of all items that are keys [keys, width].
        labels: Class of each key, -1 where it is not known: those can only be wrong, and are no keys.
    """

    rows: Rows
    labels: Labels
    name: str = "log p(own class)"

    def prepare(self, numbers: Numbers, copies: "list[Tensor]") -> HeldOutQueries:
        """What is right for some rows, and who are their copies.

        Args:
            numbers: Of the rows that are asked.
            copies: Of each, the numbers of its copies, itself among them.

        Returns:
            The rows that have an answer.
        """
        order = self.labels.argsort(stable=True)
        sorted_labels = self.labels[order]
        first = torch.searchsorted(sorted_labels, self.labels[numbers])
        last = torch.searchsorted(sorted_labels, self.labels[numbers], right=True)
        rights = []
        for start, stop, own in zip(first.tolist(), last.tolist(), copies, strict=True):
            members = order[start:stop]
            rights.append(members[~torch.isin(members, own)])
        kept = [place for place, right in enumerate(rights) if len(right)]
        return HeldOutQueries(
            numbers[kept], _padded([rights[i] for i in kept]), _padded([copies[i] for i in kept])
        )

    def score(self, transform: Transform, asked: HeldOutQueries) -> Tensor:
        keys = in_blocks(transform, self.rows)
        return log_probability(keys[asked.numbers], keys, asked.right, asked.excluded)

    def ranks(
        self, transform: Transform, asked: HeldOutQueries, keys_as: Transform | None = None
    ) -> dict[str, PerQuery]:
        keys = in_blocks(keys_as or transform, self.rows)
        queries = keys[asked.numbers] if keys_as is None else transform(self.rows[asked.numbers])
        found = ranks(queries, keys, asked.right, asked.excluded)
        return {name: found[name] for name in ("R@1", "MAP@R")}


@dataclass(frozen=True, eq=False)
class PairQuestion:
    """Does a query find its documents?

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
        """What is right for some queries; each must have a document."""
        rights = [self.relevance.documents_of(int(number)) for number in numbers]
        return HeldOutQueries(numbers, _padded(rights), torch.full((len(numbers), 0), -1))

    def score(self, transform: Transform, asked: HeldOutQueries) -> Tensor:
        return log_probability(*self._rows(transform, asked), asked.right, asked.excluded)

    def ranks(
        self, transform: Transform, asked: HeldOutQueries, keys_as: Transform | None = None
    ) -> dict[str, PerQuery]:
        found = ranks(*self._rows(transform, asked, keys_as), asked.right, asked.excluded)
        return {name: found[name] for name in ("MRR", "R@1")}

    def _rows(
        self, transform: Transform, asked: HeldOutQueries, keys_as: Transform | None = None
    ) -> tuple[Tensor, Tensor]:
        move = keys_as or (transform if self.moves_documents else None)
        documents = self.documents if move is None else in_blocks(move, self.documents)
        return in_blocks(transform, self.queries[asked.numbers]), documents


@dataclass(frozen=True, eq=False)
class DistillationQuestion:
    """Does a query keep the scores that the target gives it?

    Args:
        queries: Frozen unit rows that are asked.
        keys: Frozen unit rows.
        target: Makes the rows whose scores are to be kept.
        temperature: Of both softmaxes.
    """

    queries: Queries
    keys: Keys
    target: Transform
    temperature: float
    name: str = "scores of the target kept (-KL)"

    def score(self, transform: Transform, asked: HeldOutQueries) -> Tensor:
        keys, wanted = in_blocks(transform, self.keys), self._wanted
        queries, size, out = in_blocks(transform, self.queries[asked.numbers]), self._size, []
        for start in range(0, len(queries), size):
            part = slice(start, start + size)
            scores = _scores(queries[part], keys, asked.excluded[part]) / self.temperature
            theirs = _scores(wanted[0][asked.numbers[part]], wanted[1], asked.excluded[part])
            there = (theirs / self.temperature).log_softmax(dim=1)
            gap = (there - scores.log_softmax(dim=1)).masked_fill(theirs == -torch.inf, 0)
            out.append(-(there.exp() * gap).sum(dim=1))
        return torch.cat(out)[:, None] if out else torch.empty(0, 1)

    def ranks(
        self, transform: Transform, asked: HeldOutQueries, keys_as: Transform | None = None
    ) -> dict[str, PerQuery]:
        """Fraction of the ten nearest frozen keys that are among the ten nearest transformed keys."""
        keys, queries = (
            in_blocks(keys_as or transform, self.keys), in_blocks(transform, self.queries[asked.numbers])
        )  # fmt: skip
        kept, k = [], min(10, len(self.keys) - 1)
        for start in range(0, len(queries), self._size):
            part = slice(start, start + self._size)
            now = _scores(queries[part], keys, asked.excluded[part]).topk(k, dim=1).indices
            rows = self.queries[asked.numbers[part]]
            then = _scores(rows, self.keys, asked.excluded[part]).topk(k, dim=1).indices
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


Question = LabelQuestion | PairQuestion | DistillationQuestion
"""`score` gives log-likelihoods [queries, temperatures], `ranks` the ranking metrics of the report. `keys_as`
is the transform of the keys if it differs from that of the queries, as for codes."""


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
    queries, pairs = unit_rows(rows, numbers), []
    for start in range(0, len(rows), BLOCK):
        near = queries @ unit_rows(rows[start : start + BLOCK]).T >= near_equal
        pairs.append(near.nonzero() + torch.tensor([0, start]))
    places = torch.arange(len(numbers))
    itself = torch.stack([places, numbers], dim=1)  # a row may score below 1 with itself because of rounding
    found = torch.unique(torch.cat([*pairs, itself]), dim=0)
    return list(torch.split(found[:, 1], torch.bincount(found[:, 0], minlength=len(numbers)).tolist()))


def _padded(lists: "list[Tensor]") -> Tensor:
    most = max((len(one) for one in lists), default=0)
    out = np.full((len(lists), most), -1, dtype=np.int64)
    for place, one in enumerate(lists):
        out[place, : len(one)] = one.numpy()
    return torch.from_numpy(out)
