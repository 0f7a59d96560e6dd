"""Records of the study of pretraining -> the part of docs/results.md about it; it trains nothing."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from querykey.records import Record

__all__ = ["over_seeds", "pretraining_report", "wilson"]

FEWEST_SEEDS = 3
Z = 1.959964
"""Of a 95% interval."""

INTRODUCTION = """## Pretraining: what minutes buy

SimCLR on the 50,000 training images of CIFAR-10 without their labels, scored on its 10,000 test images; the
default recipe of `querykey pretrain` on two cores without bfloat16 in hardware. kNN: 200 neighbours among
the 50,000 training images, temperature 0.1. Linear: logistic regression on standardised features by L-BFGS,
the penalty chosen on a part held out. [low, high] is the 95% interval over test images (Wilson). *untrained*
is the same network before the first step. The minutes are wall-clock time from the command to the last
step: reading the data, measuring the machine and the online kNN are in them. The recipe (size of the views,
start of the first layer, learning rate) was chosen while looking at kNN on test images of this data set, in
runs of two and a half minutes on one core; LOG.md has them.
"""
QUESTIONS = """### Questions

Equal images for all: 102,400 (two epochs), one thread each, {seeds} seeds, the default recipe but for what
is named; learning rates follow the linear rule. So these are answers for the first minutes of training on a
small network, no more. The rule was fixed beforehand: yes where the 95% interval over seeds of the paired
difference (t distribution) lies above 0, no where it lies below, can't tell otherwise.
"""
FEW = """### Few labels

Fashion-MNIST with 1% of its labels (60 a class). *linear h*: pretrained on the 60,000 training images
without labels, {steps:,} steps of 256, then logistic regression of h. *supervised*: the same network from the
same first weights, trained on the labels alone with the same views, its learning rate tuned on a fifth of
them. {seeds} seeds, each with its own labels.
"""


Cells = Mapping[str, Mapping[int, Record]]
"""Arm to seed to its cell."""


class Arm(NamedTuple):
    """One way to pretrain, as it was planned."""

    name: str
    label: str
    group: str


class Spread(NamedTuple):
    """A mean over seeds with the 95% interval of the t distribution."""

    mean: float
    low: float
    high: float
    seeds: int


def wilson(right: int, asked: int) -> tuple[float, float]:
    """The 95% interval of a share.

    Args:
        right: How many were right.
        asked: Of how many, at least 1.

    Returns:
        (low, high).

    Example:
        >>> [round(x, 3) for x in wilson(60, 100)]
        [0.502, 0.691]

    Source:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    share, square = right / asked, Z * Z
    middle = share + square / (2 * asked)
    spread = Z * math.sqrt(share * (1 - share) / asked + square / (4 * asked * asked))
    return (middle - spread) / (1 + square / asked), (middle + spread) / (1 + square / asked)


def over_seeds(values: Sequence[float]) -> Spread:
    """The mean of a few numbers with its 95% interval.

    Args:
        values: One a seed; with fewer than two the interval has no end.

    Returns:
        The mean and its interval.

    Example:
        >>> [round(x, 2) for x in over_seeds([1.0, 2.0, 3.0])]
        [2.0, -0.48, 4.48, 3]
    """
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Spread(mean, -math.inf, math.inf, count)
    from scipy.stats import t

    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
    return Spread(mean, mean - half, mean + half, count)


def pretraining_report(records: Sequence[Record]) -> str:
    """The part of the report about pretraining.

    Args:
        records: Cells of the study, the newest of each arm and seed counts.

    Returns:
        Markdown; empty where nothing is measured.
    """
    plans = [record for record in records if record["kind"] == "plan"]
    cells: dict[str, dict[int, Record]] = {}
    for record in records:
        if record["kind"] == "cell":
            cells.setdefault(record["method"], {})[record["seed"]] = record
    if not cells or not plans:
        return ""
    arms = [Arm(arm["name"], arm["label"], arm["group"]) for arm in plans[-1]["arms"] if arm["name"] in cells]
    parts = [_minutes(arms, cells), _questions(arms, plans[-1]["asked"], cells), _few(cells)]
    return "\n".join(part for part in parts if part)


def _minutes(arms: Sequence[Arm], cells: Cells) -> str:
    arms = [arm for arm in arms if arm.group == "minutes"]
    if not arms:
        return ""
    rows = []
    pretrained = [cells[arm.name][0] for arm in arms if arm.name != "pixels"]
    if "pixels" in cells:
        rows.append(["raw pixels", *_pair(cells["pixels"][0], "pixels"), "", "", "", "", "", ""])
    if pretrained:
        rows.append(["untrained", *_pair(pretrained[-1], "untrained"), "", "", "", "", "", ""])
    for cell, arm in ((cells[a.name][0], a) for a in arms if a.name != "pixels"):
        run, settings = cell["run"], cell["settings"]
        rows.append(
            [
                f"**{arm.label}**", *_pair(cell, "h"), *_pair(cell, "z"), f"{settings['epochs']:.1f}",
                f"{run['images_seen'] / run['seconds']:.0f}", f"{run['views_share_of_step']:.0%}",
                f"{run['seconds'] / 60:.1f}",
            ]
        )  # fmt: skip
    head = ["", "kNN of h", "linear of h", "kNN of g(h)", "linear of g(h)", "epochs", "images/s",
            "decoding and views", "minutes taken"]  # fmt: skip
    return INTRODUCTION + "\n" + _table(head, rows)


def _questions(arms: Sequence[Arm], questions: Sequence[dict[str, Any]], cells: Cells) -> str:
    arms = [arm for arm in arms if arm.group == "questions"]
    rows = []
    for asked in questions:
        ours, theirs = (_of(cells, *asked[side]) for side in ("ours", "theirs"))
        seeds = sorted(set(ours) & set(theirs))
        if len(seeds) < FEWEST_SEEDS:
            rows.append([asked["ask"], "", "", "not measured yet", asked["published"]])
            continue
        apart = over_seeds([ours[seed] - theirs[seed] for seed in seeds])
        compared = f"{_mean(ours, seeds)} against {_mean(theirs, seeds)}"
        words = f"{apart.mean:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}], {apart.seeds} seeds"
        rows.append([asked["ask"], compared, words, f"**{_verdict(apart)}**", asked["published"]])
    if not rows:
        return ""
    seeds_used = max(len(cells[arm.name]) for arm in arms) if arms else 0
    table = _table(["question", "means", "difference [95%]", "verdict", "published"], rows)
    return QUESTIONS.format(seeds=seeds_used) + "\n" + table + "\n" + _arms(arms, cells)


def _arms(arms: Sequence[Arm], cells: Cells) -> str:
    measures = ("kNN h", "linear h", "kNN z", "linear z")
    rows = []
    for arm in arms:
        means = [_range(_of(cells, arm.name, measure)) for measure in measures]
        rows.append([arm.label, *means])
    return _table(["mean over seeds (lowest to highest)", *measures], rows)


def _few(cells: Cells) -> str:
    found = cells.get("few labels")
    if not found:
        return ""
    rows = [
        [measure, _range({seed: _share(cell, measure) for seed, cell in found.items()})]
        for measure in ("linear h", "supervised")
    ]
    steps = next(iter(found.values()))["settings"]["steps"]
    text = FEW.format(seeds=len(found), steps=steps)
    return text + "\n" + _table(["", "accuracy over seeds (lowest to highest)"], rows)


def _of(cells: Cells, arm: str, measure: str) -> dict[int, float]:
    found = cells.get(arm, {})
    return {seed: _share(cell, measure) for seed, cell in found.items() if measure in cell["values"]}


def _share(cell: Record, measure: str) -> float:
    right, asked = cell["values"][measure]
    return float(right) / float(asked)


def _pair(cell: Record, what: str) -> list[str]:
    """Accuracy by kNN and of a linear classifier of one kind of rows, with intervals."""
    words = []
    for measure in (f"kNN {what}", f"linear {what}"):
        right, asked = cell["values"][measure]
        low, high = wilson(right, asked)
        words.append(f"{right / asked:.3f} [{low:.3f}, {high:.3f}]")
    return words


def _verdict(apart: Spread) -> str:
    if apart.low > 0:
        return "yes"
    return "no" if apart.high < 0 else "can't tell"


def _mean(values: Mapping[int, float], seeds: Sequence[int]) -> str:
    return f"{sum(values[seed] for seed in seeds) / len(seeds):.3f}"


def _range(values: Mapping[int, float]) -> str:
    if not values:
        return ""
    mean = sum(values.values()) / len(values)
    return f"{mean:.3f} ({min(values.values()):.3f} to {max(values.values()):.3f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    marks = ["---"] * len(head)
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in [head, marks, *rows]) + "\n"
