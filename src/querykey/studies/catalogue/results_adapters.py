"""The studies of docs/results.md on features: adapters against frozen features and baselines."""

from dataclasses import replace
from typing import Any

from querykey.studies.data_sets import (
    BANKING,
    CRANFIELD,
    DEBIAN,
    DOCSTRINGS,
    HWU,
    OMNIGLOT,
    FrozenDataSet,
)
from querykey.studies.engine.study import Arm, Figure, Kind, Question, Rule, Study

__all__ = ["RESULTS_ADAPTERS"]

_LABELS = {
    "frozen": "frozen, full width",
    "truncated": "first coordinates",
    "pca": "PCA, centred",
    "pca_uncentred": "PCA, not centred",
    "whitened_pca": "PCA, whitened",
    "random_projection": "random projection",
    "lda": "LDA",
    "logistic_regression": "logistic regression",
}
_PROJECTIONS = ("frozen", "truncated", "pca", "pca_uncentred", "whitened_pca", "random_projection")
_CHOSEN_ON, _NOT_CHOSEN_ON = (
    "defaults were chosen on it",
    "not used for any choice, measured by the final code",
)
_ROLES = {data.name: _CHOSEN_ON for data in (BANKING, OMNIGLOT, CRANFIELD)}
KNN = (20, 0.07)
"""k and temperature."""


def _baselines(*names: str) -> tuple[Arm, ...]:
    kinds: dict[str, Kind] = {"logistic_regression": "classifier"}
    return tuple(
        Arm(
            name=name,
            label=_LABELS[name],
            kind=kinds.get(name, "baseline"),
            settings={"projection": name},
            seeds=1,
        )
        for name in names
    )


def _adapter(seeds: int = 3, **settings: Any) -> Arm:
    return Arm(name="adapter", label="adapter", kind="adapter", settings=settings, seeds=seeds)


def _claim(ask: str, metric: str, theirs: str, rule: Rule = "above", *, comparisons: int = 1) -> Question:
    count = comparisons if rule == "not below" else 1
    return replace(_open(ask, metric, theirs), rule=rule, is_claim=True, comparisons=count)


def _open(ask: str, metric: str, theirs: str) -> Question:
    return Question(ask=ask, ours=("adapter", metric), theirs=(theirs, metric), min_seeds=1)


def _study(
    data: FrozenDataSet,
    name: str,
    title: str,
    dim: int,
    *,
    metrics: tuple[str, ...],
    arms: tuple[Arm, ...],
    references: tuple[str, ...],
    questions: tuple[Question, ...],
    **every_arm: Any,
) -> tuple[FrozenDataSet, Study]:
    sized = (replace(arm, settings=arm.settings | {"dim": dim}, **every_arm) for arm in arms)
    return data, Study(
        name=f"{data.name}{name}",
        title=f"{data.name}: {title}",
        asks="Is an adapter better than the frozen features, and than baselines of the same width?",
        source="claims of this library",
        caveat=f"Role of the measured part: {_ROLES.get(data.name, _NOT_CHOSEN_ON)}.",
        arms=tuple(sized),
        questions=questions,
        figures=(Figure(kind="bars", title=f"{data.name}{name}", measures=metrics, y="mean over queries"),),
        measured=", ".join(metrics),
        needs="features",
        references=references,
        knn=KNN,
        identity="fit",
    )


def _known_classes(data: FrozenDataSet, dim: int) -> tuple[FrozenDataSet, Study]:
    lda: Rule = "above" if data is BANKING else "not below"
    return _study(
        data, f" {dim}", f"MiniLM 384 to {dim} with labels, classes known, official split", dim,
        metrics=("kNN", "R@1"),
        arms=(
            *_baselines(*_PROJECTIONS, "lda", "logistic_regression"),
            _adapter(classes="known"),
            Arm(name="no_memory", label="adapter, no memory", kind="adapter", seeds=1,
                settings={"classes": "known", "memory": "in_batch"}),
        ),
        references=("frozen", "pca", "logistic_regression"),
        questions=(
            _claim("Is kNN not below logistic regression?", "kNN", "logistic_regression", "not below",
                   comparisons=4),
            _claim("Is R@1 above frozen?", "R@1", "frozen"),
            _claim(f"Is R@1 {lda} LDA?", "R@1", "lda", lda),
            _open("Is a memory better than none?", "kNN", "no_memory"),
        ),
    )  # fmt: skip


def _few_labels(data: FrozenDataSet, per_class: int) -> tuple[FrozenDataSet, Study]:
    several = per_class > 1
    title = f"{per_class} labelled row{'s' * several} a class, MiniLM 384 to 256, five draws"
    references: tuple[str, ...] = ("frozen", "logistic_regression") if several else ("frozen",)
    questions: tuple[Question, ...] = (
        _claim("Is kNN not below frozen?", "kNN", "frozen", "not below", comparisons=2),
    )
    if several:
        ask = "Is kNN not below logistic regression?"
        questions = (
            _claim("Is kNN above frozen?", "kNN", "frozen"),
            _claim(ask, "kNN", "logistic_regression", "not below", comparisons=4),
        )
    baselines = _baselines("frozen", "pca", *references[1:])
    return _study(
        data,
        f" {per_class} a class",
        title,
        256,
        metrics=("kNN",),
        arms=(*(replace(arm, seeds=5) for arm in baselines), _adapter(5, classes="known")),
        references=references,
        questions=questions,
        labels_a_class=per_class,
    )


def _new_classes() -> tuple[FrozenDataSet, Study]:
    return _study(
        OMNIGLOT, "", "characters of other alphabets, EfficientNet-Lite0 1280 to 256 with labels", 256,
        metrics=("R@1", "R@10", "MAP@R"),
        arms=(
            *_baselines(*_PROJECTIONS, "lda"),
            _adapter(classes="new"),
            Arm(name="classes not said", label="adapter, classes not said", kind="adapter", seeds=1),
        ),
        references=("frozen", "whitened_pca"),
        questions=(
            _claim("Is R@1 above frozen?", "R@1", "frozen"),
            _claim("Is R@1 above whitened PCA?", "R@1", "whitened_pca"),
            _open("Is it better to say that classes will be new?", "R@1", "classes not said"),
        ),
    )  # fmt: skip


def _no_labels(data: FrozenDataSet, dim: int) -> tuple[FrozenDataSet, Study]:
    is_full = dim == 384
    rule: Rule = "above" if dim <= 64 else "not below"
    frozen: Rule = "above" if data is DEBIAN else "not below"
    questions: tuple[Question, ...]
    if is_full:
        questions = (_claim(f"Is it {frozen} frozen?", "NDCG@10", "frozen", frozen, comparisons=3),)
    else:
        ask = "Is it not below PCA that is not centred?"
        questions = (
            _claim(f"Is it {rule} centred PCA?", "NDCG@10", "pca", rule, comparisons=12),
            _claim(ask, "NDCG@10", "pca_uncentred", "not below", comparisons=12),
        )
    baselines = ("frozen", "pca", "whitened_pca") if is_full else _PROJECTIONS
    return _study(
        data,
        f" {dim}",
        f"MiniLM 384 to {dim} without labels",
        dim,
        metrics=("NDCG@10",),
        arms=(*_baselines(*baselines), _adapter(1 if is_full else 3)),
        references=("frozen", "pca") if is_full else ("frozen", "pca", "pca_uncentred"),
        questions=questions,
    )


def _pairs(data: FrozenDataSet, pairs: int, side: str) -> tuple[FrozenDataSet, Study]:
    count = f"{pairs:,}" if pairs else "all"
    rule: Rule = "above" if data is DEBIAN and pairs in (300, 1000) else "not below"
    return _study(
        data,
        f" {count} pairs, {side}",
        f"{count} pairs, full width, side={side}",
        384,
        metrics=("NDCG@10",),
        arms=(*_baselines("frozen"), _adapter(5 if pairs else 3, side=side)),
        references=("frozen",),
        questions=(_claim(f"Is it {rule} frozen?", "NDCG@10", "frozen", rule, comparisons=16),),
        pairs=pairs,
    )


def _pairs_and_compressed(data: FrozenDataSet) -> tuple[FrozenDataSet, Study]:
    return _study(
        data, " all pairs, 64", "all pairs, 384 to 64", 64,
        metrics=("NDCG@10",),
        arms=(*_baselines("frozen", "pca", "pca_uncentred"), _adapter()),
        references=("frozen", "pca", "pca_uncentred"),
        questions=(_claim("Is it above centred PCA?", "NDCG@10", "pca"),),
        pairs=0,
    )  # fmt: skip


RESULTS_ADAPTERS: tuple[tuple[FrozenDataSet, Study], ...] = (
    *(_known_classes(data, dim) for data in (BANKING, HWU) for dim in (256, 64)),
    *(_few_labels(data, count) for data in (BANKING, HWU) for count in (10, 5, 1)),
    _new_classes(),
    *(_no_labels(data, dim) for data in (CRANFIELD, DEBIAN, DOCSTRINGS) for dim in (16, 32, 64, 128, 384)),
    *(_pairs(data, count, side) for data in (DEBIAN, DOCSTRINGS) for count in (100, 300, 1000, 0)
      for side in ("query", "both")),
    *(_pairs_and_compressed(data) for data in (DEBIAN, DOCSTRINGS)),
)  # fmt: skip
"""In the order of the report, each with its data."""
