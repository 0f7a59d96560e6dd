"""The study of dictionaries: every method for the same minutes, and the papers' questions."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from querykey.errors import MissingPathError
from querykey.io.records import Records
from querykey.studies.engine.grid import Cell, run_grid, tell, write_plan
from querykey.studies.engine.images import StudyImages
from querykey.studies.engine.measure_encoders import measure_encoder
from querykey.studies.engine.study import Arm, Asked, Kind
from querykey.studies.engine.work import Work

__all__ = [
    "ARMS",
    "ASKED",
    "BUDGETS",
    "DICTIONARY_ARMS",
    "DICTIONARY_ASKED",
    "EVERY",
    "RECORDS",
    "TEN_MINUTES",
    "cells_of",
    "measure_arms",
]

TEN_MINUTES = {
    "simclr": 3750, "moco": 4900, "moco-v2": 5150, "moco-v3": 2580, "memory-bank": 2540, "end-to-end": 3170,
    "xbm": 4630,
}  # fmt: skip
"""The steps that `--minutes 10` gives each method on two cores that do nothing else. Fixed here, so that a
busy machine changes no result, and two arms can run side by side."""
THREE_OF_TEN = 0.276
"""Of those steps what `--minutes 3` gives: starting up takes as long."""
DICTIONARY_STEPS = 1200
"""Of the questions: 307,200 images, six epochs."""
OMNIGLOT = ("omniglot", "train", "test")
"""The alphabets of the test are not those of the training."""
OMNIGLOT_STEPS = 4000
OMNIGLOT_RATE = 0.04
"""The best of 0.004, 0.0125 and 0.04 for both arms, on drawings held out of the training classes (LOG.md)."""

FEW = (64, 256, 1024)
MOMENTA = (0.0, 0.9, 0.999)


def _method(name: str, *, share: float, group: str, seeds: int) -> Arm:
    kind: Kind = "pretrained" if seeds == 1 else "kNN of pretrained"
    steps = round(share * TEN_MINUTES[name])
    return Arm(
        name=f"{name}, {group}", label=name, group=group, kind=kind, seeds=seeds,
        settings={"method": name, "steps": steps, "looks": 4, "layout": "channels_last",
                  "precision": "float32"},
        scores_untrained=name == "simclr",
    )  # fmt: skip


def _moco(name: str, label: str, **settings: Any) -> Arm:
    whole = {
        "method": "moco", "steps": DICTIONARY_STEPS, "looks": 4, "layout": "channels_last",
        "precision": "float32", "capacity": 4096, **settings,
    }  # fmt: skip
    return Arm(name=name, label=label, group="dictionaries", settings=whole)


def _omniglot(name: str, label: str, **settings: Any) -> Arm:
    whole = {
        "method": "xbm", "steps": OMNIGLOT_STEPS, "looks": 20, "layout": "channels_last",
        "precision": "float32", "image_size": 32, "view_size": 32, "views": "digits", "batch_size": 16,
        "capacity": 2048, "learning_rate": OMNIGLOT_RATE, **settings,
    }  # fmt: skip
    return Arm(name=name, label=label, group="omniglot", kind="retrieval", data=OMNIGLOT, settings=whole)


DICTIONARY_ARMS = (
    *(_method(name, share=1.0, group="methods", seeds=1) for name in TEN_MINUTES),
    *(_method(name, share=THREE_OF_TEN, group="three minutes", seeds=3) for name in TEN_MINUTES),
    _moco("moco", "momentum 0.99, 4,096 keys, shuffled"),
    *(_moco(f"momentum {value:g}", f"momentum {value:g}", momentum=value) for value in MOMENTA),
    *(_moco(f"capacity {count}", f"{count:,} keys", capacity=count) for count in FEW),
    _moco("not shuffled", "not shuffled", shuffle=False),
    _omniglot("xbm", "batch 16 and a memory of 2,048"),
    _omniglot("no memory", "batch 16 alone", memory_weight=0.0),
)


def _knn(ask: str, ours: str, theirs: str, published: str) -> Asked:
    return Asked(
        ask=ask, ours=(ours, "kNN h"), theirs=(theirs, "kNN h"), published=published, group="dictionaries"
    )


DICTIONARY_ASKED = (
    _knn("Is momentum 0.99 better than 0?", "moco", "momentum 0",
         "yes: 0 does not converge (MoCo, sec. 4.1)"),
    _knn("Is momentum 0.99 better than 0.9?", "moco", "momentum 0.9", "yes, by 3 points (MoCo, sec. 4.1)"),
    _knn("Is momentum 0.99 better than 0.999?", "moco", "momentum 0.999",
         "no: 0.999 is better by 1 point in 200 epochs (MoCo, sec. 4.1)"),
    _knn("Are 4,096 keys better than 64?", "moco", "capacity 64", "yes, more keys are better (MoCo, fig. 3)"),
    _knn("Are 4,096 keys better than 256?", "moco", "capacity 256", "yes, by 4 points (MoCo, fig. 3)"),
    _knn("Are 4,096 keys better than 1,024?", "moco", "capacity 1024", "yes, by 2 points (MoCo, fig. 3)"),
    _knn("Is shuffling better than not?", "moco", "not shuffled",
         "yes: by 4 points in 800 epochs (MoCo's CIFAR notebook)"),
    Asked(ask="Is the pretext task solved more often without shuffling?", ours=("not shuffled", "pretext"),
          theirs=("moco", "pretext"), published="yes, almost always (MoCo, app. A.9)", group="dictionaries"),
    Asked(ask="Does a memory help at batch 16, in other alphabets?", ours=("xbm", "R@1 z"),
          theirs=("no memory", "R@1 z"), published="yes, by 12 to 22 points (XBM, other data)",
          group="omniglot"),
)  # fmt: skip


FASHION = ("fashion-mnist", "train", "test")
"""Below the data folder: data set, training split, test split."""
STEPS = 400
"""Of the questions: 102,400 images, two epochs. Batches of 32 take eight times as many steps."""
FEW_STEPS, MANY_STEPS = 1000, 4000
BUDGETS = (2, 5, 10, 30)
"""Minutes on all cores."""


def _question(name: str, label: str, **settings: Any) -> Arm:
    whole = {"steps": STEPS, "looks": 0, "layout": "channels_last", "precision": "float32", **settings}
    return Arm(name=name, label=label, group="questions", settings=whole)


_SMALL = {"batch_size": 32, "steps": 8 * STEPS}
ARMS = (
    *(
        Arm(name=f"{minutes} minutes", label=f"{minutes} minutes", group="minutes",
            settings={"minutes": float(minutes)}, seeds=1, threads=0, scores_untrained=True)
        for minutes in BUDGETS
    ),
    Arm(name="pixels", label="raw pixels", group="minutes", kind="pixels", seeds=1),
    _question("simclr", "NT-Xent, MLP head, normalised, batch 256"),
    _question("head none", "no head", head="none"),
    _question("head linear", "linear head", head="linear"),
    _question("not normalised", "z not normalised, temperature 10", normalised=False, temperature=10.0),
    _question("decoupled", "DCL, batch 256", loss="decoupled"),
    _question("batch 32", "NT-Xent, batch 32", **_SMALL),
    _question("decoupled 32", "DCL, batch 32", loss="decoupled", **_SMALL),
    Arm(name="few labels", label="1% of the labels", group="few labels", kind="few labels", data=FASHION,
        settings={"steps": FEW_STEPS, "looks": 0, "layout": "channels_last", "precision": "float32"},
        seeds=5),
    Arm(name="few labels, longer", label="1% of the labels", group="few labels", kind="linear of few labels",
        data=FASHION, seeds=5,
        settings={"steps": MANY_STEPS, "looks": 0, "layout": "channels_last", "precision": "float32"}),
)  # fmt: skip

_FEW = (
    "With 1% of the labels: is a linear classifier of h, after {:,} steps, better than the same network "
    "trained on them alone?"
)

ASKED = (
    Asked(ask="Is h better than g(h)?", ours=("simclr", "linear h"), theirs=("simclr", "linear z"),
          published="yes, by more than 10 points (SimCLR, sec. 4.2)"),
    Asked(ask="Is an MLP head better than none?", ours=("simclr", "linear h"),
          theirs=("head none", "linear h"), published="yes, by more than 10 points (SimCLR, fig. 8)"),
    Asked(ask="Is an MLP head better than a linear one?", ours=("simclr", "linear h"),
          theirs=("head linear", "linear h"), published="yes, by 3 points (SimCLR, fig. 8)"),
    Asked(ask="Is a linear head better than none?", ours=("head linear", "linear h"),
          theirs=("head none", "linear h"), published="yes (SimCLR, fig. 8)"),
    Asked(ask="Is normalised z better than unnormalised?", ours=("simclr", "linear h"),
          theirs=("not normalised", "linear h"), published="yes, by 7 points (SimCLR, table 5)"),
    Asked(ask="Is DCL better than NT-Xent at batch 32?", ours=("decoupled 32", "kNN h"),
          theirs=("batch 32", "kNN h"), published="yes, by 6 points (DCL's code, 100 epochs)"),
    Asked(ask="Is DCL better than NT-Xent at batch 256?", ours=("decoupled", "kNN h"),
          theirs=("simclr", "kNN h"), published="yes, by 2 points (DCL's code, 100 epochs)"),
    Asked(ask=_FEW.format(FEW_STEPS), ours=("few labels", "linear h"), theirs=("few labels", "supervised"),
          published="yes (SimCLR, table 7)"),
    Asked(ask=_FEW.format(MANY_STEPS), ours=("few labels, longer", "linear h"),
          theirs=("few labels", "supervised"), published="yes (SimCLR, table 7)"),
)  # fmt: skip
"""The rule of all: yes where the 95% interval over seeds of the paired difference lies above 0, no where it
lies below, can't tell otherwise."""


RECORDS = "pretraining.jsonl"
EVERY = (*ARMS, *DICTIONARY_ARMS)
ELSEWHERE = {"fashion-mnist": Path("/usr/share/datasets/fashion-mnist")}
"""Where the system's package puts a data set that is not in the data folder."""


def cells_of(arms: Sequence[Arm], folder: Path) -> list[Cell]:
    """The cells of arms, one a seed.

    Args:
        arms: Which.
        folder: Of real data.

    Returns:
        Cells in the order of the arms, seed by seed.

    Raises:
        MissingPathError: If data aren't there.
    """
    cells = []
    for arm in arms:
        name, train, test = arm.data
        place = next(
            (at for at in (folder / name, ELSEWHERE.get(name)) if at is not None and at.exists()), None
        )
        if place is None:
            raise MissingPathError(
                f"{folder / name} is not there; the study of pretraining needs it: give the folder of the "
                "data with --data DIR"
            )
        threads = arm.threads or os.cpu_count() or 1
        identity = {
            "kind": arm.kind, "data": name, "splits": [train, test], "settings": arm.settings,
            "threads": threads,
        }  # fmt: skip
        cells += [
            Cell(task=arm.group, method=arm.name, seed=seed, identity=identity,
                 work=Work(arm, StudyImages.of_splits(str(place), train, test), threads))
            for seed in range(arm.seeds)
        ]  # fmt: skip
    return cells


def measure_arms(arms: Sequence[Arm], *, data: Path, folder: Path, jobs: int = 1) -> int:
    """Measure the cells of arms that have no record yet.

    Args:
        arms: Which.
        data: The folder of real data.
        folder: Of the records.
        jobs: Processes, at least 1.

    Returns:
        How many cells were measured now.

    Raises:
        MissingPathError: If data aren't there.
    """
    records, cells = Records(folder / RECORDS), cells_of(arms, data)
    write_plan(records, 0, "pretraining", {
        "arms": [{"name": arm.name, "label": arm.label, "group": arm.group} for arm in EVERY],
        "asked": [vars(question) for question in (*ASKED, *DICTIONARY_ASKED)],
    })  # fmt: skip
    # an arm that uses all cores runs alone
    alone = [cell for cell in cells if cell.work.arm.threads == 0]
    others = [cell for cell in cells if cell.work.arm.threads]
    count = run_grid(alone, records, measure_encoder, jobs=1, told=tell)
    return count + run_grid(others, records, measure_encoder, jobs=jobs, told=tell)
