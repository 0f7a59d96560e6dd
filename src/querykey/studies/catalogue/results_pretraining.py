"""The studies of docs/results.md on images: minutes of pretraining, and one dictionary against another."""

from typing import Any

from querykey.studies.data_sets import CIFAR10, FASHION, OMNIGLOT_IMAGES, Images
from querykey.studies.engine.run import FIXED
from querykey.studies.engine.study import Arm, Figure, Kind, Question, Study, exceeds

__all__ = ["RESULTS_PRETRAINING", "STEPS_IN_TEN_MINUTES"]

Arms = tuple[Arm, ...]
Questions = tuple[Question, ...]
STEPS_IN_TEN_MINUTES = {
    "simclr": 3750, "moco": 4900, "moco-v2": 5150, "moco-v3": 2580, "memory-bank": 2540, "end-to-end": 3170,
    "xbm": 4630,
}  # fmt: skip
"""Steps that `--minutes 10` gives each method on two otherwise idle cores. They are fixed here, so that the
load of a machine changes no result, and two arms can run side by side."""
THREE_MINUTES = 0.276
"""The fraction of those steps that `--minutes 3` gives: start-up takes equally long."""
BUDGETS = (2, 5, 10, 30)
"""Minutes on all cores."""
STEPS, FEW_STEPS, MANY_STEPS = 400, 1000, 4000
"""400 steps of 256 are 102,400 images, two epochs. Batches of 32 take eight times as many steps."""
DICTIONARY_STEPS = 1200
"""307,200 images, six epochs."""
CAPACITIES, MOMENTA = (64, 256, 1024), (0.0, 0.9, 0.999)
OMNIGLOT_STEPS = 4000
OMNIGLOT_RATE = 0.04
"""The best of 0.004, 0.0125 and 0.04 for both arms, on drawings held out of the training classes (LOG.md)."""


def _study(
    name: str, title: str, arms: Arms, questions: Questions = (), *, measured: str, measures: tuple[str, ...]
) -> Study:
    figure = Figure(kind="bars", title=title, measures=measures, y="share of test images")
    return Study(
        name=name,
        title=title,
        asks=f"{title}: how good are the embeddings?",
        source="this library and the papers",
        caveat="Minutes of training a small network. Where a paper reports otherwise after days of training "
        "a large one, both can be right.",
        arms=arms,
        questions=questions,
        figures=(figure,),
        measured=measured,
        identity="data set",
    )


def _minutes(minutes: int) -> Arm:
    name, settings = f"{minutes} minutes", {"minutes": float(minutes)}
    return Arm(
        name=name, label=name, group="minutes", seeds=1, threads=0, settings=settings, scores_untrained=True
    )


def _variant(name: str, label: str, **settings: Any) -> Arm:
    settings = {"steps": STEPS, "looks": 0, **FIXED, **settings}
    return Arm(name=name, label=label, group="questions", settings=settings)


def _in_precision(method: str, precision: str) -> Arm:
    settings = {"method": method, "steps": STEPS, "looks": 0, **FIXED, "precision": precision}
    name = f"{method}, {precision}"
    return Arm(name=name, label=name, group="precision", kind="kNN of pretrained", seeds=3, settings=settings)


def _few_labels(name: str, kind: Kind, steps: int) -> Arm:
    settings = {"steps": steps, "looks": 0, **FIXED}
    return Arm(name=name, label="1% of the labels", group="few labels", kind=kind, seeds=5, settings=settings)


def _method(name: str, *, share: float, group: str, seeds: int) -> Arm:
    kind: Kind = "pretrained" if seeds == 1 else "kNN of pretrained"
    steps = round(share * STEPS_IN_TEN_MINUTES[name])
    return Arm(
        name=f"{name}, {group}",
        label=name,
        group=group,
        kind=kind,
        seeds=seeds,
        settings={"method": name, "steps": steps, "looks": 4, **FIXED},
        scores_untrained=name == "simclr",
    )


def _moco(name: str, label: str, **settings: Any) -> Arm:
    given = {"method": "moco", "steps": DICTIONARY_STEPS, "looks": 4, **FIXED, "capacity": 4096}
    return Arm(name=name, label=label, group="dictionaries", settings=given | settings)


def _omniglot(name: str, label: str, **settings: Any) -> Arm:
    given = {
        "method": "xbm", "steps": OMNIGLOT_STEPS, "looks": 20, **FIXED, "image_size": 32, "view_size": 32,
        "views": "digits", "batch_size": 16, "capacity": 2048, "learning_rate": OMNIGLOT_RATE,
    }  # fmt: skip
    return Arm(name=name, label=label, group="omniglot", kind="retrieval", settings=given | settings)


_FEW = (
    "With 1% of the labels: is a linear classifier of h, after {:,} steps, better than the same network "
    "trained on them alone?"
)
_SMALL = {"batch_size": 32, "steps": 8 * STEPS}
_ACCURACY = "kNN and linear accuracy"

RESULTS_PRETRAINING: tuple[tuple[Images, Study], ...] = (
    (CIFAR10, _study(
        "minutes", "What minutes of SimCLR give",
        (
            *map(_minutes, BUDGETS),
            Arm(name="pixels", label="raw pixels", group="minutes", kind="pixels", seeds=1),
        ),
        measured=_ACCURACY, measures=("kNN h", "linear h", "kNN z", "linear z"),
    )),
    (CIFAR10, _study(
        "questions", "Head, normalisation and loss of SimCLR",
        (
            _variant("simclr", "NT-Xent, MLP head, normalised, batch 256"),
            _variant("head none", "no head", head="none"),
            _variant("head linear", "linear head", head="linear"),
            _variant("not normalised", "z not normalised, temperature 10", normalised=False,
                     temperature=10.0),
            _variant("decoupled", "DCL, batch 256", loss="decoupled"),
            _variant("batch 32", "NT-Xent, batch 32", **_SMALL),
            _variant("decoupled 32", "DCL, batch 32", loss="decoupled", **_SMALL),
        ),
        (
            Question(ask="Is h better than g(h)?", ours=("simclr", "linear h"), theirs=("simclr", "linear z"),
                     published="yes, by more than 10 points (SimCLR, sec. 4.2)"),
            exceeds("Is an MLP head better than none?", "simclr", "head none", "linear h",
                    "yes, by more than 10 points (SimCLR, fig. 8)"),
            exceeds("Is an MLP head better than a linear one?", "simclr", "head linear", "linear h",
                    "yes, by 3 points (SimCLR, fig. 8)"),
            exceeds("Is a linear head better than none?", "head linear", "head none", "linear h",
                    "yes (SimCLR, fig. 8)"),
            exceeds("Is normalised z better than unnormalised?", "simclr", "not normalised", "linear h",
                    "yes, by 7 points (SimCLR, table 5)"),
            exceeds("Is DCL better than NT-Xent at batch 32?", "decoupled 32", "batch 32", "kNN h",
                    "yes, by 6 points (DCL's code, 100 epochs)"),
            exceeds("Is DCL better than NT-Xent at batch 256?", "decoupled", "simclr", "kNN h",
                    "yes, by 2 points (DCL's code, 100 epochs)"),
        ),
        measured=_ACCURACY, measures=("kNN h", "linear h", "kNN z", "linear z"),
    )),
    (FASHION, _study(
        "few labels", "A linear classifier of h against supervised training",
        (
            _few_labels("few labels", "few labels", FEW_STEPS),
            _few_labels("few labels, longer", "linear of few labels", MANY_STEPS),
        ),
        tuple(
            Question(ask=_FEW.format(steps), ours=(arm, "linear h"), theirs=("few labels", "supervised"),
                     published="yes (SimCLR, table 7)")
            for arm, steps in (("few labels", FEW_STEPS), ("few labels, longer", MANY_STEPS))
        ),
        measured="accuracy", measures=("linear h", "supervised"),
    )),
    (CIFAR10, _study(
        "methods", "Ten minutes of each method",
        tuple(_method(name, share=1.0, group="methods", seeds=1) for name in STEPS_IN_TEN_MINUTES),
        measured=_ACCURACY, measures=("kNN h", "linear h"),
    )),
    (CIFAR10, _study(
        "three minutes", "Three minutes of each method",
        tuple(
            _method(name, share=THREE_MINUTES, group="three minutes", seeds=3)
            for name in STEPS_IN_TEN_MINUTES
        ),
        measured="kNN accuracy", measures=("kNN h", "kNN untrained"),
    )),
    (CIFAR10, _study(
        "precision", "SimCLR and MoCo in bfloat16 and in float32, at equal steps",
        tuple(_in_precision(name, kind) for name in ("simclr", "moco") for kind in ("float32", "bfloat16")),
        tuple(
            exceeds(f"Is {name} better in float32 than in bfloat16?", f"{name}, float32", f"{name}, bfloat16",
                    "kNN h", "no (mixed precision, Micikevicius et al. 2018)")
            for name in ("simclr", "moco")
        ),
        measured="kNN accuracy", measures=("kNN h",),
    )),
    (CIFAR10, _study(
        "dictionaries", "Momentum, capacity and shuffling of MoCo",
        (
            _moco("moco", "momentum 0.99, 4,096 keys, shuffled"),
            *(_moco(f"momentum {value:g}", f"momentum {value:g}", momentum=value) for value in MOMENTA),
            *(_moco(f"capacity {count}", f"{count:,} keys", capacity=count) for count in CAPACITIES),
            _moco("not shuffled", "not shuffled", shuffle=False),
        ),
        (
            exceeds("Is momentum 0.99 better than 0?", "moco", "momentum 0", "kNN h",
                    "yes: 0 does not converge (MoCo, sec. 4.1)"),
            exceeds("Is momentum 0.99 better than 0.9?", "moco", "momentum 0.9", "kNN h",
                    "yes, by 3 points (MoCo, sec. 4.1)"),
            exceeds("Is momentum 0.99 better than 0.999?", "moco", "momentum 0.999", "kNN h",
                    "no: 0.999 is better by 1 point in 200 epochs (MoCo, sec. 4.1)"),
            exceeds("Are 4,096 keys better than 64?", "moco", "capacity 64", "kNN h",
                    "yes, more keys are better (MoCo, fig. 3)"),
            exceeds("Are 4,096 keys better than 256?", "moco", "capacity 256", "kNN h",
                    "yes, by 4 points (MoCo, fig. 3)"),
            exceeds("Are 4,096 keys better than 1,024?", "moco", "capacity 1024", "kNN h",
                    "yes, by 2 points (MoCo, fig. 3)"),
            exceeds("Is shuffling better than not?", "moco", "not shuffled", "kNN h",
                    "yes: by 4 points in 800 epochs (MoCo's CIFAR notebook)"),
            exceeds("Is the pretext task solved more often without shuffling?", "not shuffled", "moco",
                    "pretext", "yes, almost always (MoCo, app. A.9)"),
        ),
        measured=_ACCURACY, measures=("kNN h", "linear h", "pretext"),
    )),
    (OMNIGLOT_IMAGES, _study(
        "omniglot", "A memory for an encoder that is trained",
        (
            _omniglot("xbm", "batch 16 and a memory of 2,048"),
            _omniglot("no memory", "batch 16 alone", memory_weight=0.0),
        ),
        (
            exceeds("Does a memory help at batch 16, in other alphabets?", "xbm", "no memory", "R@1 z",
                    "yes, by 12 to 22 points (XBM, other data)"),
        ),
        measured="R@1", measures=("R@1 z", "R@1 h"),
    )),
)  # fmt: skip
"""In the order of the report, each with its data."""
