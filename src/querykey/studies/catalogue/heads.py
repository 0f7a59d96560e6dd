"""The projection head: which kind, which width, and what h contains that g(h) does not."""

from typing import Any

from querykey.studies.engine.study import Arm, Figure, Published, Question, Study, exceeds

__all__ = ["H_AGAINST_Z", "PROJECTION_HEAD"]

IMAGES = 102_400
_DIMS = (32, 128, 512)


def _head(kind: str, dim: int | None) -> Arm:
    name = kind if dim is None else f"{kind}, {dim}"
    settings: dict[str, Any] = {"head": kind} | ({} if dim is None else {"head_dim": dim})
    seeds, x = 3 if dim in (None, 128) else 1, None if dim is None else float(dim)
    return Arm(name=name, label=name, x=x, line=f"{kind} head", settings=settings, seeds=seeds)


PROJECTION_HEAD = Study(
    name="projection-head",
    title="Kind and width of the projection head",
    asks="Does a projection head help, and which kind?",
    source="SimCLR, arXiv:2002.05709, fig. 8 and sec. 4.2",
    published=Published(
        what="linear accuracy of h on ImageNet, ResNet-50",
        rows=(("MLP against linear", "+3 points"), ("MLP against none", "more than +10 points"),
              ("width of z, 32 to 2,048", "little effect"), ("h against g(h)", "more than +10 points")),
    ),
    caveat="The advantage of an MLP over a linear head shows after many epochs; a few epochs show that of "
    "a head over none.",
    arms=(_head("none", None), *(_head(kind, dim) for kind in ("linear", "mlp") for dim in _DIMS)),
    questions=(
        exceeds("Is an MLP head better than none?", "mlp, 128", "none", "linear h",
                "yes, by more than 10 points (fig. 8)"),
        exceeds("Is an MLP head better than a linear one?", "mlp, 128", "linear, 128", "linear h",
                "yes, by 3 points (fig. 8)"),
        exceeds("Is a linear head better than none?", "linear, 128", "none", "linear h", "yes (fig. 8)"),
        Question(ask="Is h better than g(h)?", ours=("mlp, 128", "linear h"), theirs=("mlp, 128", "linear z"),
              published="yes, by more than 10 points (sec. 4.2)"),
    ),
    figures=(
        Figure(kind="lines", title="Linear accuracy of h against the width of z", measures=("linear h",),
               x="width of z", y="linear accuracy of h", log_x=True),
        Figure(kind="bars", title="h and g(h)", measures=("linear h", "linear z"), y="linear accuracy"),
    ),
    images=IMAGES,
    measured="linear accuracy of h and of g(h)",
)  # fmt: skip

_TRANSFORMATIONS = ("colour or gray", "rotation", "noise", "Sobel")
_ANSWERS = (
    "yes, by 2 points (table 3)", "yes, by 42 points (table 3)", "yes, by 40 points (table 3)",
    "yes, by 40 points (table 3)",
)  # fmt: skip
_ALL_FOUR = {"rotate": 0.5, "noise": 0.5, "sobel": 0.3, "grayscale": 0.3}


def _probes(name: str, label: str, options: dict[str, float]) -> Arm:
    return Arm(name=name, label=label, kind="probes", settings={"view_options": options}, seeds=3)


def _is_discarded(transformation: str, published: str) -> Question:
    ask = f"Is {transformation} predicted better from h than from g(h)?"
    ours, theirs = ("all", f"{transformation} h"), ("all", f"{transformation} z")
    return Question(ask=ask, ours=ours, theirs=theirs, published=published)


H_AGAINST_Z = Study(
    name="h-against-z",
    title="Which transformations of an image h and g(h) still contain",
    asks="Does the projection discard the transformations that the views are augmented with?",
    source="SimCLR, arXiv:2002.05709, table 3",
    published=Published(
        what="accuracy of an MLP that predicts the transformation, %: by chance, from h, from g(h)",
        rows=(
            ("colour or gray", "80, 99.3, 97.4"),
            ("rotation", "25, 67.6, 25.6"),
            ("original or noisy", "50, 99.5, 59.6"),
            ("original or Sobel", "50, 96.6, 56.3"),
        ),
    ),
    caveat="A transformation can be discarded if the views are augmented with it: one arm has all four, "
    "the other the default views. Chance is 50%, for rotation 25%.",
    arms=(_probes("all", "all four seen", _ALL_FOUR), _probes("default", "default views", {})),
    questions=tuple(map(_is_discarded, _TRANSFORMATIONS, _ANSWERS)),
    figures=(
        Figure(
            kind="bars",
            title="Predicting the transformation from h and from g(h)",
            measures=tuple(f"{what} {rows}" for what in _TRANSFORMATIONS for rows in ("h", "z")),
            y="accuracy of an MLP",
        ),
    ),
    images=IMAGES,
    measured="accuracy of an MLP that predicts the transformation from h or from g(h)",
)
