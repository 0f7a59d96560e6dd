"""Baselines of an adapter: projections of the frozen features to the same dim.

Each is fitted on training rows alone. All are affine, so one class stores any of them. The same FC layer
without a memory is a baseline too; it is trained, so it is not among them.
"""

import math
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from querykey.distributed.process_group import in_default_torch_state
from querykey.errors import DataError, RangeError
from querykey.evaluation.few_labels import count_classes, labelled_unit_rows
from querykey.evaluation.moments import Moments, moments, whitening_scales
from querykey.evaluation.ranking import is_finite
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.lookup.unit_length import unit_length
from querykey.types import Labels, Rows

__all__ = [
    "Projector",
    "fit_baselines",
    "lda",
    "pca",
    "random_projection",
    "truncated",
    "whitened_pca",
]

BLOCK = 8192
WHITENING_FLOOR = math.sqrt(torch.finfo(torch.float64).eps)
"""Fraction of the largest variance. Smaller ones are rounding errors: 4 centred rows span 3 directions."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Projector:
    r"""Unit rows of an affine map of unit rows.

    .. math:: z = \operatorname{norm}(W^T (\operatorname{norm}(x) - m))

    Args:
        name: In tables.
        dim: Width of the output; LDA may have fewer dimensions than were requested.
        matrix: :math:`W`, or None for the identity.
        mean: :math:`m`, or None for 0.
    """

    name: str
    dim: int
    matrix: Float[Tensor, "width dim"] | None = None
    mean: Float[Tensor, " width"] | None = None

    @in_default_torch_state
    def transform(self, rows: Rows) -> Float[Tensor, "rows out"]:
        """Project [rows, width] to unit rows [rows, dim], float32; a row at the mean stays 0."""
        parts = [self._block(rows[i : i + BLOCK]) for i in range(0, len(rows), BLOCK)]
        return torch.cat(parts) if parts else torch.empty(0, self.dim)

    def _block(self, rows: Tensor) -> Tensor:
        unit = unit_length(rows).float()
        if self.mean is not None:
            unit = unit - self.mean
        return unit if self.matrix is None else unit_length(unit @ self.matrix)


@in_default_torch_state
def fit_baselines(
    train: Rows, dim: int, *, labels: Labels | None = None, seed: int = 0
) -> dict[str, Projector]:
    """All projections that differ at this dim, the frozen rows first.

    At full width a rotation changes no cosine, so truncation, uncentred PCA and the random
    projection would repeat the frozen row and are left out. LDA comes with labels of two
    classes or more.

    Args:
        train: Frozen features [rows, width] of the training data.
        dim: From 1 to width.
        labels: Class of each row, -1 where unknown.
        seed: Of the random projection.

    Returns:
        Name to projector, in the order of the table.

    Raises:
        RangeError: If dim is outside 1 to width.
        DataError: If there are no rows, or they aren't finite.

    Example:
        >>> list(fit_baselines(torch.eye(4), 2))
        ['frozen', 'truncated', 'pca', 'pca_uncentred', 'whitened_pca', 'random_projection']
    """
    width = _check_dim(train, dim)
    of = moments(train)
    fitted = [Projector(name="frozen", dim=width)]
    if dim < width:
        fitted.append(truncated(width, dim))
    fitted.append(_pca(of, dim, centred=True))
    if dim < width:
        fitted.append(_pca(of, dim, centred=False))
    fitted.append(_pca(of, dim, centred=True, whitened=True))
    if dim < width:
        fitted.append(random_projection(width, dim, seed=seed))
    if labels is not None and _can_separate(labels):
        fitted.append(lda(train, labels, dim))
    return {projector.name: projector for projector in fitted}


@in_default_torch_state
def truncated(width: int, dim: int) -> Projector:
    """The first dim coordinates, as of a Matryoshka model."""
    return Projector(name="truncated", dim=dim, matrix=torch.eye(width, dim))


@in_default_torch_state
def pca(train: Rows, dim: int, *, centred: bool = True) -> Projector:
    """The dim directions in which training rows vary most (centred), or are longest (not centred).

    The usual PCA is centred. Uncentred often ranks text better, as cosines to the mean count.

    Raises:
        RangeError: If dim is outside 1 to width.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])
        >>> pca(rows, 1).transform(rows).sum()  # the two ends of the one direction
        tensor(0.)
    """
    _check_dim(train, dim)
    return _pca(moments(train), dim, centred=centred)


@in_default_torch_state
def whitened_pca(train: Rows, dim: int) -> Projector:
    """Centred PCA with every direction scaled to variance 1; directions without variance give 0.

    Raises:
        RangeError: If dim is outside 1 to width.
    """
    _check_dim(train, dim)
    return _pca(moments(train), dim, centred=True, whitened=True)


@in_default_torch_state
def random_projection(width: int, dim: int, *, seed: int = 0) -> Projector:
    """Dim orthonormal directions drawn evenly: what any projection of this size keeps.

    Raises:
        RangeError: If dim is outside 1 to width.
    """
    if not 1 <= dim <= width:
        raise RangeError(f"dim must be from 1 to the width {width}, got {dim}")
    drawn = torch.randn(width, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Projector(name="random_projection", dim=dim, matrix=torch.linalg.qr(drawn).Q.float())


@in_default_torch_state
def lda(train: Rows, labels: Labels, dim: int) -> Projector:
    """Linear discriminant analysis: directions that spread classes against the spread within them.

    Args:
        train: [rows, width].
        labels: Class of each row; -1 rows are left out.
        dim: Wanted width. There are at most classes - 1 directions, so `Projector.dim` may be less.

    Returns:
        A projector of min(dim, width, classes - 1) dimensions, or fewer where features repeat.

    Raises:
        RangeError: If dim is outside 1 to width.
        DataError: If there are not two classes, or none has two rows.

    Source:
        scikit-learn's LinearDiscriminantAnalysis, solver "svd".
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    width = _check_dim(train, dim)
    unit, known = labelled_unit_rows(train, labels)
    if not _can_separate(labels):
        raise DataError("LDA needs two classes and more rows than classes; give more labelled rows")
    most = min(dim, width, count_classes(known) - 1)
    model = LinearDiscriminantAnalysis(n_components=most)
    with warnings.catch_warnings():
        # repeated features are no error here: their direction is left out
        warnings.simplefilter("ignore")
        model.fit(unit.numpy(), known.numpy())
    matrix = torch.from_numpy(model.scalings_[:, :most]).float().contiguous()
    return Projector(
        name="lda", dim=matrix.shape[1], matrix=matrix, mean=torch.from_numpy(model.xbar_).float()
    )


def _can_separate(labels: Labels) -> bool:
    known = labels[labels != IGNORE_LABEL]
    return 2 <= count_classes(known) < len(known)


def _check_dim(train: Rows, dim: int) -> int:
    if not len(train):
        raise DataError("baselines are fitted on training rows, got none")
    if not is_finite(train):
        raise DataError("the training rows hold NaN or infinite numbers; look at the model")
    if not 1 <= dim <= train.shape[1]:
        raise RangeError(f"dim must be from 1 to the width {train.shape[1]}, got {dim}")
    return train.shape[1]


def _pca(of: Moments, dim: int, *, centred: bool, whitened: bool = False) -> Projector:
    variance, axes = of.principal_components(dim, centred=centred)
    if whitened:
        axes = whitening_scales(variance, floor=WHITENING_FLOOR, drop=True)[:, None] * axes
    return Projector(
        name="whitened_pca" if whitened else "pca" if centred else "pca_uncentred",
        dim=dim,
        matrix=axes.T.float().contiguous(),
        mean=of.mean.float() if centred else None,
    )
