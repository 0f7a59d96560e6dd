"""Records of the study of dictionaries -> the part of docs/results.md about it; it trains nothing."""

from collections.abc import Sequence
from typing import Any

from querykey.io.records import Record
from querykey.reports.verdicts import Arm, Cells, arms_table, asked_table, pair, table

__all__ = ["dictionaries_report"]

METHODS = """## Pretraining: one dictionary against another

Every method on the 50,000 training images of CIFAR-10, the same network, the method's default recipe in
`querykey pretrain`; scored as above. Each takes the steps that it has time for in ten minutes of two cores,
measured beforehand on an idle machine: *images/s* is what that comes to, start-up and online kNN included.
The steps themselves were taken on one thread, two arms side by side. *memory*: the process at its highest
while it trained, torch and the decoded images included. `xbm` learns from the labels and stands apart; the
others do not see them.
"""
THREE = """The same of three minutes, three seeds:
"""
SECONDS = 600.0
"""Of the arms of the group "methods"."""
QUESTIONS = """### Questions about queues

MoCo (v1's head, temperature 0.1), {steps:,} steps of {batch} images, one thread each, three seeds; split
batch norm of 8 groups, keys shuffled, 4,096 keys and momentum 0.99 but for what is named. *pretext*:
the share of the queries of the last step that find their key among all candidates; of a small queue it is
the easier task. The rule is the one above.
"""
OMNIGLOT = """### A memory for an encoder that is trained

Omniglot: 136 classes to train on, 106 classes of other alphabets to search in; contrastive loss, batches of
16 (4 classes of 4), {steps:,} steps, three seeds. *R@1*: whether the nearest other drawing of the test is of
the same character.
"""
DRIFT = """How far a stored embedding is from what today's encoder makes of the same drawing, by its age and
by how far the run is (mean squared distance, 0 to 4; mean over seeds):
"""


def dictionaries_report(arms: Sequence[Arm], asked: Sequence[dict[str, Any]], cells: Cells) -> str:
    """The part of the report about dictionaries.

    Args:
        arms: Those that are measured.
        asked: All questions.
        cells: What is measured.

    Returns:
        Markdown; empty where nothing is measured.
    """
    parts = [_methods(arms, cells), _questions(arms, asked, cells), _omniglot(arms, asked, cells)]
    return "\n".join(part for part in parts if part)


def _methods(arms: Sequence[Arm], cells: Cells) -> str:
    long = [arm for arm in arms if arm.group == "methods"]
    short = [arm for arm in arms if arm.group == "three minutes"]
    if not long and not short:
        return ""
    text = METHODS
    if long:
        before = [c for c in (cells[arm.name][0] for arm in long) if "kNN untrained" in c["values"]]
        rows = [["untrained", *pair(cell, "untrained"), "", "", ""] for cell in before[:1]]
        for arm in sorted(long, key=lambda arm: arm.label == "xbm"):
            cell = cells[arm.name][0]
            images = cell["settings"]["steps"] * cell["settings"]["batch_size"]
            label = f"{arm.label} (with labels)" if arm.label == "xbm" else f"**{arm.label}**"
            rows.append([
                label, *pair(cell, "h"), f"{images / SECONDS:,.0f}",
                f"{cell['settings']['epochs']:.1f}", _megabytes(cell),
            ])  # fmt: skip
        head = [f"{SECONDS / 60:g} minutes", "kNN of h", "linear of h", "images/s", "epochs", "memory"]
        text += "\n" + table(head, rows)
    if short:
        text += "\n" + THREE + "\n" + arms_table(short, cells, ("kNN h", "kNN untrained"))
    return text


def _questions(arms: Sequence[Arm], asked: Sequence[dict[str, Any]], cells: Cells) -> str:
    arms = [arm for arm in arms if arm.group == "dictionaries"]
    if not arms:
        return ""
    verdicts = asked_table([one for one in asked if one.get("group") == "dictionaries"], cells)
    settings = next(iter(cells[arms[0].name].values()))["settings"]
    text = QUESTIONS.format(steps=settings["steps"], batch=settings["batch_size"])
    return text + "\n" + verdicts + "\n" + arms_table(arms, cells, ("kNN h", "linear h", "pretext"))


def _omniglot(arms: Sequence[Arm], asked: Sequence[dict[str, Any]], cells: Cells) -> str:
    arms = [arm for arm in arms if arm.group == "omniglot"]
    if not arms:
        return ""
    verdicts = asked_table([one for one in asked if one.get("group") == "omniglot"], cells)
    settings = next(iter(cells[arms[0].name].values()))["settings"]
    text = OMNIGLOT.format(steps=settings["steps"])
    every = arms_table(arms, cells, ("R@1 z", "R@1 h", "untrained R@1 h"))
    drifts = _drifts([cell for arm in arms if arm.name == "xbm" for cell in cells[arm.name].values()])
    return "\n".join(part for part in (text, verdicts, every, drifts) if part)


def _drifts(found: Sequence[Record]) -> str:
    """Drift by age, a row a look."""
    by_step: dict[int, dict[int, list[float]]] = {}
    for cell in found:
        for look in cell["run"]["looks"]:
            for name, value in look.items():
                if name.startswith("drift_"):
                    age = int(name.removeprefix("drift_"))
                    by_step.setdefault(look["step"], {}).setdefault(age, []).append(float(value))
    ages = [age for age, count in _counted(by_step).items() if count >= len(by_step) / 2]
    if not ages:
        return ""
    rows = [[f"{step:,}", *(_mean(by_step[step].get(age, [])) for age in ages)] for step in sorted(by_step)]
    head = ["steps taken", *(f"{age:,} steps old" if age > 1 else "1 step old" for age in ages)]
    return DRIFT + "\n" + table(head, rows)


def _counted(by_step: dict[int, dict[int, list[float]]]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for found in by_step.values():
        for age in found:
            counts[age] = counts.get(age, 0) + 1
    return dict(sorted(counts.items()))


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else ""


def _megabytes(cell: Record) -> str:
    peak = cell["run"].get("peak_memory")
    return "" if peak is None else f"{peak / 1e6:,.0f} MB"
