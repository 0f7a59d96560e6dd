"""Which candidate is returned, and what may be said of it: numbers of held-out queries in, a verdict out."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from querykey.types import PerQuery

__all__ = [
    "FEW",
    "Choice",
    "Difference",
    "Scored",
    "Verdict",
    "at_best_temperature",
    "candidate_records",
    "choose",
    "difference",
    "differences",
    "halves",
    "mean_at_best",
]

Verdict = Literal["better", "no evidence", "start kept", "not validated"]

DRAWS = 2000
MOST_KEPT = 2**23
"""Counts of resamplings that are kept for the next candidate: 16 MB."""
FEW = 200
"""With fewer queries the same ones serve selection and evaluation; the bootstrap repeats the selection."""
LIKELY = 0.8
"""Share of the draws that must lie above the reference for a candidate to be returned."""
POWER = 2.8
"""Standard errors of a difference that is found in four of five tries at the 5% level."""


@dataclass(frozen=True, eq=False)
class Scored:
    """A candidate with its validation scores.

    Args:
        name: Of the candidate.
        values: The measure of each query, at the temperature that is best on the other half.
        seconds: That fitting and scoring took.
    """

    name: str
    values: PerQuery
    seconds: float


@dataclass(frozen=True)
class Difference:
    """A paired difference with its 95% interval.

    Args:
        mean: Of the queries.
        low: 2.5th percentile.
        high: 97.5th percentile.
        queries: How many there were.
        error: Standard error of the mean.
        likely: Share of the draws above 0.
    """

    mean: float
    low: float
    high: float
    queries: int
    error: float
    likely: float

    @property
    def needed(self) -> int | None:
        """Queries with which a difference of this size would be found in four of five tries."""
        if self.mean <= 0 or self.queries == 0:
            return None
        return int(np.ceil(self.queries * (POWER * self.error / self.mean) ** 2))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "queries": self.queries}


@dataclass(frozen=True, eq=False)
class Choice:
    """What is returned, and why.

    Args:
        winner: Name of what is returned.
        reference: Name of what it is compared with.
        verdict: What may be said of the winner.
        difference: Winner minus reference on the evaluation queries; None where they are the same.
        refused: Name of each better candidate that was not returned, with the reason.
        selected_on: Number of selection queries.
    """

    winner: str
    reference: str
    verdict: Verdict
    difference: Difference | None
    refused: dict[str, str] = field(default_factory=dict)
    selected_on: int = 0


def halves(queries: int, *, seed: int) -> tuple[Bool[Tensor, " queries"], Bool[Tensor, " queries"]]:
    """Split the queries into two halves, for selection and for evaluation; fewer than `FEW` serve both.

    Args:
        queries: How many there are.
        seed: Of the draw.

    Returns:
        (mask for selection, mask for evaluation).
    """
    if queries < FEW:
        every = torch.ones(queries, dtype=torch.bool)
        return every, every
    order = torch.from_numpy(np.random.default_rng([seed, 7]).permutation(queries))
    selection = torch.zeros(queries, dtype=torch.bool)
    selection[order[: queries // 2]] = True
    return selection, ~selection


def at_best_temperature(scores: Tensor, *, seed: int) -> PerQuery:
    """Each query's score at the temperature that is best for the other half of the queries.

    Args:
        scores: [queries, temperatures], or [queries, temperatures, sizes].
        seed: Of the halves.

    Returns:
        [queries]; of several sizes the mean, each at its own best temperature.
    """
    if scores.ndim == 3:
        return torch.stack([at_best_temperature(one, seed=seed) for one in scores.unbind(2)]).mean(dim=0)
    if scores.shape[1] == 1 or len(scores) < 2:
        return scores.amax(dim=1).double()
    order = torch.from_numpy(np.random.default_rng([seed, 7]).permutation(len(scores)))
    first = torch.zeros(len(scores), dtype=torch.bool)
    first[order[: len(scores) // 2]] = True
    values = scores.double()
    out = torch.empty(len(scores), dtype=torch.float64)
    for half in (first, ~first):
        out[half] = values[half][:, values[~half].mean(dim=0).argmax()]
    return out


def mean_at_best(scores: Tensor) -> float:
    """The mean over queries at the best temperature, and over sizes, each at its own.

    Args:
        scores: [queries, temperatures], or [queries, temperatures, sizes].

    Returns:
        A number; NaN where there are no queries.
    """
    return float(scores.double().mean(dim=0).amax(dim=0).mean()) if len(scores) else math.nan


def difference(values: Tensor, *, groups: Tensor | None = None, seed: int = 0) -> Difference:
    """The mean of paired differences with its bootstrap interval, over queries or over groups of them.

    Args:
        values: Of each query.
        groups: Number of the group of each query, drawn together; None: each query alone.
        seed: Of the draws.

    Returns:
        The `Difference`.
    """
    return differences([values], groups=groups, seed=seed)[0]


def differences(
    columns: Sequence[Tensor], *, groups: Tensor | None = None, seed: int = 0
) -> list[Difference]:
    """`difference` of several columns with the same draws, which cost more than all that is done with them.

    Args:
        columns: Paired differences of the same queries.
        groups: Number of the group of each query, drawn together; None: each query alone.
        seed: Of the draws.

    Returns:
        One a column.
    """
    means = _draws(torch.stack(list(columns), dim=1), groups, seed)
    found = []
    for values, drawn in zip(columns, means.T, strict=True):
        low, high = np.percentile(drawn, [2.5, 97.5])
        found.append(
            Difference(
                float(values.mean()),
                float(low),
                float(high),
                len(values),
                float(drawn.std()),
                float((drawn > 0).mean()),
            )
        )
    return found


def choose(
    candidates: Sequence[Scored],
    reference: str,
    *,
    selection: Tensor,
    evaluation: Tensor,
    refuse: "dict[str, str] | None" = None,
    seed: int = 0,
) -> Choice:
    """Return the best candidate where it is likely above the reference, and the reference otherwise.

    Args:
        candidates: The reference among them, all scored on the same queries.
        reference: Its name.
        selection: Mask of the selection queries.
        evaluation: Mask of the evaluation queries; the same ones where there are few.
        refuse: Candidates that may not be returned, with the reason.
        seed: Of the draws.

    Returns:
        The `Choice`.
    """
    refuse, start = dict(refuse or {}), next(one for one in candidates if one.name == reference)
    ranked = sorted(candidates, key=lambda one: float(one.values[selection].mean()), reverse=True)
    above = [one for one in ranked if one.values[selection].mean() > start.values[selection].mean()]
    refused = {one.name: refuse[one.name] for one in above if one.name in refuse}
    best = next((one for one in above if one.name not in refuse), start)
    selected = int(selection.sum())
    if best is not start:
        likely = difference((best.values - start.values)[selection], seed=seed).likely
        if likely < LIKELY:
            best = start
    if best is start:
        return Choice(reference, reference, "start kept", None, refused, selected)
    found = difference((best.values - start.values)[evaluation], seed=seed)
    if torch.equal(selection, evaluation):
        others = [one for one in candidates if one is not start and one.name not in refuse]
        found = _selected(best, others, start, evaluation, seed)
    verdict: Verdict = "better" if found.low > 0 else "no evidence"
    return Choice(best.name, reference, verdict, found, refused, selected)


def _selected(
    best: Scored, others: Sequence[Scored], start: Scored, evaluation: Tensor, seed: int
) -> Difference:
    """The winner's difference with an interval that knows that it was the best of several.

    The largest of the centred differences of all candidates is drawn: that is how far the best of as many
    candidates that are worth nothing would lie above 0.
    """
    apart = torch.stack([(one.values - start.values)[evaluation] for one in others], dim=1)
    largest = (_draws(apart, None, seed) - apart.mean(dim=0).numpy()).max(axis=1)
    alone = difference((best.values - start.values)[evaluation], seed=seed)
    low, high = np.percentile(largest, [2.5, 97.5])
    return Difference(
        alone.mean,
        alone.mean - float(high),
        alone.mean - min(0.0, float(low)),
        alone.queries,
        alone.error,
        alone.likely,
    )


def _draws(values: Tensor, groups: Tensor | None, seed: int) -> NDArray[np.float64]:
    """Means of `DRAWS` resamplings [draws, columns] of values [queries, columns]."""
    sums, counts = values.double().numpy(), np.ones(len(values))
    if groups is not None:
        members = np.unique(groups.numpy(), return_inverse=True)[1]
        counts = np.bincount(members).astype(np.float64)
        sums = np.stack([np.bincount(members, weights=column) for column in sums.T], axis=1)
    means = [
        (times @ sums) / np.maximum(times @ counts, 1)[:, None]
        for times in (block.astype(np.float64) for block in _resamplings(len(sums), seed))
    ]
    return np.concatenate(means)


def _resamplings(rows: int, seed: int) -> Iterable[NDArray[np.integer[Any]]]:
    """How often each row is drawn [draws, rows], in blocks of bounded memory."""
    return _kept_resamplings(rows, seed) if rows * DRAWS <= MOST_KEPT else _draw(rows, seed)


@lru_cache(maxsize=4)
def _kept_resamplings(rows: int, seed: int) -> tuple[NDArray[np.integer[Any]], ...]:
    """A fit compares dozens of candidates on the same queries: drawing costs ten times the product."""
    return tuple(_draw(rows, seed))


def _draw(rows: int, seed: int) -> Iterator[NDArray[np.integer[Any]]]:
    draw, at_once = np.random.default_rng([seed, 8]), max(1, 2**21 // max(1, rows))
    for start in range(0, DRAWS, at_once):
        drawn = draw.multinomial(rows, np.full(rows, 1 / rows), size=min(at_once, DRAWS - start))
        yield drawn.astype(np.uint16 if rows < 2**16 else np.int32)  # a count is at most `rows`


def candidate_records(
    scored: Sequence[Scored], reference: Scored, refused: Mapping[str, str], *, seed: int
) -> list[dict[str, Any]]:
    """A record for each candidate: its score, its difference from the reference, and why it was refused.

    Args:
        scored: The candidates.
        reference: What they are compared with.
        refused: Name to reason.
        seed: Of the bootstrap.

    Returns:
        JSON values, in the order of the candidates.
    """
    apart = differences([one.values - reference.values for one in scored], seed=seed)
    return [
        {
            "name": one.name,
            "score": float(one.values.mean()),
            "seconds": round(one.seconds, 2),
            "difference": found.as_dict(),
            "refused": refused.get(one.name),
        }
        for one, found in zip(scored, apart, strict=True)
    ]
