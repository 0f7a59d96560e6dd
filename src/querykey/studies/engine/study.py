"""What a study is: a question, a grid of configurations (arms), and the rule that gives the verdict."""

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "LEAK", "SCORE", "Arm", "Figure", "Identity", "Kind", "Published", "Question", "Rule", "Study", "exceeds",
]  # fmt: skip

SCORE = "retrieval"
"""A measure of arms on features: R@1 of test rows with labels, NDCG@10 of queries among documents."""
LEAK = "own key in noise"
"""The measure of leaks: share of queries that find their own key among noise, through batch statistics
alone."""

EncoderKind = Literal[
    "pretrained", "kNN of pretrained", "pixels", "few labels", "linear of few labels", "retrieval", "probes"
]
"""How an arm on images is trained and scored."""
FeatureKind = Literal["adapter", "baseline", "classifier"]
"""How an arm on features is fitted and scored."""
Kind = EncoderKind | FeatureKind | Literal["leak"]
"""How an arm is trained and scored."""
Rule = Literal["above", "at or above", "not below"]
"""When the verdict is yes: the 95% interval of the paired difference lies above 0, its mean is at least 0, or
the interval does not lie below 0."""
Identity = Literal["plan", "data set", "fit"]
"""What the key of a cell's record covers, see `querykey.studies.engine.run.identity_of`."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One configuration of a study.

    Args:
        name: In records.
        label: In tables and figures.
        group: The table or figure it belongs to, where a report has several.
        kind: How it is trained and scored.
        settings: Of `pretrain` or `Adapter`, where they differ from the defaults; those of `pretrain`
            by their names in version 0.1, which identify the cells of results. Of a baseline: "projection"
            and "dim". Of several sizes: "method" and "dims", see `measure_points`. Of a leak: arguments of
            `probe_leakage`.
        images: Training images it sees, relative to the other arms of its study.
        seeds: Number of seeds, at most.
        threads: Of torch; 0: all cores, and no other cell runs meanwhile.
        scores_untrained: Whether the encoder is also scored before the first step.
        x: Its place on the x axis of a line chart.
        line: The line of that chart it belongs to.
        row: Its row in a heat map.
        column: Its column in a heat map.
        memory_ratio: Capacity of the cross-batch memory as a share of the training images; 0: no memory.
        labels_a_class: Number of labelled items per class, drawn anew for each seed; None: all of an adapter,
            1% of an encoder.
        pairs: Number of (query, document) pairs an adapter is fitted on, drawn anew for each seed; 0: all;
            None: documents only, without queries.
        epochs: Of the supervised baseline; None: those of the evaluation.
        needs: What features must have; with other features the arm is left out.
    """

    name: str
    label: str
    group: str = ""
    kind: Kind = "pretrained"
    settings: dict[str, Any] = field(default_factory=dict)
    images: float = 1.0
    seeds: int = 3
    threads: int = 1
    scores_untrained: bool = False
    x: float | None = None
    line: str | None = None
    row: str | None = None
    column: str | None = None
    memory_ratio: float | None = None
    labels_a_class: int | None = None
    pairs: int | None = None
    epochs: int | None = None
    needs: Literal["labels", "documents"] | None = None


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about two arms, or about two measures of one arm, with the rule for its verdict.

    The interval of the paired difference is over queries where both arms have numbers per query, else over
    seeds.

    Args:
        ask: The question.
        ours: (arm, measure).
        theirs: (arm, measure).
        published: The papers' answer with its source; it begins with "yes" or "no" where there is one.
        rule: When the verdict is yes. It is no where the interval lies below 0, and can't tell otherwise.
        is_claim: Whether the project claims a yes.
        comparisons: Number of questions asked together under "not below"; the interval's level is
            1 - 0.05 / comparisons (Bonferroni).
        min_seeds: With fewer seeds the verdict is "can't tell".
    """

    ask: str
    ours: tuple[str, str]
    theirs: tuple[str, str]
    published: str = ""
    rule: Rule = "above"
    is_claim: bool = False
    comparisons: int = 1
    min_seeds: int = 2


def exceeds(ask: str, ours: str, theirs: str, measure: str, published: str = "not asked") -> Question:
    """A question whether one arm scores higher than another.

    Args:
        ask: The question.
        ours: Name of an arm.
        theirs: Name of an arm.
        measure: The score.
        published: The papers' answer with its source.

    Returns:
        The question.
    """
    return Question(ask=ask, ours=(ours, measure), theirs=(theirs, measure), published=published)


@dataclass(frozen=True, kw_only=True)
class Published:
    """Results of a paper.

    Args:
        what: The measure, with data set and network.
        rows: (configuration, result), as the paper writes them.
    """

    what: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart of the arms.

    Args:
        kind: "lines": x against a measure, a line for each `line` of the arms. "bars": a bar for each arm and
            measure. "heat map": row by column; if only one half is planned, it is mirrored. "curves": metrics
            over the training steps, a line for each arm; a measure that ends in "_" stands for the metric of
            that prefix with the largest number, such as `drift_` for the drift of the oldest rows. "sizes":
            measures at a size and a precision (`querykey.io.points`) over bytes, a line an arm and precision.
        title: Of the chart.
        measures: What is drawn.
        x: Title of the x axis, with its unit.
        y: Title of the y axis, with its unit.
        log_x: Whether x is logarithmic.
        group: Of the arms drawn; empty: all arms.
    """

    kind: Literal["lines", "bars", "heat map", "curves", "sizes"]
    title: str
    measures: tuple[str, ...]
    x: str = ""
    y: str = ""
    log_x: bool = False
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question with the experiments that answer it, fixed before the first run.

    Args:
        name: On the command line, and in records.
        title: One line.
        asks: The question, one sentence.
        source: Paper, and figure or table.
        caveat: What a small run can and cannot show.
        arms: The configurations.
        questions: Each gets a verdict.
        figures: Charts of the results.
        measured: What the numbers are.
        published: The paper's results; None: there are none.
        images: Training images each arm sees if no time is given; 0: the arms' settings say how long they
            train.
        needs: Images to pretrain on, or features of a frozen model.
        references: Arms that tables compare all others with.
        knn: k and temperature of kNN on features.
        identity: What the key of a cell's record covers.
    """

    name: str
    title: str
    asks: str
    source: str
    caveat: str
    arms: tuple[Arm, ...]
    questions: tuple[Question, ...]
    figures: tuple[Figure, ...]
    measured: str
    published: Published | None = None
    images: int = 0
    needs: Literal["images", "features"] = "images"
    references: tuple[str, ...] = ()
    knn: tuple[int, float] = (10, 0.1)
    identity: Identity = "plan"
