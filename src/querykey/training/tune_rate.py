"""A learning rate for `fine_tune`, chosen on labelled images that are held out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from querykey.errors import CollapseError, DataError, RangeError
from querykey.evaluation.few_labels import split_by_class
from querykey.lookup import UNLABELLED
from querykey.training.fine_tune import FineTuning, LabelledImages, fine_tune

__all__ = ["RATES", "TunedRate", "tune_learning_rate"]

RATES = (0.0125, 0.05, 0.2, 0.8)
"""At 256 images a step; 0.05 is the paper's for fine-tuning, and networks without weights want more."""


@dataclass(frozen=True, kw_only=True)
class TunedRate:
    """A learning rate that was chosen on held-out images.

    Args:
        learning_rate: The best; the lower of equals.
        accuracies: Each rate tried, to the share of held-out images that were right; NaN where the loss
            was no number any more.
        held_out: How many images that was.
    """

    learning_rate: float
    accuracies: dict[float, float]
    held_out: int


def tune_learning_rate(
    backbone: nn.Module,
    images: LabelledImages,
    settings: FineTuning,
    *,
    rates: Sequence[float] = RATES,
    share: float = 0.2,
    head_layers: nn.Module | None = None,
) -> TunedRate:
    """Choose a learning rate on a part of the labelled images that is held out, class by class.

    Args:
        backbone: As for `fine_tune`, for each rate a new copy.
        images: Labelled images; none but these are used.
        settings: How to train; its learning rate is not used.
        rates: At least two, at 256 images a step.
        share: Of each class that is held out, above 0 and below 1.
        head_layers: As for `fine_tune`.

    Returns:
        The best rate, and all scores for the record.

    Raises:
        RangeError: If there are fewer than two different rates.
        DataError: If no class has an image to hold out, or there are not two classes.
        CollapseError: If no rate gave a number.
    """
    tried = sorted(set(rates))
    if len(tried) < 2:
        raise RangeError(f"give at least two learning rates to choose from, got {list(rates)}")
    fitting, held = split_by_class(images.labels, share=share, seed=settings.seed)
    if not len(held):
        raise DataError("no class has two labelled images, so none can be held out; give more labels")
    seen = replace(images, labels=_only(images.labels, fitting))
    unseen = replace(images, labels=_only(images.labels, held))
    accuracies = {}
    for rate in tried:
        try:
            tuned = fine_tune(backbone, seen, replace(settings, learning_rate=rate), head_layers=head_layers)
            accuracies[rate] = float(tuned.correct(unseen).double().nanmean())
        except CollapseError:
            accuracies[rate] = math.nan
    alive = [rate for rate in tried if not math.isnan(accuracies[rate])]
    if not alive:
        raise CollapseError(f"with each learning rate of {tried} the loss became no number; try lower ones")
    best = max(alive, key=lambda rate: (accuracies[rate], -rate))
    return TunedRate(learning_rate=best, accuracies=accuracies, held_out=len(held))


def _only(labels: Tensor, kept: Tensor) -> Tensor:
    """Labels of the kept images alone."""
    some = torch.full_like(labels, UNLABELLED)
    some[kept] = labels[kept]
    return some
