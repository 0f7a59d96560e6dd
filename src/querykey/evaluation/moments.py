"""Moments of frozen rows: what PCA, whitening and every other closed form are computed from, in one pass.

Sums are float64 and run over blocks of a fixed size, so that the same rows give the same bits whatever the
number of processes. They add up: the moments of a fold's training part are the total minus the fold's.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from querykey.lookup.unit_length import unit_length
from querykey.types import FrozenRows, Keys, Labels, Numbers, Queries

__all__ = [
    "ClassMoments",
    "Moments",
    "PairMoments",
    "class_moments",
    "moments",
    "pair_moments",
    "principal",
    "whitening_scales",
]

BLOCK = 8192


@dataclass(frozen=True, eq=False)
class Moments:
    r"""Count, sum and second moment of unit rows.

    Args:
        count: Rows.
        total: :math:`\sum_i x_i` [width], float64.
        products: :math:`\sum_i x_i x_i^T` [width, width], float64.
    """

    count: int
    total: Float[Tensor, " width"]
    products: Float[Tensor, "width width"]

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.products + other.products)

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(self.count - other.count, self.total - other.total, self.products - other.products)

    @property
    def mean(self) -> Float[Tensor, " width"]:
        """Of the rows; not of length 1."""
        return self.total / max(1, self.count)

    @property
    def second(self) -> Float[Tensor, "width width"]:
        """E[x x'], not centred."""
        return self.products / max(1, self.count)

    @property
    def covariance(self) -> Float[Tensor, "width width"]:
        """E[(x - mean)(x - mean)'], divided by the count."""
        return self.second - torch.outer(self.mean, self.mean)

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and axes of the covariance; see `principal`."""
        return principal(self.covariance)

    @cached_property
    def uncentred_spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and axes of the second moment; see `principal`."""
        return principal(self.second)

    def principal_components(
        self, dim: int, *, centred: bool
    ) -> tuple[Float[Tensor, " dim"], Float[Tensor, "dim width"]]:
        """PCA: the `dim` axes along which rows vary most (centred), or are longest (not centred).

        Args:
            dim: From 1 to width.
            centred: Whether the mean is subtracted first.

        Returns:
            (eigenvalues, largest first; orthonormal axes as rows, the largest entry of each positive).
        """
        values, axes = self.spectrum if centred else self.uncentred_spectrum
        return values[:dim], axes[:dim]


@dataclass(frozen=True, eq=False)
class ClassMoments:
    r"""Moments of rows that have a class, and the sum of each class.

    The scatter within the classes is :math:`\sum_i x_i x_i^T - \sum_c s_c s_c^T / n_c`: a class of one row
    adds 0, so it needs no special case.

    Args:
        rows: Of all rows that have a class.
        counts: Rows of each class [classes], float64; 0 where a class is not there.
        sums: Sum of each class [classes, width], float64.
    """

    rows: Moments
    counts: Float[Tensor, " classes"]
    sums: Float[Tensor, "classes width"]

    def __sub__(self, other: "ClassMoments") -> "ClassMoments":
        return ClassMoments(self.rows - other.rows, self.counts - other.counts, self.sums - other.sums)

    @property
    def degrees(self) -> int:
        """Rows minus classes: 0 where no class has two rows."""
        return int(self.counts.sum()) - int((self.counts > 0).sum())

    @property
    def within(self) -> Float[Tensor, "width width"]:
        """Pooled covariance within the classes, divided by `degrees`."""
        means = self.sums / self.counts.clamp(min=1).sqrt()[:, None]
        return (self.rows.products - means.T @ means) / max(1, self.degrees)

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and axes of `within`; see `principal`."""
        return principal(self.within)


@dataclass(frozen=True, eq=False)
class PairMoments:
    r"""Moments over (query, document) pairs: a query counts once for each of its documents.

    Args:
        queries: Of the query of each pair.
        documents: Of the document of each pair.
        cross: :math:`\sum d q^T` over the pairs [width of d, width of q], float64.
    """

    queries: Moments
    documents: Moments
    cross: Float[Tensor, "width width"]

    def __sub__(self, other: "PairMoments") -> "PairMoments":
        return PairMoments(
            self.queries - other.queries, self.documents - other.documents, self.cross - other.cross
        )


def principal(second: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a moment matrix, in one order and with one sign.

    Args:
        second: Symmetric [width, width], float64.

    Returns:
        (eigenvalues [width], at least 0, largest first; axes [width, width] as rows, the largest entry of
        each positive).
    """
    values, vectors = torch.linalg.eigh(second)
    axes = vectors.T.flip(0)
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    return values.flip(0).clamp(min=0), axes * torch.where(largest < 0, -1.0, 1.0)


def whitening_scales(
    values: Float[Tensor, " dim"], *, power: float = 1.0, floor: float, drop: bool = False
) -> Float[Tensor, " dim"]:
    r"""The factor of each principal axis in whitening, :math:`\lambda_i^{-p/2}`.

    Args:
        values: Eigenvalues, largest first.
        power: p, from 0 (PCA) to 1 (variance 1 along each axis).
        floor: The smallest eigenvalue that is divided by, as a share of the largest. Below it are
            directions of rounding errors or of few rows, which whitening would amplify.
        drop: Whether axes below the floor get 0. Otherwise they get the factor of the floor.

    Returns:
        One factor an axis, float64.

    Example:
        >>> values = torch.tensor([4.0, 1.0, 1e-9])
        >>> whitening_scales(values, floor=1e-6, drop=True).tolist()
        [0.5, 1.0, 0.0]
    """
    lowest = floor * max(float(values[0]), 1e-300)  # rows that are all alike have no variance at all
    scales = values.clamp(min=lowest) ** (-power / 2)
    return scales.masked_fill(values <= lowest, 0.0) if drop else scales


def _blocks(rows: FrozenRows, which: Numbers | None = None) -> "list[slice] | list[Tensor]":
    """The blocks in which rows are summed: slices, or parts of `which`."""
    if which is None:
        return [slice(i, i + BLOCK) for i in range(0, len(rows), BLOCK)]
    return list(torch.split(which, BLOCK)) if len(which) else []


def moments(rows: FrozenRows, which: Numbers | None = None, *, weights: Tensor | None = None) -> Moments:
    """Sum the moments of unit rows, block by block.

    Args:
        rows: [rows, width], of any length but 0; may be memory-mapped.
        which: Numbers of the rows that count; all where None.
        weights: How often each of those counts, whole numbers; once where None.

    Returns:
        Their `Moments`.

    Example:
        >>> two = moments(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
        >>> two.count, two.mean.tolist()
        (2, [0.3, 0.9])
    """
    width = rows.shape[1]
    total = torch.zeros(width, dtype=torch.float64)
    products = torch.zeros(width, width, dtype=torch.float64)
    start = 0
    for block in _blocks(rows, which):
        unit = unit_length(rows[block].double())
        counted = unit if weights is None else unit * weights[start : start + len(unit), None]
        start += len(unit)
        total += counted.sum(dim=0)
        products.addmm_(counted.T, unit)
    count = start if weights is None else int(weights.sum())
    return Moments(count, total, products)


def class_moments(
    rows: FrozenRows, labels: Labels, classes: int, which: Numbers | None = None
) -> ClassMoments:
    """Sum the moments of unit rows that have a class, and of each class.

    Args:
        rows: [rows, width]; may be memory-mapped.
        labels: Class of each row from 0 to `classes` - 1, or -1 where it is not known.
        classes: How many there are.
        which: Numbers of the rows that count; all where None.

    Returns:
        Their `ClassMoments`; rows without a class are left out.
    """
    chosen = torch.arange(len(rows)) if which is None else which
    chosen = chosen[labels[chosen] >= 0]
    sums = torch.zeros(classes, rows.shape[1], dtype=torch.float64)
    for block in torch.split(chosen, BLOCK):
        sums.index_add_(0, labels[block], unit_length(rows[block].double()))
    counts = torch.bincount(labels[chosen], minlength=classes).double()
    return ClassMoments(moments(rows, chosen), counts, sums)


def pair_moments(queries: Queries, documents: Keys, query_of: Numbers, document_of: Numbers) -> PairMoments:
    """Sum the moments of (query, document) pairs.

    Args:
        queries: Rows of queries.
        documents: Rows of documents.
        query_of: Query of each pair.
        document_of: Document of each pair.

    Returns:
        Their `PairMoments`.
    """
    cross = torch.zeros(documents.shape[1], queries.shape[1], dtype=torch.float64)
    for queried, found in zip(torch.split(query_of, BLOCK), torch.split(document_of, BLOCK), strict=True):
        cross.addmm_(unit_length(documents[found].double()).T, unit_length(queries[queried].double()))
    return PairMoments(moments(queries, query_of), moments(documents, document_of), cross)
