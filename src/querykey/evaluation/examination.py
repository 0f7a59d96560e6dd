"""One evaluation: which queries are asked, what is measured, and the constants that go with it."""

from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import torch

from querykey.errors import DataError, ShapeError
from querykey.evaluation.geometry import (
    alignment,
    class_alignment,
    effective_rank,
    neighbour_overlap,
    uniformity,
)
from querykey.evaluation.intervals import SAMPLES
from querykey.evaluation.knn import knn_correct
from querykey.evaluation.ranking import GradedPairs, Metric, is_finite, measure
from querykey.evaluation.retrieval import (
    average_precision_at_r,
    hit_at,
    ndcg_at,
    r_precision,
    recall_at,
    reciprocal_rank,
)
from querykey.evaluation.table import OVERLAP, OVERLAP_K
from querykey.evaluation.task import Embedded, Protocol, Task
from querykey.lookup import UNLABELLED, Lookup, PairRule, look_up
from querykey.nearest import nearest
from querykey.records import versions
from querykey.types import Ids, Labels, Neighbours, PerQuery

__all__ = ["KNN", "LABEL_METRICS", "PAIR_METRICS", "Examination"]

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
    """A task under a protocol: the same queries and the same frozen answers for every method.

    Args:
        task: What is evaluated.
        protocol: The constants.
    """

    task: Task
    protocol: Protocol

    @cached_property
    def asked(self) -> Ids:
        """The rows that are asked: test items, or queries of pairs."""
        count = len(self.task.test if self.task.queries is None else self.task.queries)
        if count <= self.protocol.max_queries:
            return torch.arange(count)
        generator = torch.Generator().manual_seed(self.protocol.seed)
        return torch.randperm(count, generator=generator)[: self.protocol.max_queries].sort().values

    @cached_property
    def frozen_neighbours(self) -> Neighbours:
        """What each query finds among the frozen rows."""
        return self._neighbours(Embedded(test=self.task.test, queries=self.task.queries))

    @cached_property
    def graded(self) -> GradedPairs:
        """The pairs of the queries that are asked, by their place among them."""
        assert self.task.pairs is not None
        query = self.task.pairs[:, 0].contiguous()
        place = torch.searchsorted(self.asked, query).clamp(max=len(self.asked) - 1)
        kept = self.asked[place] == query
        triples = torch.cat([place[:, None], self.task.pairs[:, 1:]], dim=1)[kept]
        return GradedPairs(triples, queries=len(self.asked), keys=len(self.task.test))

    def per_query(self, name: str, rows: Embedded) -> dict[str, PerQuery]:
        """Metric to one number a query.

        Raises:
            ShapeError: If the rows don't fit the task.
            DataError: If they aren't finite.
        """
        self._check(name, rows)
        numbers: dict[str, PerQuery] = {}
        if self.task.kind == "pairs":
            assert rows.queries is not None
            lookup = Lookup(rows.queries[self.asked], rows.test, self.graded, "cosine")
            numbers = measure(lookup, PAIR_METRICS)
        elif self.task.kind == "labels":
            numbers = measure(self._among_the_others(rows), LABEL_METRICS)
            if self.task.shares_classes and rows.train is not None:
                numbers[KNN] = self._knn(rows)
        numbers[OVERLAP] = neighbour_overlap(self._neighbours(rows), self.frozen_neighbours)
        return numbers

    def correct(self, classes: Labels) -> PerQuery:
        """Whether a classifier is right about the items that are asked."""
        assert self.task.test_labels is not None
        truth = self.task.test_labels[self.asked]
        return (classes[self.asked] == truth).float().masked_fill(truth == UNLABELLED, torch.nan)

    def figures(self, rows: Embedded) -> dict[str, float]:
        """Of the embedding as a whole, without interval."""
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
        """Everything the numbers depend on, as JSON."""
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
            "asked": len(self.asked),
            "left_out": self._left_out(),
            "versions": versions("scikit-learn"),
        }

    def _voters(self) -> int:
        labels = self.task.train_labels
        return 0 if labels is None else int((labels != UNLABELLED).sum())

    def _left_out(self) -> list[str]:
        """What a reader may miss, and why it isn't there."""
        task, out = self.task, []
        every = len(task.test if task.queries is None else task.queries)
        if len(self.asked) < every:
            out.append(
                f"{every - len(self.asked)} of {every} queries: only {len(self.asked)} drawn are asked"
            )
        if task.kind == "neighbours":
            out.append("retrieval and kNN: the test items have no labels and no pairs")
        if task.kind == "labels":
            assert task.test_labels is not None
            unlabelled = int((task.test_labels == UNLABELLED).sum())
            if unlabelled:
                out.append(f"{unlabelled} unlabelled test items: neither asked nor found")
            if not task.shares_classes:
                out.append("kNN and logistic regression: no training items of the test classes")
            else:
                assert task.train_labels is not None
                strange = ~torch.isin(task.test_labels, task.train_labels) & (task.test_labels != UNLABELLED)
                if strange.any():
                    out.append(
                        f"the classes of {int(strange.sum())} test items from the training items: "
                        "kNN and logistic regression are wrong about them"
                    )
        return out

    def _neighbours(self, rows: Embedded) -> Neighbours:
        if rows.queries is not None:
            return nearest(rows.queries[self.asked], rows.test, OVERLAP_K)[1]
        ids = self.task.ids
        return nearest(rows.test[self.asked], rows.test, OVERLAP_K, query_ids=ids[self.asked], key_ids=ids)[1]

    def _among_the_others(self, rows: Embedded) -> Lookup:
        ids, labels = self.task.ids, self.task.test_labels
        assert labels is not None
        return look_up(
            rows.test[self.asked], rows.test, query_ids=ids[self.asked], key_ids=ids,
            query_labels=labels[self.asked], key_labels=labels,
            rule=PairRule(positive="label"), score="cosine",
        )  # fmt: skip

    def _knn(self, rows: Embedded) -> PerQuery:
        assert rows.train is not None
        assert self.task.train_labels is not None
        assert self.task.test_labels is not None
        return knn_correct(
            rows.train, self.task.train_labels, rows.test[self.asked], self.task.test_labels[self.asked],
            k=self.protocol.knn_k, temperature=self.protocol.knn_temperature,
        )  # fmt: skip

    def _check(self, name: str, rows: Embedded) -> None:
        for side, ours, asked in (
            ("test", rows.test, self.task.test),
            ("train", rows.train, self.task.train),
            ("queries", rows.queries, self.task.queries),
        ):
            if ours is None:
                if side == "queries" and asked is not None:
                    raise ShapeError(f"{name} has no queries, but the task has {len(asked)}; embed them too")
                continue
            if asked is None or len(ours) != len(asked):
                wanted = "none" if asked is None else len(asked)
                raise ShapeError(
                    f"{name} has {len(ours)} {side} rows, the task {wanted}; they must be the same"
                )
            if not is_finite(ours):
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
