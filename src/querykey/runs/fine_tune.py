"""Fine-tunes an encoder on labelled images; from untrained weights, the supervised baseline."""

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
"""Between the two median candidates."""

Layer = Literal["h", "first layer"]
"""Input of the new layer: the backbone, or the first layer of the projection head."""


class Labelled(NamedTuple):
    """Images and their classes, numbered alike within one evaluation."""

    pixels: Pixels
    labels: Labels


def fine_tuned(
    saved: SavedEncoder,
    train_set: Labelled,
    test_set: Labelled,
    *,
    start: Layer = "h",
    epochs: int | None = None,
    device: torch.device | None = None,
    seed: int,
) -> tuple[PerQuery, dict[str, Any]]:
    """Train an encoder on labelled images with the views of pretraining and a tuned learning rate.

    From the untrained weights this is the supervised baseline: the same network trained only on these labels.

    Args:
        saved: A pretrained or untrained encoder; it is not modified.
        train_set: Training images; those without a label are ignored.
        test_set: Test images.
        start: Train the backbone only, or also the first layer of the head.
        epochs: None: 60, or as many as 400 steps of 256 images need.
        device: Device of the training; None: the CPU.
        seed: Random seed of the new layer, the order and the views.

    Returns:
        (0 or 1 per test image, settings of the training). With one label per class there is no validation
        data to tune the learning rate, and a median candidate is used.
    """
    count = int((train_set.labels != IGNORE_LABEL).sum())
    epochs = epochs or max(60, round(TUNING_STEPS * 256 / max(256, count)))
    plan = FineTuning(epochs=epochs, batch_size=min(256, count), seed=seed)
    images, test = _labelled_images(saved, train_set, seed), _labelled_images(saved, test_set, seed)
    encoder = copy.deepcopy(saved.encoder).to(device or torch.device("cpu")).requires_grad_()
    head = encoder.head.layers[0] if start == "first layer" else None
    tried: dict[float, float] = {}
    if int(torch.bincount(train_set.labels[train_set.labels != IGNORE_LABEL]).max()) > 1:
        tuned = tune_learning_rate(encoder.backbone, images, plan, head_layers=head)
        rate, tried = tuned.learning_rate, tuned.accuracies
    else:
        rate = MIDDLE_RATE  # one image per class leaves none for validation
    tuned_encoder = fine_tune(encoder.backbone, images, replace(plan, learning_rate=rate), head_layers=head)
    accuracies = {f"{rate:g}": accuracy for rate, accuracy in tried.items()}
    return tuned_encoder.correct(test), tuned_encoder.settings | {"tuned": accuracies}


def _labelled_images(saved: SavedEncoder, train_set: Labelled, seed: int) -> LabelledImages:
    """Images by position: views of pretraining at full size for training, plain views otherwise."""
    assert saved.settings.image_size is not None
    views = replace(saved.views, size=saved.settings.image_size)
    pixels = train_set.pixels

    def images_of(places: Tensor) -> Tensor:
        images, sizes, _ = next(pixels.stream([pixels.ids[places]]))
        if sizes is None:
            return images
        # several sizes: the centre crop at one size, without the normalisation
        prepared = saved.prepare(images, sizes)
        mean, std = (torch.tensor(x)[:, None, None] for x in (views.mean, views.deviation))
        return (prepared * std + mean).clamp(0, 1)

    def view(images: Tensor, places: Tensor, epoch: int) -> Tensor:
        return views(images, places, seed=seed, epoch=epoch, view=0)

    return LabelledImages(images_of=images_of, labels=train_set.labels, view=view, plain=saved.prepare)
