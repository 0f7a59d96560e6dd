"""How sure a mean over queries is: bootstrap 95% intervals, of means and of paired differences."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from querykey.errors import DataError, RangeError, ShapeError
from querykey.types import PerQuery

__all__ = ["Interval", "bootstrap", "bootstrap_columns", "paired_difference"]

SAMPLES = 2000
DRAWS_AT_ONCE = 2**21


@dataclass(frozen=True)
class Interval:
    """A mean and the 95% interval around it.

    Args:
        mean: Of the queries that count.
        low: 2.5th percentile of the resampled means.
        high: 97.5th percentile.
    """

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside: for a paired difference, "by more than the interval"."""
        return self.low > 0 or self.high < 0

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


def bootstrap(values: PerQuery, *, seed: int = 0, samples: int = SAMPLES) -> Interval:
    r"""The mean over queries with its 95% percentile interval.

    Queries are drawn with replacement, as many as there are, `samples` times; NaN queries
    are left out before.

    Args:
        values: One number a query, NaN where it doesn't count.
        seed: Same seed, same interval.
        samples: Resamplings, at least 1.

    Returns:
        Mean, 2.5th and 97.5th percentile, in the unit of the values.

    Raises:
        DataError: If no query counts.
        RangeError: If samples is not positive.

    Example:
        >>> bootstrap(torch.tensor([1.0, 1.0, torch.nan]))
        Interval(mean=1.0, low=1.0, high=1.0)

    Source:
        Efron 1979; the percentile interval.
    """
    return bootstrap_columns([values], seed=seed, samples=samples)[0]


def paired_difference(
    ours: PerQuery, theirs: Float[Tensor, " others"], *, seed: int = 0, samples: int = SAMPLES
) -> Interval:
    """The mean of ours - theirs over the same queries, with its 95% interval.

    Args:
        ours: One number a query.
        theirs: Of the same queries in the same order. A query that is NaN in either is left out.
        seed: Same seed, same interval.
        samples: Resamplings, at least 1.

    Returns:
        The difference; `excludes_zero` says whether it is more than the interval.

    Raises:
        ShapeError: If the two are of different lengths.
        DataError: If no query counts in both.
        RangeError: If samples is not positive.

    Example:
        >>> paired_difference(torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.0])).excludes_zero
        True
    """
    if ours.shape != theirs.shape:
        raise ShapeError(
            f"{len(ours)} values against {len(theirs)}; a paired difference needs the same queries in both"
        )
    return bootstrap(ours.double() - theirs.double(), seed=seed, samples=samples)


def bootstrap_columns(
    columns: Sequence[Tensor], *, seed: int = 0, samples: int = SAMPLES, level: float = 0.95
) -> list[Interval]:
    """`bootstrap` of several columns with the same draws: much less work than one by one.

    Columns that count the same queries share their draws, so each interval is that of `bootstrap`
    alone.

    Args:
        columns: One number a query each, NaN where it doesn't count.
        seed: Same seed, same intervals.
        samples: Resamplings, at least 1.
        level: Share of the resampled means that lie within, above 0 and below 1.

    Returns:
        One interval a column.

    Raises:
        ShapeError: If columns are of different lengths.
        DataError: If no query of a column counts.
        RangeError: If samples is not positive.

    Example:
        >>> two = bootstrap_columns([torch.tensor([0.0, 1.0]), torch.tensor([2.0, 2.0])])
        >>> two[1].mean, two[0] == bootstrap(torch.tensor([0.0, 1.0]))
        (2.0, True)
    """
    if samples < 1:
        raise RangeError(f"at least 1 resampling is needed, got samples={samples}")
    if len({len(column) for column in columns}) > 1:
        raise ShapeError(f"columns of {sorted({len(c) for c in columns})} values; need the same queries")
    alike: dict[bytes, list[int]] = {}
    for place, column in enumerate(columns):
        alike.setdefault(column.isnan().numpy().tobytes(), []).append(place)
    intervals: dict[int, Interval] = {}
    for places in alike.values():
        counts = ~columns[places[0]].isnan()
        values = np.stack([_numbers(columns[p][counts]) for p in places], axis=1)
        if not len(values):
            raise DataError("no query has a value, so there is no mean; check that queries have positives")
        intervals.update(zip(places, _intervals(values, seed, samples, level), strict=True))
    return [intervals[place] for place in range(len(columns))]


def _numbers(values: Tensor) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return values.detach().to(torch.float64).numpy()


def _intervals(
    values: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", seed: int, samples: int, level: float
) -> list[Interval]:
    """Of each column of [queries, columns]."""
    generator = np.random.default_rng(seed)
    count = len(values)
    means = []
    at_once = max(1, DRAWS_AT_ONCE // count)
    # resampling differences from the mean keeps a constant column exactly constant
    centre = values.mean(axis=0)
    apart = values - centre
    for start in range(0, samples, at_once):
        size = min(at_once, samples - start)
        drawn = generator.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        means.append(times.astype(np.float64) @ apart / count)
    outside = 50 * (1 - level)
    low, high = np.percentile(np.concatenate(means), [outside, 100 - outside], axis=0)
    return [Interval(float(m), float(m + a), float(m + b)) for m, a, b in zip(centre, low, high, strict=True)]
