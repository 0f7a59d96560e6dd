"""An encoder trained on labelled images: fine-tuned, or as the baseline that was never pretrained."""

import copy
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from querykey.data.pixels.pixels import Pixels
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.pretraining.fine_tune import FineTuning, LabelledImages, fine_tune, tune_learning_rate
from querykey.pretraining.saved_encoder import SavedEncoder
from querykey.types import Labels, PerQuery

__all__ = ["Labelled", "Layer", "fine_tuned"]

TUNING_STEPS = 400
MIDDLE_RATE = 0.1
"""Between the two in the middle of those that are tried."""

Layer = Literal["h", "first layer"]
"""What the new layer stands on: the backbone, or the first layer of the projection head."""


class Labelled(NamedTuple):
    """Images and their classes, numbered as everywhere in one evaluation."""

    pixels: Pixels
    labels: Labels


def fine_tuned(
    saved: SavedEncoder, known: Labelled, asked: Labelled, *, start: Layer = "h", epochs: int | None = None,
    device: torch.device | None = None, seed: int,
) -> tuple[PerQuery, dict[str, Any]]:  # fmt: skip
    """Train an encoder on labelled images with the views of pretraining and a tuned learning rate.

    From the weights before step 0 it is the baseline of few labels: the same network trained on them alone.

    Args:
        saved: Pretrained, or untrained; it is left as it is.
        known: Training images; those without a label have no part.
        asked: Test images.
        start: From the backbone, or from the first layer of the head too.
        epochs: None: 60, or as many as make 400 steps of 256.
        device: Where; None: the CPU.
        seed: Of the new layer, the order and the views.

    Returns:
        (0 or 1 a test image, how it was trained). With one label a class nothing can be held out to tune the
        learning rate on, and it is one in the middle of those that are tried otherwise.
    """
    count = int((known.labels != IGNORE_LABEL).sum())
    plan = FineTuning(
        epochs=epochs or max(60, round(TUNING_STEPS * 256 / max(256, count))), batch_size=min(256, count),
        seed=seed,
    )  # fmt: skip
    images, test = _shown(saved, known, seed), _shown(saved, asked, seed)
    encoder = copy.deepcopy(saved.encoder).to(device or torch.device("cpu")).requires_grad_()
    head = encoder.head.layers[0] if start == "first layer" else None
    tried: dict[float, float] = {}
    if int(torch.bincount(known.labels[known.labels != IGNORE_LABEL]).max()) > 1:
        tuned = tune_learning_rate(encoder.backbone, images, plan, head_layers=head)
        rate, tried = tuned.learning_rate, tuned.accuracies
    else:
        rate = MIDDLE_RATE  # of one image a class none can be held out
    made = fine_tune(encoder.backbone, images, replace(plan, learning_rate=rate), head_layers=head)
    how = made.settings | {"tuned": {f"{rate:g}": share for rate, share in tried.items()}}
    return made.correct(test), how


def _shown(saved: SavedEncoder, known: Labelled, seed: int) -> LabelledImages:
    """Images by place: for training as the views of pretraining at full size, else as in evaluation."""
    assert saved.settings.image_size is not None
    views = replace(saved.views, size=saved.settings.image_size)
    pixels = known.pixels

    def images_of(places: Tensor) -> Tensor:
        images, sizes, _ = next(pixels.stream([pixels.ids[places]]))
        if sizes is None:
            return images
        # of several sizes: the middle square at one size, back on the scale of pixels
        shown = saved.prepare(images, sizes)
        mean, deviation = (torch.tensor(x)[:, None, None] for x in (views.mean, views.deviation))
        return (shown * deviation + mean).clamp(0, 1)

    def view(images: Tensor, places: Tensor, epoch: int) -> Tensor:
        return views(images, places, seed=seed, epoch=epoch, view=0)

    return LabelledImages(images_of=images_of, labels=known.labels, view=view, plain=saved.prepare)
