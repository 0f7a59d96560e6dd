"""Closed forms: adapters computed from moments in seconds, without training.

Each is an `Affine`, z = normalize(W x + b). W is scaled to the Frobenius norm of a PCA, the square root of
its number of rows. Only the direction of z matters, and training starts at the same scale from every form.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from querykey.evaluation.moments import ClassMoments, Moments, PairMoments, principal, whitening_scales
from querykey.lookup.unit_length import unit_length

__all__ = [
    "Affine",
    "discriminant",
    "identity",
    "low_rank",
    "principal_components",
    "procrustes",
    "ridge",
    "soft_whitening",
]

FLOOR = 1e-3
"""Smallest eigenvalue that soft whitening divides by, relative to the largest."""


@dataclass(frozen=True, eq=False)
class Affine:
    r"""A matrix and an offset: :math:`z = \text{norm}(W x + b)`.

    Args:
        weight: W [dim, width], float64.
        bias: b [dim], float64.
    """

    weight: Float[Tensor, "dim width"]
    bias: Float[Tensor, " dim"]

    def __call__(self, rows: Tensor) -> Tensor:
        """Map unit rows [rows, width] to unit rows [rows, dim], float32."""
        return unit_length(F.linear(rows.float(), self.weight.float(), self.bias.float()))

    @property
    def directions(self) -> int:
        """Number of output dimensions that are not constantly 0."""
        return int(self.weight.any(dim=1).sum())


def _scaled(weight: Tensor, mean: Tensor | None) -> Affine:
    norm = float(weight.norm())
    weight = weight * (math.sqrt(len(weight)) / norm) if norm > 0 else weight
    return Affine(weight, weight.new_zeros(len(weight)) if mean is None else -(weight @ mean))


def identity(width: int) -> Affine:
    """The identity: frozen rows."""
    return Affine(torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))


def principal_components(of: Moments, dim: int, *, centred: bool) -> Affine:
    """PCA: the `dim` axes of largest variance (centred), or along which rows are longest (not centred).

    Args:
        of: Moments of the rows.
        dim: From 1 to width.
        centred: Whether the mean is subtracted.

    Returns:
        An `Affine` with orthonormal rows, the largest entry of each positive.
    """
    return _scaled(of.principal_components(dim, centred=centred)[1], of.mean if centred else None)


def soft_whitening(of: Moments, dim: int, *, power: float) -> Affine:
    r"""Principal axes, each scaled by :math:`\lambda_i^{-p/2}`: p = 0 is centred PCA, p = 1 whitens.

    Args:
        of: Moments of the rows.
        dim: From 1 to width.
        power: p, from 0 to 1. Eigenvalues are floored at `FLOOR` of the largest.

    Returns:
        The `Affine`.

    Source:
        Su et al. 2021, arXiv:2103.15316 (whitening of sentence embeddings, p = 1).
    """
    values, axes = of.principal_components(dim, centred=True)
    return _scaled(whitening_scales(values, power=power, floor=FLOOR)[:, None] * axes, of.mean)


def discriminant(
    of: ClassMoments, every: Moments, dim: int, *, shrinkage: float, fill: float = 0.0
) -> Affine:
    r"""Whiten within the classes, then scale each direction by how well it separates them.

    .. math:: S = (1 - s) S_w + s \frac{\text{tr} S_w}{\text{width}} I, \quad A = S^{-1/2}, \quad
              A B A^T = U \,\text{diag}(b)\, U^T, \quad
              W = \text{diag}\Bigl(\sqrt{b / (1 + b)}\Bigr) U^T A

    with :math:`S_w` the covariance within and :math:`B` the covariance between classes. At most classes - 1
    directions are not 0. A class of n rows inflates b by about 1 / n, which is subtracted.

    Args:
        of: Moments of the rows that have a class; needs a class of two rows.
        every: Moments of all rows, with or without a class; their mean is subtracted.
        dim: From 1 to width.
        shrinkage: s, above 0 to 1.
        fill: Weight of the largest remaining principal axes of the whitened rows, in the remaining
            dimensions; 0 leaves them 0.

    Returns:
        The `Affine`.

    Source:
        Ioffe 2006, Probabilistic Linear Discriminant Analysis; Hatch et al. 2006 (WCCN) is A alone.
    """
    width = len(every.total)
    values, axes = of.spectrum  # shrinking to a multiple of I moves the eigenvalues alone
    values = (1 - shrinkage) * values + shrinkage * values.mean()
    whiten = values.clamp(min=1e-12).rsqrt()[:, None] * axes

    there = of.counts > 0
    counts, sums = of.counts[there], of.sums[there]
    share = counts / counts.sum()
    spread = share.sqrt()[:, None] * (sums / counts[:, None] - of.rows.mean)
    left, singular, _ = torch.linalg.svd(whiten @ spread.T, full_matrices=False)
    b = (singular**2 - (1 / counts * share).sum()).clamp(min=0)
    weights = (b / (1 + b)).sqrt()
    count = min(dim, int((weights > 1e-6).sum()), len(counts) - 1)
    weight = torch.zeros(dim, width, dtype=torch.float64)
    weight[:count] = weights[:count, None] * (left[:, :count].T @ whiten)
    if fill > 0 and count < dim:
        rest = torch.eye(width, dtype=torch.float64) - left[:, :count] @ left[:, :count].T
        more = principal(rest @ whiten @ every.covariance @ whiten.T @ rest)[1][: dim - count]
        weight[count : count + len(more)] = fill * (more @ whiten)
    return _scaled(weight, every.mean)


def procrustes(of: PairMoments) -> Affine:
    """The rotation that brings centred queries nearest to their centred documents.

    Args:
        of: Moments of the pairs.

    Returns:
        The `Affine` of the query side.

    Source:
        Schönemann 1966, A generalized solution of the orthogonal Procrustes problem.
    """
    count = max(1, of.queries.count)
    cross = of.cross / count - torch.outer(of.documents.mean, of.queries.mean)
    left, _, right = torch.linalg.svd(cross)
    turn = left @ right
    return Affine(turn, of.documents.mean - turn @ of.queries.mean)


def ridge(of: PairMoments, *, strength: float) -> Affine:
    r"""Queries to their documents by least squares, shrunk to the identity.

    .. math:: \min_W \sum_{(q, d)} \lVert W q - d \rVert^2 + \lambda \lVert W - I \rVert_F^2

    Args:
        of: Moments of the pairs, as sums, so that more pairs weaken the same strength.
        strength: Lambda, above 0.

    Returns:
        The `Affine` of the query side.

    Source:
        Hoerl and Kennard 1970, shrunk to the identity instead of zero.
    """
    eye = torch.eye(of.cross.shape[1], dtype=torch.float64)
    gram = of.queries.products + strength * eye
    change = torch.linalg.solve(gram, (of.cross - of.queries.products).T).T
    return Affine(eye + change, torch.zeros(len(eye), dtype=torch.float64))


def low_rank(of: PairMoments, *, strength: float, rank: int) -> Affine:
    """The rank-`rank` approximation of the change of `ridge`: q + U V' q.

    Args:
        of: Moments of the pairs.
        strength: Of the ridge.
        rank: From 1 to width.

    Returns:
        The `Affine` of the query side.
    """
    full = ridge(of, strength=strength)
    eye = torch.eye(len(full.weight), dtype=torch.float64)
    left, singular, right = torch.linalg.svd(full.weight - eye)
    part = left[:, :rank] * singular[:rank] @ right[:rank]
    return Affine(eye + part, full.bias)
