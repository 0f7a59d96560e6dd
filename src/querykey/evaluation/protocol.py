"""One evaluation for all methods: the same queries, constants and metrics, baselines beside it.

What is asked depends on what is known of the test items:

    labels      R@1, 5, 10, MAP@R, R-precision, each test item looked up among the others;
                kNN accuracy against the training items where classes are shared; overlap@10
    pairs       NDCG@10, recall@10, MRR@10 of queries among documents; overlap@10
    neighbours  overlap@10 alone

overlap@10 is the share of the frozen ten nearest neighbours that are kept.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from querykey.errors import DataError
from querykey.evaluation.baselines import fit_baselines
from querykey.evaluation.examination import KNN, Examination
from querykey.evaluation.linear import distinct, logistic_regression
from querykey.evaluation.table import Table, tabulate
from querykey.evaluation.task import CLASSIFIER, Embedded, Maker, Protocol, Task, embed
from querykey.types import Labels, PerQuery

__all__ = ["evaluate", "evaluate_embeddings"]


def evaluate(
    task: Task,
    methods: Mapping[str, Maker],
    *,
    dim: int,
    protocol: Protocol | None = None,
) -> Table:
    """Evaluate methods beside every baseline at the same dim.

    Args:
        task: What is evaluated.
        methods: Name to its rows, for example `{"adapter": embed(task, transform)}`, or to a function
            that makes them.
        dim: Width of the baselines, at most that of the features.
        protocol: The constants; None for the defaults.

    Returns:
        The table, baselines first.

    Raises:
        RangeError: If dim is outside 1 to the width.
        ShapeError: If a method's rows don't fit the task.
        DataError: If rows aren't finite, or a method is named like a baseline.

    Example:
        >>> import torch
        >>> task = Task(test=torch.eye(6))
        >>> table = evaluate(task, {"ours": embed(task, lambda rows: rows[:, :3])}, dim=3)
        >>> table.metrics, "ours" in table.cells
        (('overlap@10',), True)
    """
    constants = protocol or Protocol()
    fitted_on, labels = (task.test, None) if task.train is None else (task.train, task.train_labels)
    baselines = fit_baselines(fitted_on, dim, labels=labels, seed=constants.seed)
    for name in methods:
        if name in baselines or name == CLASSIFIER:
            raise DataError(f"a method can't be named {name!r}, which is a baseline; choose another name")
    rows: dict[str, Maker] = {
        name: partial(embed, task, baseline.transform) for name, baseline in baselines.items()
    }
    rows["frozen"] = Embedded(test=task.test, train=task.train, queries=task.queries)
    notes: dict[str, Any] = {
        "baselines_fitted_on": "the evaluated items" if task.train is None else "the training items",
        "baseline_dims": {name: baseline.dim for name, baseline in baselines.items()},
    }
    predictions: dict[str, Labels] = {}
    if task.train_labels is not None and task.shares_classes and distinct(task.train_labels) > 1:
        work = task.train_labels.numel() * task.test.shape[1] * distinct(task.train_labels)
        if work > constants.most_work:
            notes[CLASSIFIER] = (
                f"left out: rows x width x classes is {work:.1e}, above {constants.most_work:.1e}"
            )
        else:
            predictions[CLASSIFIER], notes[CLASSIFIER] = _classify(task, constants)
    return evaluate_embeddings(
        task, {**rows, **methods}, predictions=predictions, protocol=constants, notes=notes
    )


def evaluate_embeddings(
    task: Task,
    methods: Mapping[str, Maker],
    *,
    predictions: Mapping[str, Labels] | None = None,
    protocol: Protocol | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Table:
    """Evaluate rows that are there already, under one protocol.

    Args:
        task: What is evaluated; its own rows are the frozen ones.
        methods: Name to rows, or to a function that makes them: then one method's are held at a time.
        predictions: Name of a classifier to the class it gives each test item; it stands in the
            kNN column.
        protocol: The constants; None for the defaults.
        notes: More to keep in the protocol, as JSON.

    Returns:
        The table, methods in the given order, classifiers last.

    Raises:
        ShapeError: If a method's rows don't fit the task.
        DataError: If rows aren't finite.

    Example:
        >>> import torch
        >>> task = Task(test=torch.eye(4), test_labels=torch.tensor([0, 0, 1, -1]))
        >>> table = evaluate_embeddings(task, {"frozen": Embedded(test=task.test)})
        >>> table.cells["frozen"]["R@1"].queries  # the third has no other of its class
        2
    """
    run = Examination(task, protocol or Protocol())
    numbers: dict[str, dict[str, PerQuery]] = {}
    figures: dict[str, dict[str, float]] = {}
    for name, maker in methods.items():
        rows = maker() if callable(maker) else maker
        numbers[name], figures[name] = run.per_query(name, rows), run.figures(rows)
    for name, classes in (predictions or {}).items():
        numbers[name] = {KNN: run.correct(classes)}
    return tabulate(
        numbers,
        figures=figures,
        references=run.protocol.references,
        protocol={**run.describe(), "nothing_to_find": _unanswerable(numbers), **(notes or {})},
        seed=run.protocol.seed,
    )


def _unanswerable(numbers: Mapping[str, Mapping[str, PerQuery]]) -> dict[str, int]:
    """Metric to how many queries it doesn't count: the same for all methods."""
    return {
        metric: int(values.isnan().sum())
        for row in numbers.values()
        for metric, values in row.items()
        if values.isnan().any()
    }


def _classify(task: Task, constants: Protocol) -> tuple[Labels, dict[str, Any]]:
    """What logistic regression on the frozen features says of the test items."""
    assert task.train is not None
    assert task.train_labels is not None
    model = logistic_regression(task.train, task.train_labels, seed=constants.seed)
    return model.predict(task.test), {"strength": model.strength, "converged": model.converged}
