"""How an adapter is fitted: settings, and what they become for the data at hand."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from querykey.encoders.heads import FCKind, Start
from querykey.errors import ConfigError, RangeError
from querykey.training.objectives import LossName, objective

__all__ = ["AdapterSettings", "Task", "resolve"]

Task = Literal["unlabelled", "labels", "pairs"]

TEMPERATURE = {"unlabelled": 0.05, "labels": 0.07, "pairs": 0.05}
STEPS = {"unlabelled": 600, "labels": 1500, "pairs": 1500}
EPOCHS = 200
"""Small data gets no more than this many passes."""


_AT_LEAST = {
    "dim": 1,
    "capacity": 1,
    "negatives": 0,
    "positives": 0,
    "neighbours": 1,
    "steps": 0,
    "batch_size": 2,
    "patience": 1,
    "learning_rate": 0,
    "weight_decay": 0,
}


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Everything a fit can be told; None is chosen by `resolve` for the data at hand.

    Args:
        dim: Width of the adapted rows; None: 64, or the width where that is less.
        loss: None: "score_distillation" without labels, "info_nce" with labels or pairs.
        loss_options: The loss's own keyword arguments, such as temperature or margin.
        fc: "linear", "residual" or "two_layer"; None: residual for labels and pairs at full width,
            linear otherwise.
        start: "pca", "pca_centred", "identity" or "orthogonal"; None: whichever PCA the guard scores higher.
        memory: "cross_batch", or "in_batch" for none.
        capacity: Rows the memory holds at the most; at least all rows makes it the whole data set.
        holds: "features" of the frozen model, or "projections", which grow stale.
        prefill: Whether the memory is filled before the first step.
        negatives: Hardest negatives each query selects from the memory (labels, pairs).
        positives: Farthest positives each query selects from the memory (labels).
        neighbours: Most similar rows each query selects ("score_difference").
        both_sides: Whether the gradient goes through the keys too.
        side: "both": queries and documents are transformed. "query": documents stay as they are in the
            index, which needs dim = width.
        steps: Optimiser steps; None: 600 without labels, 1,500 with, at most 200 epochs.
        batch_size: Items a step, clipped to the data.
        learning_rate: AdamW's peak rate; cosine to 0.
        weight_decay: AdamW's.
        held_out: Share of the rows that the guard scores and training does not see.
        patience: Guard scores (25 in a run) without a better one before training stops.
        seed: Everything random is keyed by it.
    """

    dim: int | None = None
    loss: LossName | None = None
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    fc: FCKind | None = None
    start: Start | None = None
    memory: Literal["cross_batch", "in_batch"] = "cross_batch"
    capacity: int = 50_000
    holds: Literal["features", "projections"] = "features"
    prefill: bool = True
    negatives: int = 32
    positives: int = 4
    neighbours: int = 10
    both_sides: bool = True
    side: Literal["both", "query"] = "both"
    steps: int | None = None
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    held_out: float = 0.1
    patience: int = 8
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for a run file."""
        return asdict(self) | {"loss_options": dict(self.loss_options)}


def resolve(settings: AdapterSettings, *, task: Task, items: int, width: int) -> AdapterSettings:
    """Fill in what was left open and clip what the data does not allow, with one warning for all of it.

    Args:
        settings: As given.
        task: What the fit learns from.
        items: Rows to train on.
        width: Of the frozen rows.

    Returns:
        Settings without None, but for `start`, which the guard decides.

    Raises:
        RangeError: If a number is outside its range.
        ConfigError: If settings contradict each other or the task.
    """
    _check(settings, task, width)
    dim = settings.dim or (width if settings.side == "query" else min(64, width))
    loss = settings.loss or ("score_distillation" if task == "unlabelled" else "info_nce")
    options = dict(settings.loss_options)
    if loss in ("info_nce", "score_distillation"):
        options.setdefault("temperature", TEMPERATURE[task])
    if objective(loss, **options).keeps_scores != (task == "unlabelled"):
        need = (
            "keeps the frozen scores and takes no labels" if task != "unlabelled" else "needs labels or pairs"
        )
        raise ConfigError(f"the loss {loss} {need}; choose another, or leave it out")

    wanted = {
        "batch_size": (settings.batch_size, items),
        "negatives": (settings.negatives, items - 1),
        "positives": (settings.positives, items - 1),
        "neighbours": (settings.neighbours, items - 1),
    }
    clipped: dict[str, Any] = {name: most for name, (value, most) in wanted.items() if value > most}
    if clipped:
        what = ", ".join(f"{name} {wanted[name][0]} to {most}" for name, most in clipped.items())
        warnings.warn(f"{items} rows to train on: lowered {what}", UserWarning, stacklevel=4)
    batch = min(settings.batch_size, items)
    return replace(
        settings,
        **clipped,
        dim=dim,
        loss=loss,
        loss_options=options,
        fc=settings.fc or ("residual" if dim == width and task != "unlabelled" else "linear"),
        steps=settings.steps
        if settings.steps is not None
        else min(STEPS[task], EPOCHS * max(1, items // batch)),
    )


def _check(settings: AdapterSettings, task: Task, width: int) -> None:
    for name, least in _AT_LEAST.items():
        value = getattr(settings, name)
        if value is not None and value < least:
            raise RangeError(f"{name} must be at least {least}, got {value}")
    if not 0 <= settings.held_out <= 0.5:
        raise RangeError(f"held_out must be from 0 to 0.5, got {settings.held_out}")
    if settings.dim is not None and settings.dim > width:
        raise RangeError(f"dim must be from 1 to the width of the features, {width}; got {settings.dim}")
    if settings.side == "query" and settings.dim not in (None, width):
        raise ConfigError(
            f'side="query" leaves documents {width} wide, so dim must be {width} or left out; '
            f"got {settings.dim}"
        )
    if settings.side == "query" and task != "pairs":
        raise ConfigError('side="query" needs (query, document) pairs: use fit_pairs, or side="both"')
    if settings.holds == "projections" and task != "labels":
        raise ConfigError('holds="projections" is for fits with labels; use holds="features"')
    if settings.memory == "cross_batch" and settings.capacity < settings.batch_size:
        raise RangeError(
            f"capacity {settings.capacity} is below batch_size {settings.batch_size}; "
            "raise the capacity or lower the batch size"
        )
