"""Settings of a pretraining, resolved for the images at hand and validated."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from querykey.encoders.backbones import Stem
from querykey.encoders.norm.batchnorm import BatchNormKind
from querykey.encoders.projection import HeadKind, LastNorm
from querykey.errors import ConfigError, RangeError
from querykey.losses.by_name import takes_form, takes_temperature, view_objective
from querykey.optim import scaled_learning_rate
from querykey.pretraining.settings.memory_plan import loss_form
from querykey.pretraining.settings.methods import METHODS, ONE_VIEW, check_dictionary, default_capacity
from querykey.pretraining.settings.settings import (
    CROPS,
    LEAST_SIDE,
    LENGTHS,
    OPTIMIZERS,
    SMALL,
    Layout,
    OptimizerName,
    Precision,
    PretrainSettings,
    Recipe,
    Rule,
)

__all__ = ["resolve_settings"]


def resolve_settings(
    settings: PretrainSettings, *, images: int, channels: int, side: int | None
) -> PretrainSettings:
    """Fill in the settings that depend on the images; those that must be measured stay None or "auto".

    Args:
        settings: As given.
        images: How many there are to train on.
        channels: Of an image, 1 or 3.
        side: The shorter side of all images in pixels; None where they differ.

    Returns:
        Settings without None but for steps and epochs.

    Raises:
        RangeError: If a number is outside its range.
        ConfigError: If settings contradict each other.
    """
    _check(settings)
    if images < 2:
        raise RangeError(f"{images} images to train on; at least 2 are needed, thousands to learn anything")
    size = settings.image_size or _own_size(settings.backbone, side)
    recipe = OPTIMIZERS[settings.optimizer]
    rule = settings.rule or recipe.rule
    batch = _batch(settings, images)
    rate = settings.learning_rate
    if rate is None:
        base = METHODS[settings.method].rate * _base(recipe, rule)
        rate = scaled_learning_rate(batch, rule=rule, base=base)
    preset = settings.views
    options = dict(settings.view_options)
    if preset == "auto":
        large = METHODS[settings.method].large_views
        preset = "grayscale" if channels == 1 else ("small_images" if size < SMALL else large)
        if preset == "small_images":
            options.setdefault("crop_scale", CROPS)
    length = {name: getattr(settings, name) for name in LENGTHS}
    if all(value is None for value in length.values()):
        length["minutes"] = 10.0
    resolved = replace(
        settings,
        **length,
        image_size=size,
        view_size=settings.view_size or (max(LEAST_SIDE, math.ceil(0.75 * size)) if size < SMALL else size),
        views=preset,
        view_options=options,
        batch_size=batch,
        capacity=settings.capacity or default_capacity(settings.method, images=images, batch_size=batch),
        chunks=min(settings.chunks, batch),
        learning_rate=rate,
        rule=rule,
        weight_decay=recipe.weight_decay if settings.weight_decay is None else settings.weight_decay,
        held_out=min(settings.held_out, images // 10),
    )
    return replace(resolved, loss_options=_with_form(resolved, images))


def _with_form(settings: PretrainSettings, images: int) -> Mapping[str, Any]:
    """The loss's options, with the form that suits the size of its lookup if none is given."""
    if not takes_form(settings.loss):
        return settings.loss_options
    return {**settings.loss_options, "form": loss_form(settings, items=images)}


def _batch(settings: PretrainSettings, images: int) -> int:
    """The batch size: no more than there are images, and of whole groups of a split batch norm."""
    batch, groups = min(settings.batch_size, images), settings.batch_norm_groups
    if settings.batch_norm != "split":
        return batch
    if batch < 2 * groups:
        raise RangeError(
            f"split batch norm of {groups} groups needs batches of {2 * groups} images or more, got {batch}; "
            "lower batch_norm_groups, or take batch_norm = device"
        )
    return batch - batch % groups


def _own_size(backbone: str, side: int | None) -> int:
    if side is not None and side <= 224:
        return max(LEAST_SIDE, side)
    return SMALL if backbone.startswith("small_cnn") else 224


def _base(recipe: Recipe, rule: Rule) -> float:
    """What the rule multiplies, so that every rule gives the recipe's rate at a batch of 256."""
    return recipe.base / 16 if rule == "square_root" else recipe.base


_AT_LEAST = {
    "batch_size": 2, "chunks": 1, "head_dim": 1, "held_out": 0, "looks": 0, "image_size": LEAST_SIDE,
    "view_size": LEAST_SIDE, "head_hidden": 1, "batch_norm_groups": 1, "steps": 1, "seed": 0,
}  # fmt: skip
_AT_MOST = dict.fromkeys(_AT_LEAST, 2**31 - 1) | {"epochs": 10**9, "minutes": 10**9}
_SHARES = ("warm_up", "sgd_momentum")
_CHOICES = {
    "head": HeadKind, "head_last_norm": LastNorm, "batch_norm": BatchNormKind, "stem": Stem,
    "optimizer": OptimizerName, "rule": Rule, "precision": Precision, "layout": Layout,
}  # fmt: skip
_ABOVE_ZERO = ("temperature", "learning_rate", "epochs", "minutes", "view_strength")


def _check(settings: PretrainSettings) -> None:
    _check_choices(settings)
    check_dictionary(settings)
    _check_numbers(settings)
    if settings.head_layers not in (2, 3):
        raise RangeError(f"head_layers must be 2 or 3, got {settings.head_layers}; for 1 use head linear")
    view_objective(settings.loss, settings.temperature, **settings.loss_options)
    _check_together(settings)


def _check_numbers(settings: PretrainSettings) -> None:
    for name, least in _AT_LEAST.items():
        value = getattr(settings, name)
        if value is not None and not value >= least:
            reason = ": a view needs others to be told from" if name == "batch_size" else ""
            raise RangeError(f"{name} must be at least {least}, got {value}{reason}")
    for name in _ABOVE_ZERO:
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise RangeError(f"{name} must be > 0 and finite, got {value}")
    for name, most in _AT_MOST.items():
        value = getattr(settings, name)
        if value is not None and value > most:
            raise RangeError(f"{name} must be at most {most}, got {value}")
    for name in _SHARES:
        if not 0 <= getattr(settings, name) < 1:
            raise RangeError(f"{name} must be from 0 to below 1, got {getattr(settings, name)}")
    if settings.weight_decay is not None and not 0 <= settings.weight_decay < math.inf:
        raise RangeError(f"weight_decay must be at least 0, got {settings.weight_decay}")


def _check_choices(settings: PretrainSettings) -> None:
    for name, kinds in _CHOICES.items():
        value = getattr(settings, name)
        if value not in get_args(kinds) and not (name == "rule" and value is None):
            raise ConfigError(f"{name} must be one of {', '.join(get_args(kinds))}; got {value!r}")


def _check_together(settings: PretrainSettings) -> None:
    if settings.learning_rate is not None and settings.rule not in (None, "none"):
        raise ConfigError(
            f"learning_rate {settings.learning_rate} is the rate as it is used, and rule {settings.rule} "
            "computes one from the batch; give one of them"
        )
    given = [name for name in LENGTHS if getattr(settings, name) is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} each say how long to train; give one of them")
    if settings.learned_temperature and not takes_temperature(settings.loss):
        raise ConfigError(f"the loss {settings.loss} takes no temperature, so none can be learned")
    mergeable = ("contrastive",) if settings.method == "xbm" else ("info_nce",)
    if settings.sharded and settings.loss not in mergeable:
        raise ConfigError(
            f"what the shards of {settings.method} cost is merged for the loss {mergeable[0]}; got "
            f"{settings.loss}: take that, or leave out dictionary.sharded"
        )
    if settings.second_view_options and settings.method in ONE_VIEW:
        raise ConfigError(f"{settings.method} takes one view of an image; leave out second_view")
    if settings.chunks > 1 and settings.batch_norm == "split":
        raise ConfigError("chunks cannot be cut across split batch norm's groups; use chunks = 1")
    if settings.chunks > 1 and settings.checkpointing and settings.batch_norm != "layer":
        raise ConfigError(
            "checkpointing with chunks is for networks without batch norm (batch_norm = layer); with it, "
            "chunks drop activations by themselves; give one of them"
        )
