"""Records of the study of pretraining -> the part of docs/results.md about it; it trains nothing."""

from collections.abc import Sequence
from typing import Any

from querykey.io.records import Record
from querykey.reports.markdown.dictionaries import dictionaries_report
from querykey.reports.verdicts import Arm, Cells, arms_table, asked_table, measured, pair, spread, table

__all__ = ["pretraining_report"]

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
without labels, {steps:,} or {more:,} steps of 256, then logistic regression of h. *supervised*: the same
network from the same first weights, trained on the labels alone with the same views, its learning rate tuned
on a fifth of them. {seeds} seeds, each with its own labels. The longer runs were added when the shorter ones
could not be told from supervised training.
"""


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
    asked = plans[-1]["asked"]
    parts = [
        _minutes(arms, cells), _questions(arms, asked, cells), _few(cells),
        dictionaries_report(arms, asked, cells),
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def _minutes(arms: Sequence[Arm], cells: Cells) -> str:
    arms = [arm for arm in arms if arm.group == "minutes"]
    if not arms:
        return ""
    rows = []
    pretrained = [cells[arm.name][0] for arm in arms if arm.name != "pixels"]
    if "pixels" in cells:
        rows.append(["raw pixels", *pair(cells["pixels"][0], "pixels"), "", "", "", "", "", ""])
    if pretrained:
        rows.append(["untrained", *pair(pretrained[-1], "untrained"), "", "", "", "", "", ""])
    for cell, arm in ((cells[a.name][0], a) for a in arms if a.name != "pixels"):
        run, settings = cell["run"], cell["settings"]
        rows.append(
            [
                f"**{arm.label}**", *pair(cell, "h"), *pair(cell, "z"), f"{settings['epochs']:.1f}",
                f"{run['images_seen'] / run['seconds']:.0f}", f"{run['views_share_of_step']:.0%}",
                f"{run['seconds'] / 60:.1f}",
            ]
        )  # fmt: skip
    head = ["", "kNN of h", "linear of h", "kNN of g(h)", "linear of g(h)", "epochs", "images/s",
            "decoding and views", "minutes taken"]  # fmt: skip
    return INTRODUCTION + "\n" + table(head, rows)


def _questions(arms: Sequence[Arm], asked: Sequence[dict[str, Any]], cells: Cells) -> str:
    arms = [arm for arm in arms if arm.group == "questions"]
    verdicts = asked_table([one for one in asked if one.get("group", "questions") == "questions"], cells)
    if not verdicts:
        return ""
    seeds = max(len(cells[arm.name]) for arm in arms) if arms else 0
    every = arms_table(arms, cells, ("kNN h", "linear h", "kNN z", "linear z"))
    return QUESTIONS.format(seeds=seeds) + "\n" + verdicts + "\n" + every


def _few(cells: Cells) -> str:
    found = cells.get("few labels")
    if not found:
        return ""
    steps = next(iter(found.values()))["settings"]["steps"]
    longer = cells.get("few labels, longer", {})
    more = next(iter(longer.values()))["settings"]["steps"] if longer else steps
    rows = [
        [words, spread(measured(cells, arm, measure))]
        for words, arm, measure in (
            ("supervised", "few labels", "supervised"),
            (f"linear h, {steps:,} steps", "few labels", "linear h"),
            (f"linear h, {more:,} steps", "few labels, longer", "linear h"),
        )
        if arm in cells
    ]  # fmt: skip
    text = FEW.format(seeds=len(found), steps=steps, more=more)
    return text + "\n" + table(["", "accuracy over seeds (lowest to highest)"], rows)
