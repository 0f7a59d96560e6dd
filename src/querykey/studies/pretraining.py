"""The study of pretraining: what minutes buy, few labels, and the papers' questions, fixed beforehand."""

from typing import Any

from querykey.studies.study import Arm, Asked

__all__ = ["ARMS", "ASKED", "BUDGETS"]

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
