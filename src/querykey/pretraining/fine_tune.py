"""Fine-tune an encoder on labels; from untrained weights this is the supervised baseline."""

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
    "LEARNING_RATES",
    "FineTuned",
    "FineTuning",
    "LabelledImages",
    "TunedRate",
    "fine_tune",
    "to_unit_interval",
    "tune_learning_rate",
]

INIT_STD = 0.01
EVAL_BATCH_SIZE = 512


def to_unit_interval(images: Tensor) -> Tensor:
    """Convert uint8 images to float in [0, 1]; float images are returned unchanged."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledImages:
    """Images by index, their classes, and the transforms for training and for evaluation.

    Args:
        images_of: Indices [batch] to images [batch, channels, height, width].
        labels: Class of image 0, 1, ...; images labelled -1 are not used.
        view: (images, indices, epoch) to augmented float images for training; None: as in evaluation.
            Its randomness is keyed by the index and the epoch.
        plain: Images to float images for evaluation, in the range of those of `view`.
    """

    images_of: Callable[[Ids], Tensor]
    labels: Labels
    view: Callable[[Tensor, Ids, int], Tensor] | None = None
    plain: Callable[[Tensor], Tensor] = to_unit_interval

    def train_batch(self, ids: Ids, epoch: int) -> Tensor:
        """Images of a training batch, augmented by `view`."""
        images = self.images_of(ids)
        return self.plain(images) if self.view is None else self.view(images, ids, epoch)


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Settings: SGD with Nesterov momentum and a cosine schedule to 0.

    Args:
        epochs: Passes over the labelled images, at least 1.
        learning_rate: Peak at batch size 256, above 0; at batch size B it is multiplied by B / 256.
        batch_size: Images per step, at least 2. The batches of an epoch have nearly equal sizes, so that
            batch norm never gets a small last batch.
        weight_decay: Of matrices and filters; biases and batch norm have none.
        momentum: From 0 to below 1.
        warm_up: Epochs in which the learning rate rises.
        seed: Random seed of the new layer, the order of images and dropout.
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
        network: Encoder, layers of the head, and the new linear layer.
        classes: The label of each output.
        losses: Mean cross-entropy of each epoch, nats.
        settings: The settings, and the learning rate of the steps.
    """

    network: nn.Module
    classes: Int64[Tensor, " classes"]
    losses: tuple[float, ...]
    settings: dict[str, Any]

    @torch.no_grad()
    def predict(self, images: LabelledImages, ids: Ids) -> Labels:
        """The predicted class of each image [ids], without augmentation."""
        device = next(self.network.parameters()).device
        parts = [
            self.network(images.plain(images.images_of(batch)).to(device)).argmax(dim=1).cpu()
            for batch in torch.split(ids, EVAL_BATCH_SIZE)
        ]
        return self.classes[torch.cat(parts)]

    def correct(self, images: LabelledImages) -> PerQuery:
        """0 or 1 per image, NaN without a label: for intervals and paired differences."""
        labelled = (images.labels != IGNORE_LABEL).nonzero()[:, 0]
        correct = torch.full((len(images.labels),), torch.nan)
        if len(labelled):
            correct[labelled] = (self.predict(images, labelled) == images.labels[labelled]).float()
        return correct


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
        backbone: Images to rows [batch, width]; it is copied and not modified.
        images: Labelled images.
        settings: Settings.
        head_layers: The first layer or layers of the projection head, copied and trained between the
            encoder and the new layer: SimCLR v2 fine-tunes from the first.

    Returns:
        The classifier.

    Raises:
        DataError: If there are not two classes.
        ShapeError: If the encoder does not return rows.
        CollapseError: If the loss is not finite.

    Source:
        Chen et al. 2020, arXiv:2002.05709, app. B.5: Nesterov momentum 0.9, learning rate 0.05 B / 256,
        no weight decay, 60 epochs for 1% of the labels and 30 for 10%; the cosine is ours.
        Chen et al. 2020, arXiv:2006.10029, sec. 2: from the first layer of the head.
    """
    labelled = (images.labels != IGNORE_LABEL).nonzero()[:, 0]
    classes, targets = torch.unique(images.labels[labelled], return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"a classifier needs two classes, got {len(classes)}; give more labelled images")
    device = next(backbone.parameters()).device
    # dropout draws from torch's global generators, which are restored afterwards
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        parts = [copy.deepcopy(part) for part in (backbone, head_layers) if part is not None]
        network = _with_classifier(parts, images, labelled[:2], len(classes), settings.seed)
        batch = math.ceil(len(labelled) / math.ceil(len(labelled) / settings.batch_size))
        rate = settings.learning_rate * batch / 256
        losses = _train(network.to(device), images, labelled, targets, settings, rate)
    resolved = asdict(settings) | {"rate_of_steps": rate, "largest_batch": batch, "images": len(labelled)}
    return FineTuned(network=network.eval(), classes=classes, losses=losses, settings=resolved)


def _with_classifier(
    parts: list[nn.Module], images: LabelledImages, example: Tensor, classes: int, seed: int
) -> nn.Module:
    """The parts and a linear layer of matching width, with small random weights and bias 0."""
    trunk = nn.Sequential(*parts).eval()
    with torch.no_grad():
        rows = trunk(images.train_batch(example, 0).to(next(trunk.parameters()).device))
    if rows.ndim != 2:
        raise ShapeError(
            f"the encoder gives {tuple(rows.shape)} for {len(example)} images; rows [images, width] are "
            "needed"
        )
    layer = nn.Linear(rows.shape[1], classes)
    drawn = torch.randn(classes, rows.shape[1], generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        layer.weight.copy_(INIT_STD * drawn)
        layer.bias.zero_()
    return nn.Sequential(*parts, layer)


def _train(
    network: nn.Module,
    images: LabelledImages,
    labelled: Tensor,
    targets: Tensor,
    settings: FineTuning,
    rate: float,
) -> tuple[float, ...]:
    """Train in place; return the mean loss of each epoch."""
    device = next(network.parameters()).device
    parameters = list(network.requires_grad_().parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, nesterov=settings.momentum > 0)
    steps = math.ceil(len(labelled) / settings.batch_size)
    losses = []
    network.train()
    for epoch in range(settings.epochs):
        order = torch.from_numpy(np.random.default_rng([settings.seed, epoch]).permutation(len(labelled)))
        total = 0.0
        for step, batch in enumerate(order.tensor_split(steps), epoch * steps):
            logits = network(images.train_batch(labelled[batch], epoch).to(device))
            loss = F.cross_entropy(logits, targets[batch].to(device))
            if not torch.isfinite(loss):
                raise CollapseError(
                    f"the loss is {loss.item()} at step {step}; lower the learning rate of {rate:g}"
                )
            factor = warm_up_cosine(step, steps=settings.epochs * steps, warm_up=settings.warm_up * steps)
            for group in optimizer.param_groups:
                group["lr"] = factor * rate
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        losses.append(total / len(labelled))
    return tuple(losses)


LEARNING_RATES = (0.0125, 0.05, 0.2, 0.8)
"""At batch size 256; 0.05 is the paper's for fine-tuning, and untrained networks need a larger one."""


@dataclass(frozen=True, kw_only=True)
class TunedRate:
    """A learning rate that was chosen on held-out images.

    Args:
        learning_rate: The best; the lowest of equals.
        accuracies: Accuracy on the held-out images at each rate; NaN if the loss was not finite.
        held_out: Number of held-out images.
    """

    learning_rate: float
    accuracies: dict[float, float]
    held_out: int


def tune_learning_rate(
    backbone: nn.Module,
    images: LabelledImages,
    settings: FineTuning,
    *,
    rates: Sequence[float] = LEARNING_RATES,
    fraction: float = 0.2,
    head_layers: nn.Module | None = None,
) -> TunedRate:
    """Choose a learning rate on held-out labelled images, a fraction of each class.

    Args:
        backbone: As for `fine_tune`; copied for each rate.
        images: Labelled images.
        settings: Settings; the learning rate is not used.
        rates: Learning rates at batch size 256, at least two.
        fraction: Fraction of each class to hold out, above 0 and below 1.
        head_layers: As for `fine_tune`.

    Returns:
        The best rate, with the accuracy of each.

    Raises:
        RangeError: If there are fewer than two different rates.
        DataError: If no class has an image to hold out, or there are not two classes.
        CollapseError: If the loss is not finite at any rate.
    """
    candidates = sorted(set(rates))
    if len(candidates) < 2:
        raise RangeError(f"give at least two learning rates to choose from, got {list(rates)}")
    training, held_out = split_by_class(images.labels, fraction=fraction, seed=settings.seed)
    if not len(held_out):
        raise DataError("no class has two labelled images, so none can be held out; give more labels")
    train_set = replace(images, labels=_masked(images.labels, training))
    validation_set = replace(images, labels=_masked(images.labels, held_out))
    accuracies = {}
    for rate in candidates:
        try:
            chosen = replace(settings, learning_rate=rate)
            tuned = fine_tune(backbone, train_set, chosen, head_layers=head_layers)
            accuracies[rate] = float(tuned.correct(validation_set).double().nanmean())
        except CollapseError:
            accuracies[rate] = math.nan
    finite = [rate for rate in candidates if not math.isnan(accuracies[rate])]
    if not finite:
        raise CollapseError(
            f"with each learning rate of {candidates} the loss became infinite or NaN; try lower ones"
        )
    best = max(finite, key=lambda rate: (accuracies[rate], -rate))
    return TunedRate(learning_rate=best, accuracies=accuracies, held_out=len(held_out))


def _masked(labels: Tensor, kept: Tensor) -> Tensor:
    """Labels of the kept images; the others get -1."""
    masked = torch.full_like(labels, IGNORE_LABEL)
    masked[kept] = labels[kept]
    return masked
