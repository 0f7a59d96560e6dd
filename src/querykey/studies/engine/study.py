"""What a study is: a question, a grid of arms, and the rule by which the answer is read."""

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Arm", "Asked", "Figure", "Kind", "Published", "Study"]

Kind = Literal[
    "pretrained", "kNN of pretrained", "pixels", "few labels", "linear of few labels", "retrieval", "probes",
    "adapter", "baseline", "leak",
]  # fmt: skip
"""What is done with an arm."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to pretrain.

    Args:
        name: In records.
        label: In tables and figures.
        group: The table or figure it belongs to, where a report has several.
        kind: What is done.
        data: Data set and splits, where the study names them.
        settings: Of the pretraining, where they are not the defaults.
        images: The images it sees, as a share of what every arm of its study sees.
        seeds: How many, at the most.
        threads: Of torch; 0: all cores, and nothing else runs meanwhile.
        scores_untrained: Whether the encoder is also scored as it was before the first step.
        x: Where it stands in a figure of lines.
        line: On which of them.
        row: Of a heat map.
        column: Likewise.
        memory_ratio: Of a cross-batch memory, its rows as a share of the training images; 0: no memory.
        labels_a_class: With few labels, how many; None: 1% of them.
        epochs: Of the supervised training beside it; None: those of the evaluation.
        needs: What features must have for it, where not all will do; it is left out of others.
    """

    name: str
    label: str
    group: str = ""
    kind: Kind = "pretrained"
    data: tuple[str, str, str] = ("cifar10", "train", "test")
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
    epochs: int | None = None
    needs: Literal["labels", "documents"] | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question about two arms, or about two measures of one arm.

    The rule of all: yes where the 95% interval of the paired difference lies above 0, no where it lies below,
    can't tell otherwise. It is over seeds, of adapters over queries.

    Args:
        ask: In words.
        ours: (arm, measure).
        theirs: (arm, measure).
        published: What the papers report, with its source.
        group: The table it belongs to.
    """

    ask: str
    ours: tuple[str, str]
    theirs: tuple[str, str]
    published: str
    group: str = "questions"


@dataclass(frozen=True, kw_only=True)
class Published:
    """Numbers of a paper.

    Args:
        what: What they are, with data and network.
        rows: (what, number), in the paper's own words and digits.
    """

    what: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """How arms are drawn.

    Args:
        kind: "lines": x against a measure, a line for each `line` of the arms. "bars": one an arm and
            measure. "heat map": row by column; a pair that is in one half of it alone stands in both.
            "curves": what the monitors saw over the steps, a line an arm; `measures` are theirs, and of
            one that ends in "_" the highest number counts: of `drift_` the oldest rows.
        title: In words.
        measures: Which numbers.
        x: Title of the axis, with its unit.
        y: Likewise.
        log_x: Whether x is drawn by its logarithm.
        group: Of arms; empty: all of them.
    """

    kind: Literal["lines", "bars", "heat map", "curves"]
    title: str
    measures: tuple[str, ...]
    x: str = ""
    y: str = ""
    log_x: bool = False
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question with all that answers it, fixed before it runs.

    Args:
        name: As the command takes it.
        title: A line.
        asks: The question, a sentence.
        source: Paper, figure or table.
        published: What it reports.
        caveat: What a small run can and can't show.
        arms: The grid.
        asked: The questions that the verdict is of.
        figures: How the result is drawn.
        measured: What the numbers are.
        images: That every arm sees in a run of full length, where no budget is given.
        needs: What it is asked of: images to pretrain from, or features of a frozen model.
    """

    name: str
    title: str
    asks: str
    source: str
    published: Published
    caveat: str
    arms: tuple[Arm, ...]
    asked: tuple[Asked, ...]
    figures: tuple[Figure, ...]
    measured: str
    images: int = 0
    needs: Literal["images", "features"] = "images"
