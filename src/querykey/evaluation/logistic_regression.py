"""Multinomial logistic regression by L-BFGS: one solver, for linear evaluation and for the baseline.

`LogisticProblem` is the solver. Linear evaluation standardises the rows and uses `l2_path`;
`logistic_regression`, the baseline of adapters, scales rows to length 1 and tries a few penalties.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from querykey.errors import DataError, RangeError
from querykey.evaluation.few_labels import count_classes, labelled_unit_rows
from querykey.lookup.unit_length import unit_length
from querykey.types import Labels, Rows

__all__ = [
    "LinearClassifier",
    "LogisticProblem",
    "PathPoint",
    "Solution",
    "Spectrum",
    "l2_path",
    "logistic_regression",
    "spectrum_of",
    "standardisation",
]

BLOCK = 2048
"""Rows per product: a block that stays in the cache serves the loss and its gradient."""
MAX_CORRECTIONS = 20
"""Correction pairs of L-BFGS."""
MAX_ITERATIONS = 500
GRADIENT_TOLERANCE = 1e-5
DECREASE_TOLERANCE = 1e-8
PATH_TOLERANCE = 1e-6
"""For the path, where only accuracy matters: half the iterations, with the loss within about 1e-5."""
LARGE_TOLERANCE = 1e-5
"""For large problems: a fifth of the iterations of `DECREASE_TOLERANCE`, and the accuracy on 10,000 rows is
within 0.0005 of the optimum's."""
PATH = tuple(10.0 ** (1 - step / 2) for step in range(15))
"""Weights of the penalty in descending order: half decades from 10 to 1e-6. Chen et al. try quarter decades
from 1e5; but above 10 only the norm of the weights changes, and adjacent values have equal accuracy."""
PATIENCE = 4
"""Weights tried after the last improvement: two decades."""
LARGE_PATIENCE = 2
"""For large problems, which are scored on thousands of held-out rows."""
STANDARD_ERRORS = 2.0
"""The path ends when the accuracy is so many standard errors below the best."""

STRENGTHS = (3.0, 10.0, 30.0, 100.0)
"""scikit-learn's C for unit rows: their coordinates are small, so they need a weak penalty."""
DEFAULT_STRENGTH = 10.0
"""If too few rows are labelled to hold some out."""
VALIDATION_ROWS = 20_000
HELD_OUT_FOLDS = 5
"""A fifth of the rows is held out."""


class Solution(NamedTuple):
    """A fitted classifier with the state of the solver."""

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
    """The principal directions of rows, by which the solver is preconditioned."""

    variance: Float[Tensor, " dim"]
    directions: Float[Tensor, "dim dim"]


class PathPoint(NamedTuple):
    """One weight of the penalty with its validation scores."""

    l2: float
    accuracy: float
    """From 0 to 1."""
    loss: float
    """Mean cross-entropy, nats."""
    iterations: int


def standardisation(rows: Rows) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
    """The mean and the standard deviation of each column, summed in float64 and in blocks.

    Args:
        rows: [rows, dim], at least one.

    Returns:
        (mean [dim], standard deviation [dim]), float32. The standard deviation is 1 for a column that is
        constant up to rounding, which becomes 0 instead of noise.

    Example:
        >>> mean, std = standardisation(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> mean.tolist(), std.tolist()
        ([2.0, 5.0], [1.0, 1.0])
    """
    blocks = [rows[i : i + BLOCK].double() for i in range(0, len(rows), BLOCK)]
    mean = torch.stack([block.sum(dim=0) for block in blocks]).sum(dim=0) / len(rows)
    squares = torch.stack([(block - mean).square().sum(dim=0) for block in blocks]).sum(dim=0)
    std = (squares / len(rows)).sqrt()
    # a constant column has a std of rounding errors alone; dividing by it would turn them into features
    constant = std <= torch.finfo(torch.float32).eps * mean.abs()
    return mean.float(), std.masked_fill(constant, 1.0).float()


def spectrum_of(rows: Rows) -> Spectrum:
    """The principal directions of standardised rows. All rows are used, as a sample may miss a rare column.

    Args:
        rows: [rows, dim], float32.

    Returns:
        Variances [dim] in ascending order, and directions [dim, dim], one per column.

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
    r"""Mean cross-entropy with an L2 penalty on the weights and none on the biases.

    .. math:: \frac1n \sum_i -\log \operatorname{softmax}(W x_i + b)_{y_i}
              + \frac{\lambda}{2} \lVert W \rVert_F^2

    scikit-learn's C is :math:`1 / (n \lambda)`; its model of two classes has one weight vector instead of two
    opposite ones, so its :math:`\lambda` is half of ours.

    The solver is preconditioned: it works in the coordinates of the principal directions, each scaled by its
    curvature. The optimum is the same; it takes a tenth of the iterations.

    Args:
        rows: Standardised rows, or rows of length 1, float32 or bfloat16. Products are in this dtype, the
            softmax is in float32, and sums over blocks are in float64.
        targets: The class of each row, 0 to classes - 1.
        classes: Number of classes, at least 2.
        spectrum: `spectrum_of` these rows, or of a larger sample. It changes the speed, not the optimum.
    """

    rows: Rows
    targets: Int64[Tensor, " rows"]
    classes: int
    spectrum: Spectrum

    def solve(
        self, l2: float, start: Solution | None = None, *, tolerance: float = DECREASE_TOLERANCE
    ) -> Solution:
        r"""Minimise, from a given solution or from 0.

        Args:
            l2: :math:`\lambda > 0`.
            start: The solution for a similar weight.
            tolerance: Relative decrease of the loss per iteration at which the solver stops.

        Returns:
            The solution in float64. `converged` is False if the iterations ran out.

        Raises:
            RangeError: If l2 is not positive.
        """
        from scipy.optimize import minimize
        from threadpoolctl import threadpool_limits

        if not l2 > 0:
            raise RangeError(f"l2 must be above 0, got {l2}")
        variance, directions = self.spectrum
        scale = (variance / self.classes + l2).rsqrt()
        bias_scale = math.sqrt(self.classes)

        def weights_of(x: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
            parameters = torch.from_numpy(x).view(self.classes, -1)
            return (scale * parameters[:, :-1]) @ directions.T, bias_scale * parameters[:, -1]

        def value(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            weight, bias = weights_of(x)
            loss, by_weight, by_bias = self._cross_entropy(weight.float(), bias.float())
            by_weight += l2 * weight
            gradient = torch.cat([scale * (by_weight @ directions), bias_scale * by_bias[:, None]], dim=1)
            return loss + l2 / 2 * float(weight.square().sum()), gradient.flatten().numpy()

        initial = torch.zeros(self.classes, len(scale) + 1, dtype=torch.float64)
        if start is not None:
            initial[:, :-1], initial[:, -1] = start.weight @ directions / scale, start.bias / bias_scale
        options: dict[str, float] = {
            "maxcor": MAX_CORRECTIONS,
            "maxiter": MAX_ITERATIONS,
            "maxfun": 3 * MAX_ITERATIONS,
        }
        options |= {"gtol": GRADIENT_TOLERANCE, "ftol": tolerance}
        # SciPy's BLAS has threads of its own, which spin for a while after each call and take a core from
        # PyTorch's: with two cores an evaluation of loss and gradient takes 2.4 times as long
        with threadpool_limits(limits=1, user_api="blas"):
            result = minimize(value, initial.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
        weight, bias = weights_of(result.x)
        # a line search that finds no lower value has reached the precision of float32: converged, too
        return Solution(weight, bias, float(result.fun), int(result.nit), int(result.nit) < MAX_ITERATIONS)

    def _cross_entropy(self, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """The mean and its gradients: float64 sums over blocks."""
        total = 0.0
        weight = weight.to(self.rows.dtype)
        by_weight = torch.zeros(weight.shape, dtype=torch.float64)
        by_bias = torch.zeros(bias.shape, dtype=torch.float64)
        for rows, targets in zip(
            torch.split(self.rows, BLOCK), torch.split(self.targets, BLOCK), strict=True
        ):
            # [classes, block]: with few classes the products are twice as fast in this orientation
            error = self._logits(weight, bias, rows)
            target = targets[None, :]
            own, top = error.gather(0, target), error.amax(dim=0, keepdim=True)
            # one exponential a logit, and in the sum of each row the largest term is 1
            sums = error.sub_(top).exp_().sum(dim=0, keepdim=True)
            total += float((sums.log() + (top - own)).sum(dtype=torch.float64))
            error.div_(sums).scatter_add_(0, target, torch.full_like(sums, -1.0))
            by_weight += error.to(rows.dtype) @ rows
            by_bias += error.sum(dim=1)
        return total / len(self.rows), by_weight / len(self.rows), by_bias / len(self.rows)

    @staticmethod
    def _logits(weight: Tensor, bias: Tensor, rows: Tensor) -> Tensor:
        if rows.dtype == torch.float32:
            return torch.addmm(bias[:, None], weight, rows.T)
        return torch.add(weight @ rows.T, bias[:, None])  # in float32


def l2_path(
    problems: Sequence[tuple[LogisticProblem, Rows, Int64[Tensor, "..."]]],
    *,
    tolerance: float = PATH_TOLERANCE,
    patience: int = PATIENCE,
    extrapolates: bool = False,
) -> tuple[list[PathPoint], dict[float, Solution]]:
    """Try the weights of `PATH` on held-out rows, strong to weak, each from the solution of the last.

    The path ends when the accuracy is two standard errors below the best, or `patience` weights after the
    last improvement of accuracy or cross-entropy.

    Args:
        problems: One or more splits of the labelled rows: (problem on the training rows, held-out rows, their
            classes). Scores are over the held-out rows of all splits together.
        tolerance: The relative decrease of the loss in a step at which a solution ends.
        patience: Weights tried after the last improvement, at least 1.
        extrapolates: Whether to start from where the last two solutions lead, in place of the last one.

    Returns:
        (the points, the solution of the first split at each).
    """
    points: list[PathPoint] = []
    solutions: list[Solution | None] = [None] * len(problems)
    starts: list[Solution | None] = [None] * len(problems)
    first: dict[float, Solution] = {}
    best, lowest, since = -1.0, math.inf, 0
    for l2 in PATH:
        hits, losses, iterations = [], [], 0
        for split, (problem, rows, targets) in enumerate(problems):
            solution = problem.solve(l2, starts[split], tolerance=tolerance)
            logits = solution.logits(rows)
            hits.append(logits.argmax(dim=1) == targets)
            losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
            iterations += solution.iterations
            starts[split] = _extrapolated(solution, solutions[split]) if extrapolates else solution
            solutions[split] = solution
        first[l2] = solutions[0]  # type: ignore[assignment]
        correct = torch.cat(hits).double()
        point = PathPoint(l2, float(correct.mean()), float(torch.cat(losses).double().mean()), iterations)
        points.append(point)
        since = 0 if point.accuracy > best or point.loss < lowest else since + 1
        best, lowest = max(best, point.accuracy), min(lowest, point.loss)
        error = math.sqrt(best * (1 - best) / len(correct))
        if since >= patience or (
            since and point.accuracy < best - STANDARD_ERRORS * max(error, 1 / len(correct))
        ):
            break
    return points, first


def _extrapolated(solution: Solution, last: Solution | None) -> Solution:
    """The next solution of the path, if it were linear in the logarithm of the penalty's weight."""
    if last is None:
        return solution
    weight, bias = 2 * solution.weight - last.weight, 2 * solution.bias - last.bias
    return solution._replace(weight=weight, bias=bias)


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearClassifier:
    """A linear classifier of unit rows.

    Args:
        weight: One row per class.
        bias: One number per class.
        classes: The label of each row of `weight`.
        strength: The inverse weight of the L2 penalty that was chosen, scikit-learn's C.
        converged: False if the iterations of the solver ran out.
    """

    weight: Float[Tensor, "classes width"]
    bias: Float[Tensor, " classes"]
    classes: Int64[Tensor, " classes"]
    strength: float
    converged: bool

    def predict(self, rows: Rows) -> Labels:
        """The class of each row [rows]."""
        parts = [self._block(rows[i : i + BLOCK]) for i in range(0, len(rows), BLOCK)]
        return torch.cat(parts) if parts else self.classes[:0]

    def _block(self, rows: Tensor) -> Tensor:
        scores = unit_length(rows).float() @ self.weight.T + self.bias
        return self.classes[scores.argmax(dim=1)]


def logistic_regression(
    train: Rows,
    labels: Labels,
    *,
    strengths: Sequence[float] = STRENGTHS,
    folds: int | None = None,
    seed: int = 0,
) -> LinearClassifier:
    """Multinomial logistic regression on unit rows, with the penalty chosen on held-out rows.

    The best strength (the smallest of equals) is refitted on all rows.

    Args:
        train: [rows, width].
        labels: Class of each row; rows with -1 are not used.
        strengths: Inverse weights of the penalty to try, scikit-learn's C, ascending, each above 0.
        folds: Number of stratified folds, as scikit-learn's `GridSearchCV(cv=folds)`. None: one
            fifth of at most 20,000 rows, drawn at random, is held out.
        seed: Random seed of that fifth.

    Returns:
        The classifier.

    Raises:
        DataError: If there are not two classes.

    Source:
        Chen et al. 2020, arXiv:2002.05709, app. B.8: L-BFGS with the penalty chosen by validation.
    """
    unit, targets = labelled_unit_rows(train, labels)
    if count_classes(targets) < 2:
        raise DataError("logistic regression needs two classes, got one; give more labelled rows")
    spectrum = spectrum_of(unit)
    correct = dict.fromkeys(strengths, 0)
    for fitting, held_out in _splits(targets, folds, seed):
        if len(held_out) and count_classes(targets[fitting]) > 1:
            for strength in strengths:
                model = _fit_unit_rows(unit[fitting], targets[fitting], strength, spectrum)
                correct[strength] += int((model.predict(unit[held_out]) == targets[held_out]).sum())
    chosen = max(strengths, key=lambda strength: (correct[strength], -strength))
    return _fit_unit_rows(unit, targets, chosen if any(correct.values()) else DEFAULT_STRENGTH, spectrum)


def _splits(targets: Labels, folds: int | None, seed: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Pairs of (rows to fit on, held-out rows)."""
    if folds is None:
        order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))[:VALIDATION_ROWS]
        count = len(order) // HELD_OUT_FOLDS
        return [(order[count:], order[:count])]
    from sklearn.model_selection import StratifiedKFold

    splits = StratifiedKFold(folds).split(targets.numpy(), targets.numpy())
    return [(torch.from_numpy(fitting), torch.from_numpy(held_out)) for fitting, held_out in splits]


def _fit_unit_rows(unit: Rows, labels: Labels, strength: float, spectrum: Spectrum) -> LinearClassifier:
    classes, targets = torch.unique(labels, return_inverse=True)
    # scikit-learn fits two classes by one vector of log-odds; ours has two opposite halves of it, whose
    # squares sum to half, so that the same optimum needs twice the weight
    l2 = (2 if len(classes) == 2 else 1) / (len(unit) * strength)
    solution = LogisticProblem(unit, targets, len(classes), spectrum).solve(l2)
    return LinearClassifier(
        weight=solution.weight.float(),
        bias=solution.bias.float(),
        classes=classes,
        strength=strength,
        converged=solution.converged,
    )
