"""Multinomial logistic regression by L-BFGS: standardised rows, an L2 path with warm starts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from querykey.errors import RangeError
from querykey.types import Rows

__all__ = [
    "LogisticProblem",
    "PathPoint",
    "Solution",
    "Spectrum",
    "l2_path",
    "spectrum_of",
    "standardisation",
]

BLOCK = 4096
"""Rows of one product: what is read from memory serves the loss and its gradient."""
MEMORY = 20
"""Pairs of L-BFGS."""
MAX_ITERATIONS = 500
GRADIENT_TOLERANCE = 1e-5
DECREASE_TOLERANCE = 1e-8
PATH_TOLERANCE = 1e-6
"""On the path, where accuracy alone is wanted: half the iterations, and the loss within about 1e-5."""
PATH = tuple(10.0 ** (1 - step / 2) for step in range(15))
"""Weights of the penalty that are tried, strong to weak: half decades from 10 to 1e-6. Chen et al. try
quarter decades from 1e5; but above 10 only the length of the weights still changes, and neighbours score
alike."""
PATIENCE = 4
"""Weights tried after the last that was better: two decades."""
CLEARLY = 2.0
"""Standard errors below the best."""


class Solution(NamedTuple):
    """A fitted classifier, and how the solver ended."""

    weight: Float[Tensor, "classes width"]
    bias: Float[Tensor, " classes"]
    loss: float
    """Mean cross-entropy and penalty, nats."""
    iterations: int
    converged: bool

    def logits(self, rows: Rows) -> Float[Tensor, "rows classes"]:
        """Float32 scores of each class."""
        return torch.addmm(self.bias.float(), rows, self.weight.float().T)


class Spectrum(NamedTuple):
    """The principal directions of rows: what the solver's steps are scaled by."""

    variance: Float[Tensor, " dim"]
    directions: Float[Tensor, "dim dim"]


class PathPoint(NamedTuple):
    """One weight of the penalty, and how well it did on held-out rows."""

    l2: float
    accuracy: float
    """From 0 to 1."""
    loss: float
    """Mean cross-entropy, nats."""
    iterations: int


def standardisation(rows: Rows) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
    """The mean and the deviation of each column, summed in float64 and in blocks.

    Args:
        rows: [rows, dim], at least one.

    Returns:
        (mean [dim], deviation [dim]), float32. The deviation of a column that is constant but for
        rounding is 1, so that it becomes 0 and not noise.

    Example:
        >>> mean, deviation = standardisation(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> mean.tolist(), deviation.tolist()
        ([2.0, 5.0], [1.0, 1.0])
    """
    blocks = [rows[i : i + BLOCK].double() for i in range(0, len(rows), BLOCK)]
    mean = torch.stack([block.sum(dim=0) for block in blocks]).sum(dim=0) / len(rows)
    squares = torch.stack([(block - mean).square().sum(dim=0) for block in blocks]).sum(dim=0)
    deviation = (squares / len(rows)).sqrt()
    constant = deviation <= torch.finfo(torch.float32).eps * mean.abs()
    return mean.float(), deviation.masked_fill(constant, 1.0).float()


def spectrum_of(rows: Rows) -> Spectrum:
    """The principal directions of standardised rows: of all of them, or a rare column would be missed.

    Args:
        rows: [rows, dim], float32.

    Returns:
        Variances [dim], lowest first, and directions [dim, dim], one a column.

    Example:
        >>> spectrum_of(torch.tensor([[2.0, 0.0], [-2.0, 0.0]])).variance
        tensor([0., 4.], dtype=torch.float64)
    """
    products = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        products += block.T @ block
    variance, directions = torch.linalg.eigh(products / len(rows))
    return Spectrum(variance.clamp(min=0), directions)


@dataclass(frozen=True, eq=False)
class LogisticProblem:
    r"""Mean cross-entropy with an L2 penalty on the weights, the biases free.

    .. math:: \frac1n \sum_i -\log \operatorname{softmax}(W x_i + b)_{y_i}
              + \frac{\lambda}{2} \lVert W \rVert_F^2

    scikit-learn's C is :math:`1 / (n \lambda)`; its model of two classes has one column in place of two
    opposite ones, so that :math:`\lambda` there is half of ours.

    The solver walks in the coordinates of the rows' principal directions, each scaled by its curvature:
    the same optimum in a tenth of the iterations, since directions of little variance no longer wait.

    Args:
        rows: Standardised, float32.
        members: The class of each row, 0 to classes - 1.
        classes: How many, at least 2.
        spectrum: `spectrum_of` these rows, or of more of their kind. It decides how fast the optimum is
            reached, and not where it is.
    """

    rows: Rows
    members: Int64[Tensor, " rows"]
    classes: int
    spectrum: Spectrum

    def solve(
        self, l2: float, start: Solution | None = None, *, tolerance: float = DECREASE_TOLERANCE
    ) -> Solution:
        r"""Minimise from a start, or from 0.

        Args:
            l2: :math:`\lambda > 0`.
            start: A solution nearby.
            tolerance: The relative decrease of the loss in a step at which it ends.

        Returns:
            The solution in float64. `converged` says that the loss or the gradient stopped changing before
            the iterations ran out.

        Raises:
            RangeError: If l2 is not positive.
        """
        from scipy.optimize import minimize

        if not l2 > 0:
            raise RangeError(f"l2 must be above 0, got {l2}")
        variance, directions = self.spectrum
        scale = (variance / self.classes + l2).rsqrt()
        free = math.sqrt(self.classes)

        def weights_of(at: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
            both = torch.from_numpy(at).view(self.classes, -1)
            return (scale * both[:, :-1]) @ directions.T, free * both[:, -1]

        def value(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            weight, bias = weights_of(at)
            loss, by_weight, by_bias = self._cross_entropy(weight.float(), bias.float())
            by_weight += l2 * weight
            slope = torch.cat([scale * (by_weight @ directions), free * by_bias[:, None]], dim=1)
            return loss + l2 / 2 * float(weight.square().sum()), slope.flatten().numpy()

        begin = torch.zeros(self.classes, len(scale) + 1, dtype=torch.float64)
        if start is not None:
            begin[:, :-1], begin[:, -1] = start.weight @ directions / scale, start.bias / free
        options: dict[str, float] = {
            "maxcor": MEMORY,
            "maxiter": MAX_ITERATIONS,
            "maxfun": 3 * MAX_ITERATIONS,
        }
        options |= {"gtol": GRADIENT_TOLERANCE, "ftol": tolerance}
        end = minimize(value, begin.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
        weight, bias = weights_of(end.x)
        # a line search that finds nothing lower has met the rounding of float32: that is the end too
        return Solution(weight, bias, float(end.fun), int(end.nit), int(end.nit) < MAX_ITERATIONS)

    def _cross_entropy(self, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """The mean and its gradients, float64 sums of float32 blocks."""
        total = 0.0
        by_weight = torch.zeros(weight.shape, dtype=torch.float64)
        by_bias = torch.zeros(bias.shape, dtype=torch.float64)
        for rows, members in zip(
            torch.split(self.rows, BLOCK), torch.split(self.members, BLOCK), strict=True
        ):
            # [classes, block]: with few classes the products are twice as fast this way round
            logits = torch.addmm(bias[:, None], weight, rows.T)
            own = members[None, :]
            log_sum = logits.logsumexp(dim=0, keepdim=True)
            total += float((log_sum - logits.gather(0, own)).sum(dtype=torch.float64))
            error = logits.sub_(log_sum).exp_()
            error.scatter_add_(0, own, torch.full_like(log_sum, -1.0))
            by_weight += error @ rows
            by_bias += error.sum(dim=1, dtype=torch.float64)
        return total / len(self.rows), by_weight / len(self.rows), by_bias / len(self.rows)


def l2_path(
    problems: Sequence[tuple[LogisticProblem, Rows, Int64[Tensor, "..."]]],
) -> tuple[list[PathPoint], dict[float, Solution]]:
    """Try the weights of `PATH` on held-out rows, strong to weak, each from the solution before.

    It ends where accuracy has fallen clearly below the best (by two standard errors), or two decades after
    the last weight that was better, in accuracy or in cross-entropy.

    Args:
        problems: One or several partings of the labelled rows: (what is fitted, held-out rows, their
            classes). Scores are of the held-out rows of all partings together.

    Returns:
        (the points that were tried, the first parting's solution at each).
    """
    points: list[PathPoint] = []
    solutions: list[Solution | None] = [None] * len(problems)
    first: dict[float, Solution] = {}
    best, lowest, since = -1.0, math.inf, 0
    for l2 in PATH:
        right, nats, steps = [], [], 0
        for number, (problem, rows, members) in enumerate(problems):
            solution = problem.solve(l2, solutions[number], tolerance=PATH_TOLERANCE)
            logits = solution.logits(rows)
            right.append(logits.argmax(dim=1) == members)
            nats.append(torch.nn.functional.cross_entropy(logits, members, reduction="none"))
            steps += solution.iterations
            solutions[number] = solution
        first[l2] = solutions[0]  # type: ignore[assignment]
        held = torch.cat(right).double()
        point = PathPoint(l2, float(held.mean()), float(torch.cat(nats).double().mean()), steps)
        points.append(point)
        since = 0 if point.accuracy > best or point.loss < lowest else since + 1
        best, lowest = max(best, point.accuracy), min(lowest, point.loss)
        error = math.sqrt(best * (1 - best) / len(held))
        if since >= PATIENCE or (since and point.accuracy < best - CLEARLY * max(error, 1 / len(held))):
            break
    return points, first
