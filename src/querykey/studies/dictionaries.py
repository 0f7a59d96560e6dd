"""The study of dictionaries: every method for the same minutes, and the papers' questions."""

from typing import Any

from querykey.studies.study import Arm, Asked, Kind

__all__ = ["DICTIONARY_ARMS", "DICTIONARY_ASKED", "TEN_MINUTES"]

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
        "method": "moco", "steps": DICTIONARY_STEPS, "looks": 4, "layout": "channels_last", "precision": "float32",
        "capacity": 4096, **settings,
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
