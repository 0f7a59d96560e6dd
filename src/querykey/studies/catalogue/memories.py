"""A cross-batch memory for an encoder that is trained: capacity, and drift of its rows."""

from typing import Any

from querykey.studies.engine.study import Arm, Figure, Published, Question, Study, exceeds

__all__ = ["DRIFT", "MEMORY_RATIO"]

IMAGES = 64_000
_XBM: dict[str, Any] = {
    "method": "xbm", "batch_size": 16, "image_size": 32, "view_size": 32, "learning_rate": 0.04,
}  # fmt: skip
"""The rate is the best of 0.004, 0.0125 and 0.04 on drawings held out of Omniglot's training classes."""


def _ratio(share: float) -> Arm:
    name = "no memory" if share == 0 else f"{share:.0%} of the images"
    return Arm(
        name=name,
        label=name,
        x=100 * share,
        line="batch of 16",
        kind="retrieval",
        memory_ratio=share,
        seeds=3 if share in (0.0, 0.05, 1.0) else 1,
        settings=dict(_XBM),
    )


MEMORY_RATIO = Study(
    name="memory-ratio",
    title="Capacity of a cross-batch memory",
    asks="Does a cross-batch memory help with small batches, and how large must it be?",
    source="XBM, arXiv:1912.06798, fig. 1 and table 1",
    published=Published(
        what="R@1, GoogleNet, contrastive loss without and with a memory, %",
        rows=(
            ("Stanford Online Products", "64.0, 77.8"),
            ("In-shop", "77.1, 89.1"),
            ("VehicleID, large", "70.0, 92.5"),
        ),
    ),
    caveat="It needs labels, many classes, and test classes that are not trained on; ten classes are too "
    "few. The network is small and randomly initialised; the paper's was pretrained on ImageNet.",
    arms=tuple(_ratio(share) for share in (0.0, 0.01, 0.05, 0.25, 1.0)),
    questions=(
        exceeds(
            "Is a memory of 5% of the images better than none?",
            "5% of the images",
            "no memory",
            "R@1 z",
            "yes, by 12 to 22 points (table 1)",
        ),
        exceeds(
            "Is a memory of all images better than one of 5%?",
            "100% of the images",
            "5% of the images",
            "R@1 z",
            "no: it levels off (fig. 1)",
        ),
    ),
    figures=(
        Figure(
            kind="lines",
            title="R@1 against the memory",
            measures=("R@1 z", "R@1 h"),
            x="memory, % of the training images",
            y="R@1 among images of the test",
        ),
    ),
    measured="R@1 of z and of h",
    images=40_000,
)


def _rate(rate: float, label: str) -> Arm:
    return Arm(
        name=label, label=label, kind="retrieval", memory_ratio=0.25,
        settings={**_XBM, "learning_rate": rate, "looks": 20},
    )  # fmt: skip


DRIFT = Study(
    name="drift",
    title="Drift of stored rows",
    asks="Do the rows of a memory drift slowly enough to be used?",
    source="XBM, arXiv:1912.06798, sec. 3.1 and fig. 3",
    published=Published(
        what="mean squared distance between embeddings of an item some steps apart",
        rows=(("10, 100 and 1,000 steps", "falls in the first thousand steps, and with the rate"),),
    ),
    caveat="Distance of the oldest stored rows, which have unit length: that of unrelated rows is 2. The "
    "learning rate follows a cosine schedule, so late steps are also smaller.",
    arms=(_rate(0.04, "usual rate"), _rate(0.2, "five times the rate")),
    questions=(
        Question(ask="Have old rows drifted farther in the first quarter of the run than in the last?",
              ours=("usual rate", "drift, first quarter"), theirs=("usual rate", "drift, last quarter"),
              published="yes (fig. 3)"),
        exceeds("Do rows drift farther at five times the rate?", "five times the rate", "usual rate",
                "drift, first quarter"),
        exceeds("Is the usual rate better?", "usual rate", "five times the rate", "R@1 z"),
    ),
    figures=(
        Figure(kind="curves", title="Drift of the oldest rows", measures=("drift_",), x="training step",
               y="mean squared distance from the current embedding"),
        Figure(kind="bars", title="Drift of the oldest rows, early and late", y="mean squared distance",
               measures=("drift, first quarter", "drift, last quarter")),
        Figure(kind="bars", title="Retrieval", measures=("R@1 z",), y="R@1 of z"),
    ),
    measured="mean squared distance of the oldest rows from their current embeddings, and R@1 of z",
    images=IMAGES,
)  # fmt: skip
