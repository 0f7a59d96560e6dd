"""How an adapter is fitted: settings, and what they become for the data at hand."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple, cast

import torch

from querykey.encoders.heads import FCKind, Start
from querykey.errors import ConfigError, RangeError
from querykey.training.objectives import LossName, objective
from querykey.types import Labels

__all__ = ["DEFAULTS", "AdapterSettings", "Situation", "Task", "classes_are_fine", "resolve", "situation_of"]

Task = Literal["unlabelled", "labels", "pairs"]
Situation = Literal["unlabelled", "broad classes", "fine classes", "pairs"]


class Defaults(NamedTuple):
    """What a fit does that was not told otherwise."""

    loss: LossName
    temperature: float
    steps: int
    sampled: int
    negatives: int
    positives: int


DEFAULTS: dict["Situation", Defaults] = {
    "unlabelled": Defaults("score_distillation", 0.05, 600, 0, 0, 0),
    "broad classes": Defaults("nca", 0.07, 1500, 1024, 0, 0),
    "fine classes": Defaults("info_nce", 0.07, 1500, 512, 8, 4),
    "pairs": Defaults("info_nce", 0.05, 1500, 0, 32, 0),
}
"""Few classes of many items are broad, and their labels noisy: one near positive will do, and the hardest
negatives are too often mislabelled. Many classes of few items are fine: every positive counts, and so do
the hardest negatives. The evidence is in docs/results.md."""

EPOCHS = 200
"""Small data gets no more than this many passes."""


_AT_LEAST = {
    "dim": 1,
    "capacity": 1,
    "sampled": 0,
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
        loss: None: "score_distillation" without labels, "nca" for few classes, "info_nce" for many
            classes and for pairs.
        loss_options: The loss's own keyword arguments, such as temperature or margin.
        fc: "linear", "residual" or "two_layer"; None: residual for labels and pairs at full width,
            linear otherwise.
        start: "pca", "pca_centred", "identity" or "orthogonal"; None: whichever PCA the guard scores higher.
        memory: "cross_batch", or "in_batch" for none.
        capacity: Rows the memory holds at the most; at least all rows makes it the whole data set.
        holds: "features" of the frozen model, or "projections", which grow stale.
        sharded: Whether each of several processes holds and scores a share of the memory, in place of all.
        prefill: Whether the memory is filled before the first step.
        sampled: Rows drawn at random from the memory each step, for all queries (labels, pairs); None: see
            `DEFAULTS`.
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
    sharded: bool = False
    prefill: bool = True
    sampled: int | None = None
    negatives: int | None = None
    positives: int | None = None
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


def situation_of(*, labels: Labels | None, has_pairs: bool) -> Situation:
    """What a fit learns from.

    Args:
        labels: Class of each item, or None.
        has_pairs: Whether there are (query, document) pairs.

    Returns:
        The situation that `DEFAULTS` speaks of.
    """
    if has_pairs:
        return "pairs"
    if labels is None:
        return "unlabelled"
    return "fine classes" if classes_are_fine(labels) else "broad classes"


def classes_are_fine(labels: Labels) -> bool:
    """Whether there are more classes than the square root of the labelled items.

    Args:
        labels: Class of each item, -1 where it is not known.

    Returns:
        True for many classes of few items each.

    Example:
        >>> classes_are_fine(torch.tensor([0, 0, 1, 1, 2, 2])), classes_are_fine(torch.tensor([0, 1] * 8))
        (True, False)
    """
    known = labels[labels >= 0]
    return len(torch.unique(known)) ** 2 > len(known)


def resolve(settings: AdapterSettings, *, situation: Situation, items: int, width: int) -> AdapterSettings:
    """Fill in what was left open and clip what the data does not allow, with one warning for all of it.

    Args:
        settings: As given.
        situation: What the fit learns from; see `situation_of`.
        items: Rows to train on.
        width: Of the frozen rows.

    Returns:
        Settings without None, but for `start`, which the guard decides.

    Raises:
        RangeError: If a number is outside its range.
        ConfigError: If settings contradict each other or the task.
    """
    task: Task = "labels" if situation.endswith("classes") else cast("Task", situation)
    default = DEFAULTS[situation]
    _check(settings, task, width)
    dim = settings.dim or (width if settings.side == "query" else min(64, width))
    loss = settings.loss or default.loss
    options = dict(settings.loss_options)
    if loss in ("info_nce", "nca", "score_distillation"):
        options.setdefault("temperature", default.temperature)
    if objective(loss, **options).keeps_scores != (task == "unlabelled"):
        need = (
            "keeps the frozen scores and takes no labels" if task != "unlabelled" else "needs labels or pairs"
        )
        raise ConfigError(f"the loss {loss} {need}; choose another, or leave it out")

    chosen = {
        name: getattr(default, name) if getattr(settings, name) is None else getattr(settings, name)
        for name in ("sampled", "negatives", "positives")
    } | {"batch_size": settings.batch_size, "neighbours": settings.neighbours}
    most = {name: items if name in ("batch_size", "sampled") else items - 1 for name in chosen}
    clipped: dict[str, Any] = {name: min(value, most[name]) for name, value in chosen.items()}
    lowered = [f"{n} {v} to {clipped[n]}" for n, v in chosen.items() if clipped[n] < v and n != "sampled"]
    if lowered:
        warnings.warn(f"{items} rows to train on: lowered {', '.join(lowered)}", UserWarning, stacklevel=4)
    return replace(
        settings,
        **clipped,
        dim=dim,
        loss=loss,
        loss_options=options,
        fc=settings.fc or ("residual" if dim == width and task != "unlabelled" else "linear"),
        steps=settings.steps
        if settings.steps is not None
        else min(default.steps, EPOCHS * max(1, items // clipped["batch_size"])),
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
    if settings.sharded:
        _check_sharded(settings, task)
    if settings.memory == "cross_batch" and settings.capacity < settings.batch_size:
        raise RangeError(
            f"capacity {settings.capacity} is below batch_size {settings.batch_size}; "
            "raise the capacity or lower the batch size"
        )


def _check_sharded(settings: AdapterSettings, task: Task) -> None:
    if settings.memory == "in_batch":
        raise ConfigError('memory="in_batch" has no rows to deal out; leave out sharded, or the memory')
    if task == "unlabelled" and settings.loss_options.get("form") == "streamed":
        raise ConfigError('over a sharded memory the loss is plain, of a share; leave out form="streamed"')
