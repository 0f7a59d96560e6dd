"""Linear evaluation: how well a linear classifier does on frozen features, by a named protocol."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from querykey.distributed.process_group import in_default_torch_state
from querykey.errors import DataError, RangeError, ShapeError
from querykey.evaluation import logistic_regression as solver
from querykey.evaluation.few_labels import choose_labelled, split_by_class
from querykey.evaluation.logistic_regression import (
    LogisticProblem,
    PathPoint,
    Solution,
    l2_path,
    spectrum_of,
    standardisation,
)
from querykey.evaluation.ranking import is_finite
from querykey.lookup.fast_dtype import remembered_fast_dtype
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.types import Labels, PerQuery, Rows

__all__ = [
    "MOCO",
    "SIMCLR",
    "LinearDescent",
    "LinearProtocol",
    "LinearResult",
    "descend",
    "linear_evaluation",
]


@dataclass(frozen=True, kw_only=True)
class LinearDescent:
    """The constants of a protocol.

    Args:
        base_learning_rate: At `reference_batch` rows.
        reference_batch: The learning rate is scaled by batch / reference_batch; None leaves it.
        batch_size: Rows a step; all rows where there are fewer.
        epochs: Passes.
        nesterov: Whether the momentum looks ahead.
        schedule: "steps": a tenth after 60 and after 80 epochs. "cosine": to 0, step by step.
        momentum: Of the descent.
        weight_decay: None in both protocols.
        start_std: Of the weights at the start; biases start at 0.
    """

    base_learning_rate: float
    reference_batch: int | None
    batch_size: int
    epochs: int
    nesterov: bool
    schedule: Literal["steps", "cosine"]
    momentum: float = 0.9
    weight_decay: float = 0.0
    start_std: float = 0.01

    def resolved(self, rows: int) -> dict[str, Any]:
        """What a run on so many rows uses, for the record."""
        batch = min(self.batch_size, rows)
        rate = self.base_learning_rate * (batch / self.reference_batch if self.reference_batch else 1)
        steps = self.epochs * math.ceil(rows / batch)
        return asdict(self) | {"batch_size": batch, "learning_rate": rate, "steps": steps}


MOCO = LinearDescent(
    base_learning_rate=30.0,
    reference_batch=None,
    batch_size=256,
    epochs=100,
    nesterov=False,
    schedule="steps",
)
"""He et al. 2020, arXiv:1911.05722, sec. 4.1; momentum and start as in the released main_lincls.py."""

SIMCLR = LinearDescent(
    base_learning_rate=0.1,
    reference_batch=256,
    batch_size=4096,
    epochs=90,
    nesterov=True,
    schedule="cosine",
)
"""Chen et al. 2020, arXiv:2002.05709, app. B.6, where the learning rate is 1.6 at 4,096 rows."""


def descend(
    rows: Rows, targets: Int64[Tensor, " rows"], classes: int, *, protocol: LinearDescent, seed: int
) -> tuple[Float[Tensor, "classes dim"], Float[Tensor, " classes"]]:
    """Train by stochastic gradient descent on the mean cross-entropy of each batch.

    The papers augment the images of every epoch; here each image has one row, made once, without
    augmentation. The rows are taken as the encoder gave them, not standardised.

    Args:
        rows: [rows, dim], float32.
        targets: The class of each row, 0 to classes - 1.
        classes: How many.
        protocol: `MOCO`, `SIMCLR` or constants of your own.
        seed: Of the start and of the order, keyed by the epoch. The last, smaller batch takes part.

    Returns:
        (weight, bias) after the last step; not finite where the descent has diverged.

    Example:
        >>> weight, bias = descend(torch.eye(2), torch.tensor([0, 1]), 2, protocol=SIMCLR, seed=0)
        >>> (torch.eye(2) @ weight.T + bias).argmax(dim=1).tolist()
        [0, 1]
    """
    chosen = protocol.resolved(len(rows))
    draw = torch.Generator().manual_seed(seed)
    weight = protocol.start_std * torch.randn(classes, rows.shape[1], generator=draw)
    bias = torch.zeros(classes)
    optimizer = torch.optim.SGD(
        [weight, bias],
        lr=chosen["learning_rate"],
        momentum=protocol.momentum,
        nesterov=protocol.nesterov,
        weight_decay=protocol.weight_decay,
    )
    step = 0
    for epoch in range(protocol.epochs):
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(rows)))
        for batch in torch.split(order, chosen["batch_size"]):
            share = _share(protocol, epoch, step / chosen["steps"])
            optimizer.param_groups[0]["lr"] = share * chosen["learning_rate"]
            inputs, target = rows[batch], targets[batch]
            error = torch.addmm(bias, inputs, weight.T).softmax(dim=1)
            error.scatter_add_(1, target[:, None], torch.full((len(target), 1), -1.0))
            weight.grad, bias.grad = error.T @ inputs / len(target), error.mean(dim=0)
            optimizer.step()
            step += 1
    return weight.detach(), bias.detach()


def _share(protocol: LinearDescent, epoch: int, progress: float) -> float:
    """Of the peak learning rate."""
    if protocol.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 0.1 ** sum(epoch >= milestone for milestone in (60, 80))


LinearProtocol = Literal["lbfgs", "moco", "simclr"]

HELD_OUT = 0.2
FEW_ROWS = 5000
"""With fewer labelled rows, a fifth of them is too few to choose by: several splits are pooled."""
SPLITS = 5
CHOOSE_NUMBERS = 2**25
"""Numbers of features by which the penalty is chosen, at the most: 65,536 rows of 512."""
LARGE = 2**25
"""Rows x width x classes of a large problem: an iteration takes milliseconds."""
DEFAULT_L2 = 0.01
"""Where no class has a second row to hold out."""
TOP = 5
BLOCK = 8192


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearResult:
    """What a linear classifier of frozen features gets right.

    Args:
        protocol: Its name.
        top_1: Share of the labelled test rows that get their class, from 0 to 1.
        top_5: Share whose class is among the five best; None with five classes or fewer.
        per_class: Class of the test rows to the share of its rows that get it.
        correct: 0 or 1 per test row, NaN where its class isn't labelled: for intervals and paired
            differences.
        train_rows: Labelled rows it was fitted on.
        classes: Classes among them.
        l2: The weight of the penalty that was chosen ("lbfgs").
        path: The weights that were tried, and their scores on held-out rows ("lbfgs").
        converged: Whether the solver came to its end; of a descent, whether its weights are finite.
        seconds: Of fitting and scoring.
        constants: What pins the protocol, for the record.
    """

    protocol: LinearProtocol
    top_1: float
    top_5: float | None
    per_class: Mapping[int, float]
    correct: PerQuery
    train_rows: int
    classes: int
    converged: bool
    seconds: float
    constants: Mapping[str, Any]
    l2: float | None = None
    path: tuple[PathPoint, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """As plain values for a record, without the single test rows."""
        plain = {k: v for k, v in self.__dict__.items() if k not in ("correct", "path", "per_class")}
        per_class = {str(label): share for label, share in self.per_class.items()}
        points = [point._asdict() for point in self.path]
        return plain | {"constants": dict(self.constants), "per_class": per_class, "path": points}


class _Fitted(NamedTuple):
    """Weights for rows as they were given, and how they came about."""

    weight: Float[Tensor, "classes width"]
    bias: Float[Tensor, " classes"]
    mean: Float[Tensor, " width"]
    std: Float[Tensor, " width"]
    converged: bool
    constants: dict[str, Any]
    l2: float | None = None
    path: tuple[PathPoint, ...] = ()


@in_default_torch_state
def linear_evaluation(
    train: Rows,
    train_labels: Int64[Tensor, " train_labels"],
    test: Float[Tensor, "test width"],
    test_labels: Int64[Tensor, " test_labels"],
    *,
    protocol: LinearProtocol = "lbfgs",
    labels_fraction: float | None = None,
    seed: int,
) -> LinearResult:
    """Fit a linear classifier on frozen training features and score it on test features.

    "lbfgs", the one to quote: columns standardised by the training rows, multinomial logistic regression
    to its optimum, the penalty chosen on a stratified fifth of the training rows along a path with warm
    starts (with fewer than 5,000 rows on five such fifths pooled; with more than 2**25 numbers fitted on
    a part of the rows), then fitted again on all. The stronger
    of equal penalties is taken. It depends on the seed only through these fifths. Of large problems (2**25
    rows x width x classes) the path is walked in bfloat16 where this machine multiplies it faster (measured
    once a machine, `path_dtype` in the record), solutions end at a larger tolerance, and each starts from
    where the last two lead.

    "moco" and "simclr": the descents of the papers on the rows as they are, not standardised. The papers
    augment the training images anew each epoch; these features were made once, so expect a little less.

    Args:
        train: [rows, dim], any float dtype: h, g(h), or raw pixels as rows.
        train_labels: Class of each, any integers; -1 rows are left out.
        test: [test, dim].
        test_labels: Class of each; -1 rows are not scored. A class without a training row counts as
            wrong.
        protocol: "lbfgs", "moco" or "simclr".
        labels_fraction: Keep this share of the training labels, by class; see `choose_labelled`.
        seed: Of the few labels, the held-out parts, and the start and order of a descent.

    Returns:
        Scores and what they came from.

    Raises:
        ShapeError: If labels and rows differ in number, or the widths of train and test.
        DataError: If there are not two classes to learn, no test row is labelled, or rows aren't finite.
        RangeError: If labels_fraction is out of its range, or there is no such protocol.

    Example:
        >>> rows, labels = torch.eye(2).repeat(4, 1), torch.tensor([0, 1]).repeat(4)
        >>> result = linear_evaluation(rows, labels, rows, labels, seed=0)
        >>> result.top_1, result.per_class
        (1.0, {0: 1.0, 1: 1.0})

    Source:
        Chen et al. 2020, arXiv:2002.05709, app. B.8 ("lbfgs", there with 45 weights from 1e-6 to 1e5)
        and B.6 ("simclr"); He et al. 2020, arXiv:1911.05722, sec. 4.1 ("moco").
    """
    _check(train, train_labels, test, test_labels)
    if protocol not in get_args(LinearProtocol):
        raise RangeError(f"protocol must be one of {', '.join(get_args(LinearProtocol))}; got {protocol}")
    started_at = time.perf_counter()
    labelled = (train_labels != IGNORE_LABEL).nonzero()[:, 0]
    if labels_fraction is not None:
        labelled = choose_labelled(train_labels, fraction=labels_fraction, seed=seed)
    classes, targets = torch.unique(train_labels[labelled], return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"a linear classifier needs two classes, got {len(classes)}; give more labelled rows")
    rows = train[labelled].float()
    if protocol == "lbfgs":
        fitted = _by_lbfgs(rows, targets, len(classes), seed)
    else:
        fitted = _by_descent(rows, targets, len(classes), MOCO if protocol == "moco" else SIMCLR, seed)
    best = _best(fitted, test, classes)
    right = (best == test_labels[:, None]).float()
    correct = right[:, 0].masked_fill(test_labels == IGNORE_LABEL, torch.nan)
    return LinearResult(
        protocol=protocol,
        top_1=float(correct.double().nanmean()),
        top_5=float(right[test_labels != IGNORE_LABEL].sum(dim=1).mean()) if len(classes) > TOP else None,
        per_class={
            int(label): float(correct[test_labels == label].double().mean())
            for label in torch.unique(test_labels[test_labels != IGNORE_LABEL])
        },
        correct=correct,
        train_rows=len(rows),
        classes=len(classes),
        l2=fitted.l2,
        path=fitted.path,
        converged=fitted.converged,
        seconds=time.perf_counter() - started_at,
        constants=fitted.constants | {"seed": seed, "labels_fraction": labels_fraction},
    )


def _by_lbfgs(rows: Tensor, targets: Labels, classes: int, seed: int) -> _Fitted:
    mean, std = standardisation(rows)
    rows = rows.sub_(mean).div_(std)
    spectrum = spectrum_of(rows)
    is_large = rows.numel() * classes >= LARGE
    # the path decides between penalties; the solution that is scored is computed in float32
    dtype = remembered_fast_dtype() if is_large and rows.device.type == "cpu" else torch.float32
    tolerance = solver.LARGE_TOLERANCE if is_large else solver.DECREASE_TOLERANCE
    path_tolerance = solver.LARGE_TOLERANCE if is_large else solver.PATH_TOLERANCE
    patience = solver.LARGE_PATIENCE if is_large and len(rows) >= FEW_ROWS else solver.PATIENCE
    splits = 1 if len(rows) >= FEW_ROWS else SPLITS
    problems = []
    for number in range(splits):
        train, held_out = split_by_class(targets, fraction=HELD_OUT, seed=SPLITS * seed + number)
        if len(held_out):
            # so many rows that the path is quick on wide ones, raw pixels above all; the order is a draw's
            most = max(FEW_ROWS, CHOOSE_NUMBERS // rows.shape[1])
            drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
            train = train[drawn[:most]] if len(train) > most else train
            problem = LogisticProblem(rows[train].to(dtype), targets[train], classes, spectrum)
            problems.append((problem, rows[held_out], targets[held_out]))
    path: list[PathPoint] = []
    start: Solution | None = None
    l2 = DEFAULT_L2
    if problems:
        path, solutions = l2_path(
            problems, tolerance=path_tolerance, patience=patience, extrapolates=is_large
        )
        l2 = max(path, key=lambda point: (point.accuracy, point.l2)).l2
        start = solutions[l2]
    solution = LogisticProblem(rows, targets, classes, spectrum).solve(l2, start, tolerance=tolerance)
    constants = {
        "solver": "L-BFGS",
        "standardised": True,
        "held_out": HELD_OUT,
        "splits": splits,
        "choose_numbers": CHOOSE_NUMBERS,
        "l2_strongest": solver.PATH[0],
        "l2_weakest": solver.PATH[-1],
        "l2_points": len(solver.PATH),
        "gradient_tolerance": solver.GRADIENT_TOLERANCE,
        "path_dtype": str(dtype).removeprefix("torch."),
        "path_tolerance": path_tolerance,
        "path_patience": patience,
        "path_extrapolates": is_large,
        "decrease_tolerance": tolerance,
        "max_iterations": solver.MAX_ITERATIONS,
    }
    return _Fitted(
        solution.weight.float(),
        solution.bias.float(),
        mean,
        std,
        solution.converged,
        constants,
        l2,
        tuple(path),
    )


def _by_descent(rows: Tensor, targets: Labels, classes: int, descent: LinearDescent, seed: int) -> _Fitted:
    weight, bias = descend(rows, targets, classes, protocol=descent, seed=seed)
    width = rows.shape[1]
    converged = is_finite(weight) and bool(bias.isfinite().all())
    constants = {"solver": "SGD", "standardised": False} | descent.resolved(len(rows))
    return _Fitted(weight, bias, torch.zeros(width), torch.ones(width), converged, constants)


def _best(fitted: _Fitted, test: Tensor, classes: Tensor) -> Int64[Tensor, "test best"]:
    """The classes of the highest logits, best first: five where there are more, else one."""
    count = TOP if len(classes) > TOP else 1
    parts = []
    for block in torch.split(test, BLOCK):
        logits = torch.addmm(fitted.bias, (block.float() - fitted.mean) / fitted.std, fitted.weight.T)
        parts.append(logits.topk(count, dim=1).indices)
    return classes[torch.cat(parts)]


def _check(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> None:
    for what, rows, labels in (("training", train, train_labels), ("test", test, test_labels)):
        if len(rows) != len(labels):
            raise ShapeError(
                f"there are {len(rows)} {what} rows and {len(labels)} labels; one each is needed"
            )
        if not is_finite(rows):
            raise DataError(f"the {what} rows hold NaN or infinite numbers; look at the encoder")
    if train.shape[1] != test.shape[1]:
        raise ShapeError(
            f"training rows are {train.shape[1]} wide and test rows {test.shape[1]}; "
            "encode both with one encoder"
        )
    if not (test_labels != IGNORE_LABEL).any():
        raise DataError("no test row is labelled, so nothing can be scored; give labels of the test rows")
