"""Train an encoder on with labels: from its pretrained weights, or from none as the baseline."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional as F

from querykey.errors import CollapseError, DataError, RangeError, ShapeError
from querykey.evaluation.few_labels import split_by_class
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.optim import warm_up_cosine
from querykey.types import Ids, Labels, PerQuery

__all__ = [
    "RATES",
    "FineTuned",
    "FineTuning",
    "LabelledImages",
    "TunedRate",
    "fine_tune",
    "scaled",
    "tune_learning_rate",
]

START_DEVIATION = 0.01
SCORED_AT_ONCE = 512


def scaled(images: Tensor) -> Tensor:
    """Bytes as numbers from 0 to 1; floats as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledImages:
    """Images by number, their classes, and how they are shown to the network.

    Args:
        images_of: Numbers [batch] to images [batch, channels, height, width].
        labels: Class of image 0, 1, ...; images labelled -1 have no part.
        view: (images, numbers, epoch) to augmented float images for training; None shows them plain.
            Its randomness is keyed by the number and the epoch.
        plain: Images to float images for scoring; must end in the range that `view` ends in.
    """

    images_of: Callable[[Ids], Tensor]
    labels: Labels
    view: Callable[[Tensor, Ids, int], Tensor] | None = None
    plain: Callable[[Tensor], Tensor] = scaled

    def shown(self, ids: Ids, epoch: int) -> Tensor:
        """As training sees them."""
        images = self.images_of(ids)
        return self.plain(images) if self.view is None else self.view(images, ids, epoch)


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How to train: stochastic gradient descent with Nesterov momentum and a cosine to 0.

    Args:
        epochs: Passes over the labelled images, at least 1.
        learning_rate: At 256 images a step, above 0; at B it is multiplied by B / 256.
        batch_size: Images a step, at least 2. An epoch is cut into steps of nearly equal size, so that
            batch norm never sees a small rest.
        weight_decay: On matrices and filters; none on biases and batch norm.
        momentum: From 0 to below 1.
        warm_up: Epochs in which the learning rate rises.
        seed: Of the new layer, the order and dropout.
    """

    epochs: int = 60
    learning_rate: float = 0.05
    batch_size: int = 256
    weight_decay: float = 0.0
    momentum: float = 0.9
    warm_up: int = 0
    seed: int

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise RangeError(
                "epochs must be at least 1 and batch_size at least 2, "
                f"got {self.epochs} and {self.batch_size}"
            )
        if not self.learning_rate > 0 or self.weight_decay < 0:
            raise RangeError(
                "learning_rate must be above 0 and weight_decay at least 0, "
                f"got {self.learning_rate} and {self.weight_decay}"
            )
        if not 0 <= self.momentum < 1 or not 0 <= self.warm_up < self.epochs:
            raise RangeError(
                f"momentum must be from 0 to below 1 and warm_up below the {self.epochs} epochs, "
                f"got {self.momentum} and {self.warm_up}"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class FineTuned:
    """A trained classifier of images, in eval mode.

    Args:
        network: Encoder, layers of the head and the new linear layer in one.
        classes: The label of each output.
        losses: Mean cross-entropy of each epoch, nats.
        settings: What it was trained with, and the learning rate of the steps, for the record.
    """

    network: nn.Module
    classes: Int64[Tensor, " classes"]
    losses: tuple[float, ...]
    settings: dict[str, Any]

    @torch.no_grad()
    def predict(self, images: LabelledImages, ids: Ids) -> Labels:
        """The class of each image [ids], seen plain."""
        device = next(self.network.parameters()).device
        parts = [
            self.network(images.plain(images.images_of(some)).to(device)).argmax(dim=1).cpu()
            for some in torch.split(ids, SCORED_AT_ONCE)
        ]
        return self.classes[torch.cat(parts)]

    def correct(self, images: LabelledImages) -> PerQuery:
        """0 or 1 per image, NaN where its class isn't known: for intervals and paired differences."""
        known = (images.labels != IGNORE_LABEL).nonzero()[:, 0]
        right = torch.full((len(images.labels),), torch.nan)
        if len(known):
            right[known] = (self.predict(images, known) == images.labels[known]).float()
        return right


def fine_tune(
    backbone: nn.Module,
    images: LabelledImages,
    settings: FineTuning,
    *,
    head_layers: nn.Module | None = None,
) -> FineTuned:
    """Train a copy of an encoder and a new linear layer on labelled images.

    With pretrained weights this is fine-tuning; with an untrained network it is the
    supervised baseline, on the same labels with the same augmentation. Batch norm is in train mode.

    Args:
        backbone: Images to rows [batch, width]; it is copied, and stays as it is.
        images: What to learn from.
        settings: How.
        head_layers: The first layer or layers of the projection head, copied and trained between the
            encoder and the new layer: SimCLR v2 fine-tunes from the first.

    Returns:
        The classifier.

    Raises:
        DataError: If there are not two classes.
        ShapeError: If the encoder gives no rows.
        CollapseError: If the loss is no number any more.

    Source:
        Chen et al. 2020, arXiv:2002.05709, app. B.5: Nesterov momentum 0.9, learning rate 0.05 B / 256,
        no weight decay, 60 epochs for 1% of the labels and 30 for 10%; the cosine is ours.
        Chen et al. 2020, arXiv:2006.10029, sec. 2: from the first layer of the head.
    """
    known = (images.labels != IGNORE_LABEL).nonzero()[:, 0]
    classes, members = torch.unique(images.labels[known], return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"a classifier needs two classes, got {len(classes)}; give more labelled images")
    device = next(backbone.parameters()).device
    # dropout and the like draw from torch's own state, which is lent to them and put back
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        parts = [copy.deepcopy(part) for part in (backbone, head_layers) if part is not None]
        network = _with_classifier(parts, images, known[:2], len(classes), settings.seed)
        batch = math.ceil(len(known) / math.ceil(len(known) / settings.batch_size))
        rate = settings.learning_rate * batch / 256
        losses = _descend(network.to(device), images, known, members, settings, rate)
    resolved = asdict(settings) | {"rate_of_steps": rate, "largest_batch": batch, "images": len(known)}
    return FineTuned(network=network.eval(), classes=classes, losses=losses, settings=resolved)


def _with_classifier(
    parts: list[nn.Module], images: LabelledImages, some: Tensor, classes: int, seed: int
) -> nn.Module:
    """The parts and a linear layer that fits, started at small weights and no bias."""
    trunk = nn.Sequential(*parts).eval()
    with torch.no_grad():
        rows = trunk(images.shown(some, 0).to(next(trunk.parameters()).device))
    if rows.ndim != 2:
        raise ShapeError(
            f"the encoder gives {tuple(rows.shape)} for {len(some)} images; rows [images, width] are needed"
        )
    layer = nn.Linear(rows.shape[1], classes)
    drawn = torch.randn(classes, rows.shape[1], generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        layer.weight.copy_(START_DEVIATION * drawn)
        layer.bias.zero_()
    return nn.Sequential(*parts, layer)


def _descend(
    network: nn.Module, images: LabelledImages, known: Tensor, members: Tensor, how: FineTuning, rate: float
) -> tuple[float, ...]:
    """Train in place; the mean loss of each epoch."""
    device = next(network.parameters()).device
    trained = list(network.requires_grad_().parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": how.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=how.momentum, nesterov=how.momentum > 0)
    steps = math.ceil(len(known) / how.batch_size)
    losses = []
    network.train()
    for epoch in range(how.epochs):
        order = torch.from_numpy(np.random.default_rng([how.seed, epoch]).permutation(len(known)))
        total = 0.0
        for step, batch in enumerate(order.tensor_split(steps), epoch * steps):
            logits = network(images.shown(known[batch], epoch).to(device))
            loss = F.cross_entropy(logits, members[batch].to(device))
            if not torch.isfinite(loss):
                raise CollapseError(
                    f"the loss is {loss.item()} at step {step}; lower the learning rate of {rate:g}"
                )
            share = warm_up_cosine(step, steps=how.epochs * steps, warm_up=how.warm_up * steps)
            for group in optimizer.param_groups:
                group["lr"] = share * rate
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        losses.append(total / len(known))
    return tuple(losses)


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
    fitting, held = split_by_class(images.labels, fraction=share, seed=settings.seed)
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
    some = torch.full_like(labels, IGNORE_LABEL)
    some[kept] = labels[kept]
    return some
