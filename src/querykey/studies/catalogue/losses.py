"""Losses and their temperature."""

from typing import Any

from querykey.studies.engine.study import Arm, Figure, Published, Study, exceeds

__all__ = ["LOSSES", "TEMPERATURE"]

IMAGES = 102_400
_CLAIMED = (0.05, 0.2, 1.0)
"""Temperatures of normalised projections in the questions."""


def _temperature(value: float, *, normalised: bool) -> Arm:
    line = "normalised" if normalised else "not normalised"
    name, seeds = f"{line}, {value:g}", 3 if value in (_CLAIMED if normalised else (10.0,)) else 1
    settings = {"temperature": value} | ({} if normalised else {"normalised": False})
    return Arm(name=name, label=name, x=value, line=line, seeds=seeds, settings=settings)


TEMPERATURE = Study(
    name="temperature",
    title="The temperature, with and without normalised projections",
    asks="Which temperature is best, and must projections be L2-normalised?",
    source="SimCLR, arXiv:2002.05709, table 5",
    published=Published(
        what="pretext accuracy and linear accuracy on ImageNet, ResNet-50, %",
        rows=(("normalised, 0.05", "90.5, 59.7"), ("normalised, 0.1", "87.8, 64.4"),
              ("normalised, 0.5", "68.2, 60.7"), ("normalised, 1", "59.1, 58.0"),
              ("not normalised, 10", "91.7, 57.2"), ("not normalised, 100", "92.1, 57.0")),
    ),
    caveat="The longer the run and the larger the batch, the lower the best temperature; with small "
    "batches of small images it is 0.2 to 0.5.",
    arms=(
        *(_temperature(value, normalised=True) for value in (0.05, 0.1, 0.2, 0.5, 1.0)),
        *(_temperature(value, normalised=False) for value in (1.0, 10.0, 100.0)),
    ),
    questions=(
        exceeds("Is 0.2 better than 0.05?", "normalised, 0.2", "normalised, 0.05", "linear h",
                "yes: 0.1 better by 5 points (table 5)"),
        exceeds("Is 0.2 better than 1?", "normalised, 0.2", "normalised, 1", "linear h",
                "yes: 0.1 better by 6 points (table 5)"),
        exceeds("Are normalised projections better?", "normalised, 0.2", "not normalised, 10", "linear h",
                "yes, by 7 points (table 5)"),
    ),
    figures=(
        Figure(kind="lines", title="Linear accuracy of h against the temperature", measures=("linear h",),
               x="temperature", y="linear accuracy of h", log_x=True),
        Figure(kind="lines", title="The pretext task is no measure of it", measures=("pretext",),
               x="temperature", y="share of queries that find their view", log_x=True),
    ),
    images=IMAGES // 2,
    measured="linear accuracy of h, and share of the pretext task solved in the last step",
)  # fmt: skip


def _loss(name: str, loss: str, *, seeds: int = 3, **settings: Any) -> Arm:
    return Arm(name=name, label=name, seeds=seeds, settings={"loss": loss, **settings})


LOSSES = Study(
    name="losses",
    title="Comparison of losses",
    asks="Does the weighting of negatives matter?",
    source="SimCLR, arXiv:2002.05709, table 4",
    published=Published(
        what="linear accuracy on ImageNet, ResNet-50, %, each loss tuned",
        rows=(("margin", "50.9"), ("NT-logistic", "51.6"), ("margin, semi-hard", "57.5"),
              ("NT-logistic, semi-hard", "57.9"), ("NT-Xent", "63.9")),
    ),
    caveat="One temperature, margin and learning rate per loss: the paper's best, or the default here. The"
    " paper tuned every loss.",
    arms=(
        _loss("NT-Xent", "info_nce"),
        _loss("NT-logistic", "nt_logistic"),
        _loss("NT-logistic, semi-hard", "nt_logistic", seeds=1, loss_options={"mining": "semi_hard"}),
        _loss("margin", "triplet", loss_options={"margin": 0.4}),
        _loss("margin, semi-hard", "triplet", seeds=1, loss_options={"margin": 0.4, "mining": "semi_hard"}),
        _loss("DCL", "decoupled"),
        _loss("HCL", "hard_negative", seeds=1),
        _loss("debiased", "debiased", seeds=1),
    ),
    questions=(
        exceeds("Is NT-Xent better than NT-logistic?", "NT-Xent", "NT-logistic", "linear h",
                "yes, by 12 points (table 4)"),
        exceeds("Is NT-Xent better than a margin?", "NT-Xent", "margin", "linear h",
                "yes, by 13 points (table 4)"),
        exceeds("Is DCL better than NT-Xent at batch 256?", "DCL", "NT-Xent", "linear h",
                "yes, by 2 points (DCL's code, 100 epochs)"),
    ),
    figures=(
        Figure(kind="bars", title="Linear accuracy and kNN of h", measures=("linear h", "kNN h"),
               y="accuracy of h"),
    ),
    images=IMAGES,
    measured="linear accuracy and kNN of h",
)  # fmt: skip
