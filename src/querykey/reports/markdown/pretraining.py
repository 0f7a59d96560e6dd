"""The part of docs/results.md about pretraining, from the records of its studies alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from querykey.io.records import Record
from querykey.io.study_folder import StoredStudy
from querykey.reports.verdicts import answers, arms_table, markdown_table, mean_and_range, scores, wilson

__all__ = ["pretraining_report"]

MINUTES = """## Pretraining: accuracy by training time

SimCLR on the 50,000 training images of CIFAR-10 without their labels, scored on its 10,000 test images, with
the default recipe of `querykey pretrain` on two cores without bfloat16 in hardware. kNN: 200 neighbours among
the 50,000 training images, temperature 0.1. Linear: logistic regression on standardised features by L-BFGS,
its penalty chosen on a validation part. [low, high]: 95% interval over test images (Wilson). *untrained*:
the same network before the first step. Minutes are wall-clock time from the command to the last step; they
include reading the data, calibration and the online kNN. The recipe (size of the views, initialisation of the
first layer, learning rate) was chosen by kNN on test images of this data set, in runs of two and a half
minutes on one core; they are in LOG.md.
"""
QUESTIONS = """### Questions

Every arm sees 102,400 images (two epochs), on one thread, with {seeds} seeds, by the default recipe except
for what its name says; learning rates follow the linear rule. These are results for the first minutes of
training a small network, no more. The rule was fixed before the first run: yes where the 95% interval over
seeds of the paired difference (t distribution) lies above 0, no where it lies below, else can't tell.
"""
FEW_LABELS = """### Few labels

Fashion-MNIST with 1% of its labels (60 per class). *linear h*: pretrained on the 60,000 training images
without labels, {steps:,} or {more:,} steps of 256, then logistic regression on h. *supervised*: the same
network from the same initial weights, trained on the labels alone with the same views, its learning rate
tuned on a fifth of them. {seeds} seeds, each with its own draw of labels. The longer runs were added after
the shorter ones did not differ from supervised training by more than the interval.
"""
METHODS = """## Pretraining: one dictionary against another

Every method on the 50,000 training images of CIFAR-10, with the same network and the method's default
recipe in `querykey pretrain`, scored as above. The number of steps is what each method reaches in ten
minutes on two cores, measured before on an idle machine; *images/s* follows from it and includes start-up
and online kNN. The runs themselves used one thread, two arms at a time. *memory*: peak resident set during
training, including torch and the decoded images. `xbm` learns from the labels; the others do not.
"""
THREE_MINUTES = """The same for three minutes, with three seeds:
"""
SECONDS = 600.0
"""Of the arms of the study "methods"."""
DICTIONARIES = """### Questions about queues

MoCo (v1's head, temperature 0.1), {steps:,} steps of {batch} images, on one thread, with three seeds: split
batch norm of 8 groups, shuffled keys, 4,096 keys and momentum 0.99, except for what a name says. *pretext*:
share of the queries of the last step that find their key among all candidates; with a small queue it is an
easier task. The rule is the one above.
"""
PRECISION = """### Questions about precision

The default recipe with its products in float32 or in bfloat16, {steps:,} steps of {batch} images each, on one
thread, with three seeds. The rule is the one above; "can't tell" means that bfloat16 is not below by more
than the interval.
"""
OMNIGLOT = """### A memory for an encoder that is trained

Omniglot: 136 training classes, 106 test classes of other alphabets; contrastive loss, batches of 16 (4
classes of 4), {steps:,} steps, three seeds. *R@1*: share of test drawings whose nearest other drawing is of
the same character.
"""
DRIFT = """Drift: mean squared distance (0 to 4) between a stored embedding and the current encoder's
embedding of the same drawing, by age and training step, mean over seeds:
"""


def pretraining_report(studies: Sequence[StoredStudy]) -> str:
    """The part of the report about pretraining.

    Args:
        studies: Those of `querykey.studies.catalogue.results_pretraining` that have a plan.

    Returns:
        Markdown; empty where nothing is measured.
    """
    measured = {study.described["name"]: study for study in studies if study.cells}
    few = [measured[name] for name in ("few labels",) if name in measured]
    parts = []
    if "minutes" in measured:
        parts.append(_minutes(measured["minutes"]))
    if "questions" in measured:
        parts.append(_questions(measured["questions"], few))
    parts += map(_few_labels, few)
    methods = _methods(measured.get("methods"), measured.get("three minutes"))
    parts += [methods] if methods else []
    if "dictionaries" in measured:
        parts.append(_with_answers(measured["dictionaries"], DICTIONARIES, ("kNN h", "linear h", "pretext")))
    if "precision" in measured:
        parts.append(_with_answers(measured["precision"], PRECISION, ("kNN h",)))
    if "omniglot" in measured:
        parts.append(_omniglot(measured["omniglot"]))
    return "\n".join(parts)


def _minutes(study: StoredStudy) -> str:
    rows, cells = [], {name: seeds[0] for name, seeds in study.cells.items()}
    empty = [""] * 6
    if "pixels" in cells:
        rows.append(["raw pixels", *_knn_and_linear(cells.pop("pixels"), "pixels"), *empty])
    if cells:
        longest = list(cells.values())[-1]
        rows.append(["untrained", *_knn_and_linear(longest, "untrained"), *empty])
    labels = {arm["name"]: arm["label"] for arm in study.described["arms"]}
    for name, cell in cells.items():
        run, epochs = cell["run"], f"{cell['settings']['epochs']:.1f}"
        speed = f"{run['images_seen'] / run['seconds']:.0f}"
        times = [f"{run['views_share_of_step']:.0%}", f"{run['seconds'] / 60:.1f}"]
        accuracies = [*_knn_and_linear(cell, "h"), *_knn_and_linear(cell, "z")]
        rows.append([f"**{labels[name]}**", *accuracies, epochs, speed, *times])
    head = ["", "kNN of h", "linear of h", "kNN of g(h)", "linear of g(h)", "epochs", "images/s",
            "decoding and views", "minutes taken"]  # fmt: skip
    return MINUTES + "\n" + markdown_table(head, rows)


def _knn_and_linear(cell: Record, rows: str) -> list[str]:
    """Accuracy of kNN and of a linear classifier, with intervals over test images."""
    texts = []
    for measure in (f"kNN {rows}", f"linear {rows}"):
        right, count = cell["values"][measure]
        low, high = wilson(right, count)
        texts.append(f"{right / count:.3f} [{low:.3f}, {high:.3f}]")
    return texts


def _answers_table(studies: Sequence[StoredStudy]) -> str:
    rows = []
    for one in (answer for study in studies for answer in answers(study)):
        word = one.word if one.difference is None else f"**{one.word}**"
        numbers = ("", "") if one.difference is None else (one.difference.means, one.difference.interval)
        rows.append([one.ask, *numbers, word, one.published])
    return markdown_table(["question", "means", "difference [95%]", "verdict", "published"], rows)


def _questions(study: StoredStudy, few: Sequence[StoredStudy]) -> str:
    seeds = max(map(len, study.cells.values()))
    every = arms_table(study, ("kNN h", "linear h", "kNN z", "linear z"))
    return QUESTIONS.format(seeds=seeds) + "\n" + _answers_table([study, *few]) + "\n" + every


def _few_labels(study: StoredStudy) -> str:
    lengths = {name: next(iter(seeds.values()))["settings"]["steps"] for name, seeds in study.cells.items()}
    steps = lengths.get("few labels", 0)
    more = lengths.get("few labels, longer", steps)
    shown = [
        ("supervised", "few labels", "supervised"),
        (f"linear h, {steps:,} steps", "few labels", "linear h"),
        (f"linear h, {more:,} steps", "few labels, longer", "linear h"),
    ]
    rows = [
        [label, mean_and_range(scores(study.cells, arm, measure))]
        for label, arm, measure in shown
        if arm in study.cells
    ]
    text = FEW_LABELS.format(seeds=len(next(iter(study.cells.values()))), steps=steps, more=more)
    return text + "\n" + markdown_table(["", "accuracy over seeds (lowest to highest)"], rows)


def _methods(ten: StoredStudy | None, three: StoredStudy | None) -> str:
    parts = [METHODS] if ten or three else []
    if ten:
        cells = {name: seeds[0] for name, seeds in ten.cells.items()}
        untrained = [cell for cell in cells.values() if "kNN untrained" in cell["values"]]
        rows = [["untrained", *_knn_and_linear(cell, "untrained"), "", "", ""] for cell in untrained[:1]]
        labels = {arm["name"]: arm["label"] for arm in ten.described["arms"]}
        for name, cell in sorted(cells.items(), key=lambda item: labels[item[0]] == "xbm"):
            images = cell["settings"]["steps"] * cell["settings"]["batch_size"]
            label = f"{labels[name]} (with labels)" if labels[name] == "xbm" else f"**{labels[name]}**"
            costs = [f"{images / SECONDS:,.0f}", f"{cell['settings']['epochs']:.1f}", _megabytes(cell)]
            rows.append([label, *_knn_and_linear(cell, "h"), *costs])
        head = [f"{SECONDS / 60:g} minutes", "kNN of h", "linear of h", "images/s", "epochs", "memory"]
        parts.append(markdown_table(head, rows))
    if three:
        parts += [THREE_MINUTES, arms_table(three, ("kNN h", "kNN untrained"))]
    return "\n".join(parts)


def _megabytes(cell: Record) -> str:
    peak = cell["run"].get("peak_memory")
    return "" if peak is None else f"{peak / 1e6:,.0f} MB"


def _with_answers(study: StoredStudy, text: str, measures: Sequence[str]) -> str:
    """A text with the steps and images of the runs, the questions and a row per arm."""
    settings = _first_settings(study)
    text = text.format(steps=settings["steps"], batch=settings["batch_size"])
    return text + "\n" + _answers_table([study]) + "\n" + arms_table(study, measures)


def _first_settings(study: StoredStudy) -> Mapping[str, Any]:
    settings: Mapping[str, Any] = next(iter(next(iter(study.cells.values())).values()))["settings"]
    return settings


def _omniglot(study: StoredStudy) -> str:
    text = OMNIGLOT.format(steps=_first_settings(study)["steps"])
    every = arms_table(study, ("R@1 z", "R@1 h", "untrained R@1 h"))
    drifts = _drifts([*study.cells.get("xbm", {}).values()])
    return "\n".join(part for part in (text, _answers_table([study]), every, drifts) if part)


def _drifts(cells: Sequence[Record]) -> str:
    """Drift by age, a row per evaluation; ages that fewer than half of the rows have are left out."""
    by_step: dict[int, dict[int, list[float]]] = {}
    for cell in cells:
        for metrics in cell["run"]["looks"]:
            for name, value in metrics.items():
                if name.startswith("drift_"):
                    age = int(name.removeprefix("drift_"))
                    by_step.setdefault(metrics["step"], {}).setdefault(age, []).append(float(value))
    counts = Counter(age for ages in by_step.values() for age in ages)
    ages = [age for age, count in sorted(counts.items()) if count >= len(by_step) / 2]
    if not ages:
        return ""
    rows = [[f"{step:,}", *(_mean(by_step[step].get(age, [])) for age in ages)] for step in sorted(by_step)]
    head = ["steps taken", *(f"{age:,} steps old" if age > 1 else "1 step old" for age in ages)]
    return DRIFT + "\n" + markdown_table(head, rows)


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else ""
