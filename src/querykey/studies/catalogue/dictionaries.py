"""Queues, memory banks and key encoders: number of keys, momentum, batch norm."""

from typing import Any

from querykey.studies.engine.study import LEAK, Arm, Figure, Published, Study, exceeds

__all__ = ["BATCH_NORM", "DICTIONARY_SIZE", "MOMENTUM"]

IMAGES = 307_200
_MOCO: dict[str, Any] = {"method": "moco", "looks": 4, "capacity": 4096}


def _momentum(value: float) -> Arm:
    settings = {**_MOCO, "momentum": value}
    return Arm(name=f"momentum {value:g}", label=f"{value:g}", x=1.0 - value, line="MoCo", settings=settings)


MOMENTUM = Study(
    name="momentum",
    title="Momentum of the key encoder",
    asks="How large must the momentum of the key encoder be, and can it be too large?",
    source="MoCo, arXiv:1911.05722, sec. 4.1",
    published=Published(
        what="linear accuracy on ImageNet, ResNet-50, 4,096 keys, %",
        rows=(("0", "does not converge"), ("0.9", "55.2"), ("0.99", "57.8"), ("0.999", "59.0"),
              ("0.9999", "58.9")),
    ),
    caveat="What matters is the half-life of the key encoder, ln 2 / (1 - m) steps, relative to the length"
    " of the run: 69 steps at 0.99, 693 at 0.999, 6,931 at 0.9999. In a run of minutes the best "
    "momentum is lower, and at 0.9999 the key encoder hardly leaves its initial weights.",
    arms=tuple(_momentum(value) for value in (0.0, 0.9, 0.99, 0.999, 0.9999)),
    questions=(
        exceeds("Is 0.99 better than 0?", "momentum 0.99", "momentum 0", "kNN h",
                "yes: 0 does not converge (sec. 4.1)"),
        exceeds("Is 0.99 better than 0.9?", "momentum 0.99", "momentum 0.9", "kNN h",
                "yes, by 3 points (sec. 4.1)"),
        exceeds("Is 0.999 better than 0.99?", "momentum 0.999", "momentum 0.99", "kNN h",
                "yes, by 1 point in 200 epochs (sec. 4.1)"),
        exceeds("Is 0.9999 worse than 0.99?", "momentum 0.99", "momentum 0.9999", "kNN h",
                "no: better by 1 point (sec. 4.1)"),
    ),
    figures=(
        Figure(kind="lines", title="kNN of h against the momentum", measures=("kNN h", "linear h"),
               x="1 - momentum", y="accuracy of h", log_x=True),
    ),
    images=IMAGES,
    measured="kNN and linear accuracy of h",
)  # fmt: skip


def _keys(method: str, line: str, count: int, *, seeds: int, **settings: Any) -> Arm:
    return Arm(
        name=f"{line}, {count}", label=f"{line}, {count:,} keys", x=float(count), line=line, seeds=seeds,
        settings={"method": method, "looks": 4, **settings},
    )  # fmt: skip


DICTIONARY_SIZE = Study(
    name="dictionary-size",
    title="Number of keys, per mechanism (queue, memory bank, in-batch)",
    asks="Are more keys better, and does the mechanism that stores them matter?",
    source="MoCo, arXiv:1911.05722, fig. 3",
    published=Published(
        what="linear accuracy on ImageNet, ResNet-50, %",
        rows=(("MoCo, 256 to 65,536 keys", "54.7 56.4 57.5 59.0 60.4 60.6"),
              ("memory bank", "50.0 52.0 54.1 56.5 57.8 58.0"),
              ("end-to-end, 256 to 1,024", "54.9 56.4 57.3")),
    ),
    caveat="With ten classes one key in ten is of the query's class, whatever the number of keys, so the "
    "curves are flatter than with a thousand classes. The end-to-end arms have batches as large as "
    "their dictionaries, so the same number of images takes fewer steps.",
    arms=(
        *(_keys("moco", "MoCo", count, seeds=3, capacity=count) for count in (64, 256, 1024, 4096)),
        *(_keys("memory-bank", "memory bank", count, seeds=seeds, contrast="info_nce", negatives=count)
          for count, seeds in ((256, 1), (4096, 3))),
        *(_keys("end-to-end", "end-to-end", count, seeds=seeds, batch_size=count)
          for count, seeds in ((256, 3), (1024, 1))),
    ),
    questions=(
        exceeds("Are 4,096 keys better than 64?", "MoCo, 4096", "MoCo, 64", "kNN h",
                "yes, more keys are better (fig. 3)"),
        exceeds("Are 4,096 keys better than 256?", "MoCo, 4096", "MoCo, 256", "kNN h",
                "yes, by 4 points (fig. 3)"),
        exceeds("Is MoCo better than a memory bank, at 4,096 keys?", "MoCo, 4096", "memory bank, 4096",
                "kNN h", "yes, by 2.5 points (fig. 3)"),
        exceeds("Is MoCo better than end-to-end, at 256 keys?", "MoCo, 256", "end-to-end, 256", "kNN h",
                "no: as good (fig. 3)"),
    ),
    figures=(
        Figure(kind="lines", title="kNN of h against the number of keys", measures=("kNN h",),
               x="keys per query", y="kNN of h", log_x=True),
    ),
    images=IMAGES,
    measured="kNN of h",
)  # fmt: skip


def _norm(name: str, **settings: Any) -> Arm:
    return Arm(name=name, label=name, settings={**_MOCO, **settings})


BATCH_NORM = Study(
    name="batch-norm",
    title="Which batch-norm variant the key encoder uses",
    asks="Do batch-norm statistics reveal which key is the positive, and what prevents it?",
    source="MoCo, arXiv:1911.05722, app. A.9",
    published=Published(
        what="MoCo without shuffling",
        rows=(("pretext task", "solved almost always, early"), ("kNN", "falls"),
              ("CIFAR-10, 800 epochs, the authors' notebook", "4 points worse")),
    ),
    caveat="Eight groups of 32 images per batch: the statistics reveal the group. In a few steps a small "
    "network gains less from the leak than in many, so a separate probe trains on noise, in groups "
    "of 4, where a query and its key share nothing but the statistics of their batch.",
    arms=(
        _norm("shuffled"),
        _norm("not shuffled", shuffle=False),
        _norm("whole batch", batch_norm="device", shuffle=False),
        _norm("layer norm", batch_norm="layer", shuffle=False),
        *(
            Arm(name=f"noise, {name}", label=f"{name}, on noise", kind="leak",
                settings={"method": "moco", "kind": kind, "groups": 32, "shuffle": shuffle})
            for name, kind, shuffle in (
                ("shuffled", "split", True), ("not shuffled", "split", False), ("layer norm", "layer", False),
            )
        ),
    ),
    questions=(
        exceeds("Is shuffling better than not?", "shuffled", "not shuffled", "kNN h",
                "yes, by 4 points in 800 epochs (notebook)"),
        exceeds("Is the pretext task solved more often without shuffling?", "not shuffled", "shuffled",
                "pretext", "yes, almost always (app. A.9)"),
        exceeds("On noise, where only statistics are shared: is the positive key found without shuffling?",
                "noise, not shuffled", "noise, shuffled", LEAK, "yes, as the pretext task shows (app. A.9)"),
        exceeds("Is shuffling better than the statistics of the whole batch?", "shuffled", "whole batch",
                "kNN h"),
    ),
    figures=(
        Figure(kind="bars", title="Pretext task, kNN, and positive keys found in noise",
               measures=("pretext", "kNN h", LEAK), y="share of queries"),
    ),
    images=IMAGES,
    measured="share of queries that find their key in the last step, and kNN of h",
)  # fmt: skip
