"""One evaluation: its queries, its metrics and its constants."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import torch

from querykey.distributed.process_group import in_default_torch_state
from querykey.errors import DataError, ShapeError
from querykey.evaluation.baselines import fit_baselines
from querykey.evaluation.few_labels import count_classes
from querykey.evaluation.geometry import (
    alignment,
    class_alignment,
    effective_rank,
    neighbour_overlap,
    uniformity,
)
from querykey.evaluation.intervals import SAMPLES
from querykey.evaluation.knn import knn_correct
from querykey.evaluation.logistic_regression import logistic_regression
from querykey.evaluation.ranking import GradedPairs, Metric, is_finite, measure_rankings
from querykey.evaluation.retrieval import (
    average_precision_at_r,
    hit_at,
    ndcg_at,
    r_precision,
    recall_at,
    reciprocal_rank,
)
from querykey.evaluation.table import OVERLAP, OVERLAP_K, Table, tabulate
from querykey.evaluation.task import CLASSIFIER, Embedded, Maker, Protocol, Task, embed_task
from querykey.io.records import versions
from querykey.lookup.lookup import IGNORE_LABEL, Lookup, PairRule, look_up
from querykey.lookup.nearest import nearest
from querykey.types import Ids, Labels, Neighbours, PerQuery

__all__ = [
    "KNN",
    "LABEL_METRICS",
    "PAIR_METRICS",
    "Examination",
    "evaluate",
    "evaluate_embeddings",
]

LABEL_METRICS: dict[str, Metric] = {
    "R@1": partial(hit_at, k=1),
    "R@5": partial(hit_at, k=5),
    "R@10": partial(hit_at, k=10),
    "MAP@R": average_precision_at_r,
    "R-prec": r_precision,
}
PAIR_METRICS: dict[str, Metric] = {
    "NDCG@10": partial(ndcg_at, k=10),
    "recall@10": partial(recall_at, k=10),
    "MRR@10": partial(reciprocal_rank, k=10),
}
KNN = "kNN"


@dataclass(frozen=True, eq=False)
class Examination:
    """A task with a protocol: the same queries and the same frozen neighbours for every method.

    Args:
        task: What is evaluated.
        protocol: The constants.
    """

    task: Task
    protocol: Protocol

    @cached_property
    def query_rows(self) -> Ids:
        """Row numbers of the queries: test items, or queries of pairs; a random sample of many."""
        count = len(self.task.test if self.task.queries is None else self.task.queries)
        if count <= self.protocol.max_queries:
            return torch.arange(count)
        generator = torch.Generator().manual_seed(self.protocol.seed)
        return torch.randperm(count, generator=generator)[: self.protocol.max_queries].sort().values

    @cached_property
    def frozen_neighbours(self) -> Neighbours:
        """The nearest frozen rows of each query."""
        return self._neighbours(Embedded(test=self.task.test, queries=self.task.queries))

    @cached_property
    def graded(self) -> GradedPairs:
        """The pairs of these queries, by their index in `query_rows`."""
        assert self.task.pairs is not None
        query = self.task.pairs[:, 0].contiguous()
        place = torch.searchsorted(self.query_rows, query).clamp(max=len(self.query_rows) - 1)
        is_query = self.query_rows[place] == query
        triples = torch.cat([place[:, None], self.task.pairs[:, 1:]], dim=1)[is_query]
        return GradedPairs(triples, queries=len(self.query_rows), keys=len(self.task.test))

    def per_query(self, name: str, rows: Embedded) -> dict[str, PerQuery]:
        """Metrics with one value per query.

        Args:
            name: Of the method, for messages.
            rows: Its embeddings of the task.

        Returns:
            Metric to values [queries]; NaN where a query does not count.

        Raises:
            ShapeError: If the rows don't fit the task.
            DataError: If they aren't finite.
        """
        self._check(name, rows)
        numbers: dict[str, PerQuery] = {}
        if self.task.kind == "pairs":
            assert rows.queries is not None
            lookup = Lookup(rows.queries[self.query_rows], rows.test, self.graded, "cosine")
            numbers = measure_rankings(lookup, PAIR_METRICS)
        elif self.task.kind == "labels":
            numbers = measure_rankings(self._among_the_others(rows), LABEL_METRICS)
            if self.task.shares_classes and rows.train is not None:
                numbers[KNN] = self._knn(rows)
        numbers[OVERLAP] = neighbour_overlap(self._neighbours(rows), self.frozen_neighbours)
        return numbers

    def correct(self, classes: Labels) -> PerQuery:
        """Whether a classifier's prediction is correct for each query item; NaN for unlabelled items."""
        assert self.task.test_labels is not None
        truth = self.task.test_labels[self.query_rows]
        return (classes[self.query_rows] == truth).float().masked_fill(truth == IGNORE_LABEL, torch.nan)

    def figures(self, rows: Embedded) -> dict[str, float]:
        """Figures of the whole embedding, without intervals."""
        figures = {
            "dim": float(rows.test.shape[1]),
            "uniformity": uniformity(rows.test, seed=self.protocol.seed),
            "effective_rank": effective_rank(rows.test, unit=True),
        }
        if self.task.pairs is not None and rows.queries is not None:
            figures["alignment"] = alignment(
                rows.queries[self.task.pairs[:, 0]], rows.test[self.task.pairs[:, 1]]
            )
        elif self.task.test_labels is not None and self.task.repeats_classes:
            figures["alignment"] = class_alignment(rows.test, self.task.test_labels)
        return figures

    def describe(self) -> dict[str, Any]:
        """All constants and counts that the numbers depend on, as JSON."""
        task = self.task
        items = {"test": task.test, "train": task.train, "queries": task.queries, "pairs": task.pairs}
        return {
            "kind": task.kind,
            "lookup": _LOOKUPS[task.kind],
            "score": "cosine, ties to the lower row",
            **_MEANINGS[task.kind],
            "interval": f"95% percentile bootstrap over queries, {SAMPLES} samples",
            **asdict(self.protocol),
            "references": list(self.protocol.references),
            "knn_k": min(self.protocol.knn_k, self._voters()),
            "rows": {name: len(rows) for name, rows in items.items() if rows is not None},
            "width": task.test.shape[1],
            "asked": len(self.query_rows),
            "left_out": self._left_out(),
            "versions": versions("scikit-learn"),
        }

    def _voters(self) -> int:
        labels = self.task.train_labels
        return 0 if labels is None else int((labels != IGNORE_LABEL).sum())

    def _left_out(self) -> list[str]:
        """Metrics and rows that are left out, each with the reason."""
        task, out = self.task, []
        every = len(task.test if task.queries is None else task.queries)
        used = len(self.query_rows)
        if used < every:
            out.append(f"{every - used} of {every} queries: {used} are drawn at random")
        if task.kind == "neighbours":
            out.append("retrieval and kNN: the test items have no labels and no pairs")
        if task.kind == "labels":
            assert task.test_labels is not None
            unlabelled = int((task.test_labels == IGNORE_LABEL).sum())
            if unlabelled:
                out.append(f"{unlabelled} unlabelled test items: neither queries nor keys")
            if not task.shares_classes:
                out.append("kNN and logistic regression: no training items of the test classes")
            else:
                assert task.train_labels is not None
                strange = ~torch.isin(task.test_labels, task.train_labels) & (
                    task.test_labels != IGNORE_LABEL
                )
                if strange.any():
                    out.append(
                        f"the classes of {int(strange.sum())} test items from the training items: "
                        "kNN and logistic regression are wrong about them"
                    )
        return out

    def _neighbours(self, rows: Embedded) -> Neighbours:
        if rows.queries is not None:
            return nearest(rows.queries[self.query_rows], rows.test, OVERLAP_K)[1]
        ids = self.task.ids
        return nearest(
            rows.test[self.query_rows], rows.test, OVERLAP_K, query_ids=ids[self.query_rows], key_ids=ids
        )[1]

    def _among_the_others(self, rows: Embedded) -> Lookup:
        ids, labels = self.task.ids, self.task.test_labels
        assert labels is not None
        return look_up(
            rows.test[self.query_rows],
            rows.test,
            query_ids=ids[self.query_rows],
            key_ids=ids,
            query_labels=labels[self.query_rows],
            key_labels=labels,
            rule=PairRule(positive="label"),
            score="cosine",
        )

    def _knn(self, rows: Embedded) -> PerQuery:
        assert rows.train is not None
        assert self.task.train_labels is not None
        assert self.task.test_labels is not None
        return knn_correct(
            rows.train,
            self.task.train_labels,
            rows.test[self.query_rows],
            self.task.test_labels[self.query_rows],
            k=self.protocol.knn_k,
            temperature=self.protocol.knn_temperature,
        )

    def _check(self, name: str, rows: Embedded) -> None:
        for side, given, needed in (
            ("test", rows.test, self.task.test),
            ("train", rows.train, self.task.train),
            ("queries", rows.queries, self.task.queries),
        ):
            if given is None:
                if side == "queries" and needed is not None:
                    raise ShapeError(f"{name} has no queries, but the task has {len(needed)}; embed them too")
                continue
            if needed is None or len(given) != len(needed):
                wanted = "none" if needed is None else len(needed)
                raise ShapeError(
                    f"{name} has {len(given)} {side} rows, the task {wanted}; they must be the same"
                )
            if not is_finite(given):
                raise DataError(f"{name} has NaN or infinite numbers in its {side} rows; look at the model")


_MEANINGS = {
    "labels": {
        "R@k": "1 where one of the k nearest is of the class, else 0",
        KNN: "votes weigh exp(cosine / temperature); a classifier's row is its own prediction",
    },
    "pairs": {
        "NDCG@10": "the gain is the grade",
        "recall@10": "the share of the relevant documents that is found",
        "MRR@10": "0 where the first relevant document comes later",
    },
    "neighbours": {},
}
_LOOKUPS = {
    "labels": "each test item among the other test items; kNN: among the training items",
    "pairs": "each query among the documents",
    "neighbours": "each test item among the other test items",
}


@in_default_torch_state
def evaluate(
    task: Task,
    methods: Mapping[str, Maker],
    *,
    dim: int,
    protocol: Protocol | None = None,
) -> Table:
    """Evaluate methods and all baselines at the same dim.

    Args:
        task: What is evaluated.
        methods: Name to its rows, for example `{"adapter": embed_task(task, transform)}`, or to a function
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
        >>> table = evaluate(task, {"ours": embed_task(task, lambda rows: rows[:, :3])}, dim=3)
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
        name: partial(embed_task, task, baseline.transform) for name, baseline in baselines.items()
    }
    rows["frozen"] = Embedded(test=task.test, train=task.train, queries=task.queries)
    notes: dict[str, Any] = {
        "baselines_fitted_on": "the evaluated items" if task.train is None else "the training items",
        "baseline_dims": {name: baseline.dim for name, baseline in baselines.items()},
    }
    predictions: dict[str, Labels] = {}
    if task.train_labels is not None and task.shares_classes and count_classes(task.train_labels) > 1:
        work = task.train_labels.numel() * task.test.shape[1] * count_classes(task.train_labels)
        if work > constants.most_work:
            notes[CLASSIFIER] = (
                f"left out: rows x width x classes is {work:.1e}, above {constants.most_work:.1e}"
            )
        else:
            predictions[CLASSIFIER], notes[CLASSIFIER] = _classify(task, constants)
    return evaluate_embeddings(
        task, {**rows, **methods}, predictions=predictions, protocol=constants, notes=notes
    )


@in_default_torch_state
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
    """The classes that logistic regression on the frozen features predicts for the test items."""
    assert task.train is not None
    assert task.train_labels is not None
    model = logistic_regression(task.train, task.train_labels, seed=constants.seed)
    return model.predict(task.test), {"strength": model.strength, "converged": model.converged}
