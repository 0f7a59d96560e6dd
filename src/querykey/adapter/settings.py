"""How an adapter is fitted: settings, and what they become for the data at hand."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

from querykey.encoders.heads import FCKind, Start
from querykey.errors import ConfigError, RangeError
from querykey.losses.by_name import LossName, objective, takes_temperature

__all__ = [
    "DRAWN",
    "LARGEST_WHOLE",
    "RECIPES",
    "AdapterSettings",
    "Candidates",
    "Recipe",
    "Target",
    "Task",
    "resolve",
]

Task = Literal["unlabelled", "labels", "pairs", "query side"]
Target = Literal["frozen", "centred", "soft_whitened"]
Candidates = Literal["all", "closed_form"] | tuple[str, ...]


class Recipe(NamedTuple):
    """How a candidate is trained, where the settings leave it open.

    Args:
        name: In reports.
        loss: By name.
        temperature: Of a loss that has one.
        sampled: Rows drawn from the memory each step.
        negatives: Hardest negatives a query selects.
        positives: Farthest positives a query selects.
        rank: Of the change that is trained; None: the whole matrix.
    """

    name: str
    loss: LossName
    temperature: float
    sampled: int = 0
    negatives: int = 0
    positives: int = 0
    rank: int | None = None


LARGEST_WHOLE, DRAWN = 16_384, 8_192
"""Rows up to which a distillation looks up all of them; beyond, so many are drawn each step."""

RECIPES: dict["Task", tuple[Recipe, ...]] = {
    "unlabelled": (Recipe("distillation", "score_distillation", 0.05),),
    "labels": (
        Recipe("nca", "nca", 0.07, sampled=2048),
        Recipe("hard negatives", "info_nce", 0.07, sampled=512, negatives=8, positives=4),
    ),
    "pairs": (
        Recipe("info_nce", "info_nce", 0.05, sampled=2048),
        Recipe("hard negatives", "info_nce", 0.05, negatives=32),
    ),
    "query side": (
        Recipe("low rank", "info_nce", 0.05, sampled=2048, rank=16),
        Recipe("info_nce", "info_nce", 0.05, sampled=2048),
    ),
}
"""Where labels are clean and classes fine, every positive and the hardest negatives count; where they are
broad or noisy, one near positive will do. Validation finds out. The evidence is in docs/results.md."""

_AT_LEAST = {
    "dim": 1,
    "capacity": 1,
    "sampled": 0,
    "negatives": 0,
    "positives": 0,
    "neighbours": 1,
    "steps": 0,
    "batch_size": 2,
    "n_iter_no_change": 1,
    "learning_rate": 0,
    "weight_decay": 0,
}


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Everything a fit can be told; None is chosen for the data at hand.

    Args:
        dim: Width of the adapted rows; None: 64, or the width where that is less.
        loss: None: "score_distillation" without labels, "info_nce" for pairs; for labels "nca" or
            "info_nce", whichever validation prefers.
        loss_options: The loss's own keyword arguments, such as temperature or margin.
        fc: "linear", "residual" or "two_layer"; None: residual for labels and pairs at full width,
            linear otherwise.
        start: "pca", "pca_centred", "identity" or "orthogonal"; None: the best of the closed forms.
        memory: "cross_batch", or "in_batch" for none.
        capacity: Rows the memory holds at the most; at least all rows makes it the whole data set.
        holds: "features" of the frozen model, or "projections", which grow stale.
        sharded: Whether each of several processes holds and scores a share of the memory, in place of all.
        prefill: Whether the memory is filled before the first step.
        sampled: Rows drawn at random from the memory each step, for all queries; None: see `RECIPES`.
        negatives: Hardest negatives each query selects from the memory (labels, pairs).
        positives: Farthest positives each query selects from the memory (labels).
        neighbours: Most similar rows each query selects ("score_difference").
        both_sides: Whether the gradient goes through the keys too.
        side: "both": queries and documents are transformed. "query": documents stay as they are in the
            index, which needs dim = width.
        steps: Optimiser steps of a run; None: what the data allow within 2,000 for all runs of a fit.
            0: nothing is trained.
        batch_size: Items a step, clipped to the data.
        learning_rate: AdamW's peak rate; cosine to 0. None: 1e-3, or 3e-4 for data so few that they are held
            out in folds.
        weight_decay: Towards the candidate that training begins at, decoupled as AdamW's.
        classes: Whether the adapter will meet the "known" classes or "new" ones; None: candidates are
            chosen by known ones, and none is returned that is worse on new ones.
        target: Whose scores a fit without labels keeps; None: "soft_whitened", or what queries prefer.
        candidates: "all", "closed_form", or names of candidates or of families of them.
        validation_fraction: Share of the rows that is held out where the rows are many; 0: nothing is.
        n_iter_no_change: Evaluations (25 a run) without a better one before training stops.
        seed: Random seed.
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
    learning_rate: float | None = None
    weight_decay: float = 1e-2
    classes: Literal["known", "new"] | None = None
    target: Target | None = None
    candidates: Candidates = "all"
    validation_fraction: float = 0.1
    n_iter_no_change: int = 8
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for a run file."""
        return asdict(self) | {"loss_options": dict(self.loss_options)}


def resolve(
    settings: AdapterSettings, *, task: Task, items: int, width: int, recipe: Recipe | None = None
) -> AdapterSettings:
    """Fill in what was left open and clip what the data does not allow, with one warning for all of it.

    Args:
        settings: As given.
        task: What the fit learns from.
        items: Rows to train on.
        width: Of the frozen rows.
        recipe: Fills in what is None; the first of the task where not given.

    Returns:
        Settings without None, but for `start`, which validation decides, and `steps`.

    Raises:
        RangeError: If a number is outside its range.
        ConfigError: If settings contradict each other or the task.
    """
    recipe = RECIPES[task][0] if recipe is None else recipe
    _check(settings, task, width)
    dim = settings.dim or (width if settings.side == "query" else min(64, width))
    loss = settings.loss or recipe.loss
    options = dict(settings.loss_options)
    if takes_temperature(loss):
        options.setdefault("temperature", recipe.temperature)
    if objective(loss, **options).keeps_scores != (task == "unlabelled"):
        need = (
            "keeps the frozen scores and takes no labels" if task != "unlabelled" else "needs labels or pairs"
        )
        raise ConfigError(f"the loss {loss} {need}; choose another, or leave it out")

    chosen = {
        name: getattr(recipe, name) if getattr(settings, name) is None else getattr(settings, name)
        for name in ("sampled", "negatives", "positives")
    } | {"batch_size": settings.batch_size, "neighbours": settings.neighbours}
    most = {name: items if name in ("batch_size", "sampled") else items - 1 for name in chosen}
    clipped: dict[str, Any] = {name: min(value, most[name]) for name, value in chosen.items()}
    given = [name for name, value in chosen.items() if getattr(settings, name) == value]
    lowered = [f"{n} {chosen[n]} to {clipped[n]}" for n in given if clipped[n] < chosen[n] and n != "sampled"]
    if lowered:
        warnings.warn(f"{items} rows to train on: lowered {', '.join(lowered)}", UserWarning, stacklevel=4)
    return replace(
        settings,
        **clipped,
        dim=dim,
        loss=loss,
        loss_options=options,
        fc=settings.fc or ("residual" if dim == width and task != "unlabelled" else "linear"),
    )


def _check(settings: AdapterSettings, task: Task, width: int) -> None:
    for name, least in _AT_LEAST.items():
        value = getattr(settings, name)
        if value is not None and value < least:
            raise RangeError(f"{name} must be at least {least}, got {value}")
    if not 0 <= settings.validation_fraction <= 0.5:
        raise RangeError(f"validation_fraction must be from 0 to 0.5, got {settings.validation_fraction}")
    if settings.dim is not None and settings.dim > width:
        raise RangeError(f"dim must be from 1 to the width of the features, {width}; got {settings.dim}")
    if settings.side == "query" and settings.dim not in (None, width):
        raise ConfigError(
            f'side="query" leaves documents {width} wide, so dim must be {width} or left out; '
            f"got {settings.dim}"
        )
    if settings.side == "query" and task != "query side":
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
        raise ConfigError('memory="in_batch" has no rows to shard; leave out sharded, or the memory')
    if task == "unlabelled" and settings.loss_options.get("form") in ("chunked", "streamed"):
        raise ConfigError('over a sharded memory the loss is dense, of a share; leave out form="chunked"')
