"""Classifiers on frozen features: logistic regression as the baseline that kNN is held against."""

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from querykey.errors import DataError, ShapeError
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.lookup.unit_length import unit_length
from querykey.types import Labels, Rows

__all__ = ["LinearClassifier", "distinct", "labelled", "logistic_regression"]

BLOCK = 8192
STRENGTHS = (3.0, 10.0, 30.0, 100.0)
"""Inverse weights of the L2 penalty that are tried: unit rows have small coordinates and want little."""
CHOOSE_ROWS = 20_000
MAX_ITERATIONS = 500
TOLERANCE = 1e-5
"""A tenth of scikit-learn's: at 1e-4 L-BFGS stops where accuracy still moves by 0.2 points."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearClassifier:
    """A linear classifier of unit rows.

    Args:
        weight: One row a class.
        bias: One number a class.
        classes: The label of each row of `weight`.
        strength: The inverse weight of the L2 penalty that was chosen.
        converged: Whether the solver stopped by itself.
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


def logistic_regression(train: Rows, labels: Labels, *, seed: int = 0) -> LinearClassifier:
    """Multinomial logistic regression on unit rows, its penalty chosen on a fifth held out.

    The strengths of `STRENGTHS` are tried, on 20,000 rows at most; the best (the smaller of equals)
    is fitted again on all rows.

    Args:
        train: [rows, width].
        labels: Class of each row; -1 rows are left out.
        seed: Of the fifth that is held out.

    Returns:
        The classifier.

    Raises:
        DataError: If there are not two classes.

    Source:
        Chen et al. 2020, arXiv:2002.05709, app. B.8: L-BFGS with the penalty chosen by validation.
    """
    unit, known = labelled(train, labels)
    if distinct(known) < 2:
        raise DataError("logistic regression needs two classes, got one; give more labelled rows")
    order = torch.randperm(len(unit), generator=torch.Generator().manual_seed(seed))[:CHOOSE_ROWS]
    held, fitting = order[: len(order) // 5], order[len(order) // 5 :]
    strength = 10.0
    if len(held) and distinct(known[fitting]) > 1:
        right = {}
        for candidate in STRENGTHS:
            model = _fit_logistic(unit[fitting], known[fitting], candidate)
            right[candidate] = int((model.predict(unit[held]) == known[held]).sum())
        strength = max(right, key=lambda c: (right[c], -c))
    return _fit_logistic(unit, known, strength)


def labelled(
    train: Rows, labels: Int64[Tensor, " labels"]
) -> tuple[Float[Tensor, "known dim"], Int64[Tensor, " known"]]:
    """The unit rows that have a label, and their labels.

    Raises:
        ShapeError: If labels and rows differ in number.
    """
    if len(train) != len(labels):
        raise ShapeError(f"there are {len(train)} rows and {len(labels)} labels; one each is needed")
    known = labels != IGNORE_LABEL
    return unit_length(train[known]).float(), labels[known]


def distinct(labels: Labels) -> int:
    """How many classes there are among labels, -1 not counted."""
    return len(set(labels.tolist()) - {IGNORE_LABEL})


def _fit_logistic(unit: Tensor, labels: Tensor, strength: float) -> LinearClassifier:
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, tol=TOLERANCE)
    # one thread: the solver's many small products wait for each other, ten times longer on a busy machine
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # stopping early is recorded in `converged`
        warnings.simplefilter("ignore")
        model.fit(unit.numpy(), labels.numpy())
    weight, bias = torch.from_numpy(model.coef_).float(), torch.from_numpy(model.intercept_).float()
    if len(weight) == 1:  # two classes: one row of log-odds, for the second class
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return LinearClassifier(
        weight=weight,
        bias=bias,
        classes=torch.from_numpy(model.classes_).long(),
        strength=strength,
        converged=int(model.n_iter_.max()) < MAX_ITERATIONS,
    )
