"""Geometry of embeddings: preserved neighbours, alignment, uniformity, effective rank."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from querykey.errors import DataError, RangeError, ShapeError
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.lookup.unit_length import unit_length
from querykey.types import Labels, Neighbours, PerQuery, Rows

__all__ = ["alignment", "class_alignment", "effective_rank", "neighbour_overlap", "uniformity"]

BLOCK = 512


def neighbour_overlap(found: Int64[Tensor, "others found"], wanted: Neighbours) -> PerQuery:
    r"""The fraction of the wanted neighbours that were found, in any order.

    .. math:: \frac{|F_i \cap W_i|}{|W_i|}

    Args:
        found: [queries, any number], rows of the keys as `nearest` gives them; -1 where there is none.
        wanted: [queries, k] likewise, for example of the frozen embeddings.

    Returns:
        In [0, 1] per query; NaN where no neighbour is wanted.

    Raises:
        ShapeError: If the two are for different numbers of queries.

    Example:
        >>> neighbour_overlap(torch.tensor([[1, 2]]), torch.tensor([[2, 3]]))
        tensor([0.5000])
    """
    if len(found) != len(wanted):
        raise ShapeError(f"neighbours of {len(found)} and of {len(wanted)} queries; need the same queries")
    eligible = wanted >= 0
    is_found = torch.stack([(found == column[:, None]).any(dim=1) for column in wanted.T], dim=1) & eligible
    return is_found.sum(dim=1) / eligible.sum(dim=1)  # 0 / 0: NaN where no neighbour is wanted


def alignment(left: Float[Tensor, "left dim"], right: Float[Tensor, "right dim"]) -> float:
    r"""The mean squared distance between the unit rows of positive pairs; 0 is best.

    .. math:: \operatorname{E} \lVert x - y \rVert_2^2

    Args:
        left: One row of each pair.
        right: The other.

    Returns:
        In [0, 4], dimensionless.

    Raises:
        ShapeError: If the two do not have the same rows.
        DataError: If there is no pair.

    Example:
        >>> alignment(torch.eye(2), torch.eye(2).flip(0))
        2.0

    Source:
        Wang and Isola 2020, arXiv:2005.10242, eq. 2 with alpha = 2.
    """
    if left.shape != right.shape:
        raise ShapeError(f"pairs of {tuple(left.shape)} and {tuple(right.shape)}; need the same shape")
    if not len(left):
        raise DataError("alignment needs at least 1 positive pair, got none")
    total = 0.0
    for start in range(0, len(left), BLOCK):
        a, b = (_unit(side[start : start + BLOCK]) for side in (left, right))
        total += float((a - b).square().sum())
    return total / len(left)


def class_alignment(rows: Rows, labels: Labels) -> float:
    r"""`alignment` over all pairs of one class, without listing them.

    For a class of n unit rows the squared distances of its ordered pairs sum to
    :math:`2 n \sum_i \lVert z_i \rVert^2 - 2 \lVert \sum_i z_i \rVert^2`.

    Args:
        rows: [rows, dim].
        labels: Class of each row; -1 rows are left out.

    Returns:
        In [0, 4], dimensionless; each pair counts once, so large classes count most.

    Raises:
        DataError: If no two rows are of one class.

    Example:
        >>> class_alignment(torch.eye(2), torch.tensor([3, 3]))
        2.0

    Source:
        Wang and Isola 2020, arXiv:2005.10242, eq. 2 with alpha = 2.
    """
    is_labelled = labels != IGNORE_LABEL
    member = torch.from_numpy(np.unique(labels[is_labelled].numpy(), return_inverse=True)[1])
    count = torch.bincount(member).double()
    pairs = float((count * (count - 1)).sum())
    if not pairs:
        raise DataError("alignment needs two rows of one class, got none; give labels that repeat")
    where = is_labelled.nonzero()[:, 0]
    sums = torch.zeros(len(count), rows.shape[1], dtype=torch.float64)
    squares = torch.zeros(len(count), dtype=torch.float64)
    for start in range(0, len(where), BLOCK):
        unit = _unit(rows[where[start : start + BLOCK]])
        sums.index_add_(0, member[start : start + BLOCK], unit)
        squares.index_add_(0, member[start : start + BLOCK], unit.square().sum(dim=1))
    apart = 2 * count * squares - 2 * sums.square().sum(dim=1)
    return max(0.0, float(apart.sum()) / pairs)


def uniformity(rows: Rows, *, t: float = 2.0, max_rows: int = 10_000, seed: int = 0) -> float:
    r"""How evenly unit rows cover the sphere; lower is more even.

    .. math:: \log \operatorname{E} \exp(-t \lVert x - y \rVert_2^2)

    Args:
        rows: [rows, dim], at least 2.
        t: Above 0, dimensionless.
        max_rows: With more rows than this, so many drawn at random are used: the pairs grow with
            the square.
        seed: Of that draw.

    Returns:
        At most 0, nats: 0 where all rows are one point.

    Raises:
        RangeError: If t is not positive.
        DataError: If there are fewer than 2 rows.

    Example:
        >>> round(uniformity(torch.eye(3)), 6)
        -4.0

    Source:
        Wang and Isola 2020, arXiv:2005.10242, eq. 3.
    """
    if t <= 0:
        raise RangeError(f"t must be above 0, got {t}")
    if len(rows) < 2 or max_rows < 2:
        raise DataError(f"uniformity needs at least 2 rows, got {min(len(rows), max_rows)}")
    if len(rows) > max_rows:
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:max_rows]
        rows = rows[chosen.sort().values]
    unit = _unit(rows)
    norms = unit.square().sum(dim=1)
    sums = []
    for start in range(0, len(unit), BLOCK):
        here = slice(start, start + BLOCK)
        apart = norms[here, None] + norms[None, :] - 2 * unit[here] @ unit.T
        exponent = -t * apart.clamp(min=0)
        row = torch.arange(len(exponent))
        exponent[row, start + row] = -torch.inf
        sums.append(exponent.logsumexp(dim=1))
    return float(torch.cat(sums).logsumexp(dim=0)) - math.log(len(unit) * (len(unit) - 1))


def effective_rank(rows: Rows, *, unit: bool = False) -> float:
    r"""How many dimensions the rows use, as the exponential of the entropy of their singular values.

    .. math:: \exp \Bigl( -\sum_k p_k \log p_k \Bigr), \qquad p_k = \sigma_k / \sum_j \sigma_j

    Args:
        rows: [rows, dim], not centred; only a matrix [dim, dim] is in memory.
        unit: Scale rows to length 1 first; else they are not scaled, as in the source.

    Returns:
        From 1 to min(rows, dim); 0 where all rows are 0.

    Raises:
        DataError: If there are no rows.

    Example:
        >>> round(effective_rank(torch.eye(3)), 6)
        3.0

    Source:
        Garrido et al. 2023, arXiv:2210.02885, eq. 1 (RankMe), without its 1e-7; Roy and Vetterli 2007.
    """
    if not len(rows):
        raise DataError("the effective rank needs at least 1 row, got none")
    gram = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        block = _unit(block) if unit else block.double()
        gram += block.T @ block
    squares = torch.linalg.eigvalsh(gram)
    # the rounding of a float64 Gram matrix, whose square root would pass for a small singular value
    noise = float(squares[-1]) * len(gram) * torch.finfo(torch.float64).eps
    singular = squares.clamp(min=0).masked_fill(squares <= noise, 0.0).sqrt()
    if not float(singular.sum()):
        return 0.0
    share = singular / singular.sum()
    return math.exp(float(torch.special.entr(share).sum()))


def _unit(rows: Tensor) -> Tensor:
    return unit_length(rows.double())
