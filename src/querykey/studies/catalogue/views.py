"""Augmentation of the views: transformations, in pairs, and their strength."""

from itertools import combinations_with_replacement
from typing import Any

from querykey.studies.engine.study import Arm, Figure, Published, Study, exceeds

__all__ = ["AUGMENTATION_MATRIX", "COLOUR_STRENGTH"]

IMAGES = 102_400
_CROP = (0.2, 1.0)
_CHANGES: dict[str, dict[str, Any]] = {
    "crop": {"crop_scale": (0.08, 1.0)},
    "cutout": {"cutout": 1.0},
    "colour": {"jitter": (0.8, 0.8, 0.8, 0.2), "jitter_probability": 0.8, "grayscale": 0.2},
    "Sobel": {"sobel": 1.0},
    "noise": {"noise": 1.0},
    "blur": {"blur": 1.0},
    "rotate": {"rotate": 1.0},
}
"""Transformations of the second view; the first view is the original image."""
_NOTHING = {"crop_scale": None, "flip": 0.0, "jitter_probability": 0.0, "grayscale": 0.0, "blur": 0.0}
_CLAIMED = ({"crop", "colour"}, {"crop"}, {"colour"}, {"crop", "cutout"})
"""Pairs in the questions: they have three seeds, the others one."""


def _pair(first: str, second: str) -> Arm:
    name = first if first == second else f"{first} and {second}"
    return Arm(
        name=name, label=name, row=first, column=second, seeds=3 if {first, second} in _CLAIMED else 1,
        settings={
            "views": "small_images", "view_options": dict(_NOTHING),
            "second_view_options": {**_CHANGES[first], **_CHANGES[second]},
        },
    )  # fmt: skip


AUGMENTATION_MATRIX = Study(
    name="augmentation-matrix",
    title="Transformations of the views, alone and in pairs",
    asks="Is one transformation enough, and which pair is best?",
    source="SimCLR, arXiv:2002.05709, fig. 5",
    published=Published(
        what="linear accuracy on ImageNet, ResNet-50, %; rows first, columns second, last the mean",
        rows=(
            ("crop", "33.1 33.9 56.3 46.0 39.9 35.0 30.2 | 39.2"),
            ("cutout", "32.2 25.6 33.9 40.0 26.5 25.2 22.4 | 29.4"),
            ("colour", "55.8 35.5 18.8 21.0 11.4 16.5 20.8 | 25.7"),
            ("Sobel", "46.2 40.6 20.9 4.0 9.3 6.2 4.2 | 18.8"),
            ("noise", "38.8 25.8 7.5 7.6 9.8 9.8 9.6 | 15.5"),
            ("blur", "35.1 25.2 16.6 5.8 9.7 2.6 6.7 | 14.5"),
            ("rotate", "30.0 22.5 20.7 4.3 9.7 6.5 2.6 | 13.8"),
        ),
    ),
    caveat="One view is the original image, the other is transformed. The paper first crops images to one "
    "size, and takes both views from one crop: two crops would be a transformation themselves, and "
    "colour alone as good as colour with crops. There are no flips. Transformations are applied in "
    "a fixed order, so the matrix is symmetric.",
    arms=tuple(_pair(*pair) for pair in combinations_with_replacement(_CHANGES, 2)),
    questions=(
        exceeds("Is crop with colour better than crop alone?", "crop and colour", "crop", "linear h",
                "yes, by 23 points (fig. 5)"),
        exceeds("Is crop with colour better than colour alone?", "crop and colour", "colour", "linear h",
                "yes, by 37 points (fig. 5)"),
        exceeds("Is crop with colour better than crop with cutout?", "crop and colour", "crop and cutout",
                "linear h", "yes, by 22 points (fig. 5)"),
    ),
    figures=(
        Figure(kind="heat map", title="Linear accuracy of h", measures=("linear h",),
               x="second transformation", y="first transformation"),
    ),
    images=IMAGES,
    measured="linear accuracy of h",
)  # fmt: skip


def _strength(name: str, label: str, x: float | None, *, blur: float = 0.0, strength: float = 1.0) -> Arm:
    colours = {"view_strength": strength} if strength else {}
    gray = {} if strength else {"jitter_probability": 0.0, "grayscale": 0.0}
    return Arm(
        name=name, label=label, x=x, line="SimCLR", seeds=1 if strength in (0.0, 0.25) else 3,
        settings={"views": "simclr", "view_options": {"crop_scale": _CROP, "blur": blur, **gray}, **colours},
    )  # fmt: skip


COLOUR_STRENGTH = Study(
    name="colour-strength",
    title="Strength of the colour jitter",
    asks="Does stronger colour jitter give better embeddings?",
    source="SimCLR, arXiv:2002.05709, table 1",
    published=Published(
        what="linear accuracy on ImageNet, ResNet-50, %",
        rows=(("1/8", "59.6"), ("1/4", "61.0"), ("1/2", "62.6"), ("1", "63.2"), ("1 and blur", "64.5")),
    ),
    caveat="Blur removes little from images of 32 pixels; the authors' recipe for CIFAR-10 has no blur, "
    "and half the strength.",
    arms=(
        _strength("none", "no change of colour", 0.0, strength=0.0),
        *(_strength(f"strength {x:g}", f"{x:g}", x, strength=x) for x in (0.125, 0.25, 0.5, 1.0)),
        _strength("strength 1 and blur", "1 and blur", None, blur=0.5),
    ),
    questions=(
        exceeds("Is strength 1 better than 1/8?", "strength 1", "strength 0.125", "linear h",
                "yes, by 4 points (table 1)"),
        exceeds("Is strength 1 better than 1/2?", "strength 1", "strength 0.5", "linear h",
                "yes, by half a point (table 1)"),
        exceeds("Does blur help?", "strength 1 and blur", "strength 1", "linear h",
                "yes, by 1 point (table 1)"),
    ),
    figures=(
        Figure(kind="lines", title="Accuracy against the strength of the jitter",
               measures=("linear h", "kNN h"), x="strength of the colour jitter", y="accuracy"),
    ),
    images=IMAGES // 2,
    measured="linear accuracy and kNN of h",
)  # fmt: skip
