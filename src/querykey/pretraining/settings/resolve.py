"""Settings of a pretraining, resolved for the images at hand and validated."""

import math
from typing import Any

from querykey.config.settings import require_valid
from querykey.errors import ConfigError, RangeError
from querykey.losses.by_name import takes_form, takes_temperature, view_objective
from querykey.optim import scaled_learning_rate
from querykey.pretraining.settings.memory_plan import loss_form
from querykey.pretraining.settings.methods import LENGTHS, METHODS, ONE_VIEW, OPTIMIZERS, OptimizerDefaults
from querykey.pretraining.settings.settings import LearningRateScaling, Method, PretrainSettings

__all__ = ["default_capacity", "resolve_settings"]

CROPS = (0.2, 1.0)
"""Of small images, unless a preset is named: in runs of minutes better than the papers' 0.08 to 1."""

LEAST_SIDE = 8
"""Of an image and of a view in pixels."""

SMALL = 64
"""Images below this are small: no blur, the small stem, and views of three quarters of their size."""

QUEUE_SHARE = 0.1
"""Of the images: in larger queues old keys of the query's image and of similar ones are too many."""

LARGEST_QUEUE, LARGEST_MEMORY = 65536, 8192
"""MoCo's own, and XBM's default."""


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
    size = settings.image_size or _own_size(settings.backbone.name, side)
    defaults = OPTIMIZERS[settings.optimizer.kind]
    scaling = settings.optimizer.lr_scaling or defaults.lr_scaling
    batch = _batch(settings, images)
    rate = settings.optimizer.learning_rate
    if rate is None:
        base = METHODS[settings.method].rate * _base(defaults, scaling)
        rate = scaled_learning_rate(batch, rule=scaling, base=base)
    preset: str = settings.views.preset
    options: dict[str, Any] = {}
    if preset == "auto":
        large = METHODS[settings.method].large_views
        preset = "grayscale" if channels == 1 else ("small_images" if size < SMALL else large)
        if preset == "small_images":
            options["views.crop_scale"] = settings.views.options.get("crop_scale", CROPS)
    length = {name: getattr(settings, name) for name in LENGTHS}
    if all(value is None for value in length.values()):
        length["minutes"] = 10.0
    resolved = settings.changed(
        {
            **length,
            **options,
            "image_size": size,
            "views.size": settings.views.size
            or (max(LEAST_SIDE, math.ceil(0.75 * size)) if size < SMALL else size),
            "views.preset": preset,
            "batch_size": batch,
            "dictionary.capacity": settings.dictionary.capacity
            or default_capacity(settings.method, images=images, batch_size=batch),
            "chunks": min(settings.chunks, batch),
            "optimizer.learning_rate": rate,
            "optimizer.lr_scaling": scaling,
            "optimizer.weight_decay": (
                defaults.weight_decay
                if settings.optimizer.weight_decay is None
                else settings.optimizer.weight_decay
            ),
            "held_out": min(settings.held_out, images // 10),
        }
    )
    if takes_form(resolved.loss.kind):
        resolved = resolved.changed({"loss.form": loss_form(resolved, items=images)})
    return resolved


def default_capacity(method: Method, *, images: int, batch_size: int) -> int | None:
    """The number of rows of a dictionary if it is not given.

    Args:
        method: With a queue or a memory; None comes back for the others.
        images: Trained on.
        batch_size: In a step.

    Returns:
        At least a batch, since XBM enqueues a batch before it looks up.
    """
    if method == "xbm":
        return max(batch_size, min(images, LARGEST_MEMORY))
    if "dictionary.capacity" not in METHODS[method].settings:
        return None
    keys = max(2, int(QUEUE_SHARE * images))
    return int(max(2 * batch_size, min(LARGEST_QUEUE, 2 ** (keys.bit_length() - 1))))


def _batch(settings: PretrainSettings, images: int) -> int:
    """The batch size: at most the number of images, and divisible by the groups of split batch norm."""
    batch, groups = min(settings.batch_size, images), settings.batch_norm.groups
    if settings.batch_norm.kind != "split":
        return batch
    if batch < 2 * groups:
        raise RangeError(
            f"split batch norm of {groups} groups needs batches of {2 * groups} images or more, got {batch}; "
            "lower batch_norm.groups, or take batch_norm = device"
        )
    return batch - batch % groups


def _own_size(backbone: str, side: int | None) -> int:
    if side is not None and side <= 224:
        return max(LEAST_SIDE, side)
    return SMALL if backbone.startswith("small_cnn") else 224


def _base(defaults: OptimizerDefaults, scaling: LearningRateScaling) -> float:
    """What the scaling multiplies, so that each gives its rate at a batch of 256."""
    return defaults.base / 16 if scaling == "square_root" else defaults.base


def _check(settings: PretrainSettings) -> None:
    require_valid(settings)
    view_objective(settings.loss.kind, settings.loss.temperature, **settings.loss.options)
    _check_together(settings)


def _check_together(settings: PretrainSettings) -> None:
    if settings.dictionary.sharded and settings.dictionary.same_id == "positive":
        raise ConfigError("a sharded queue has one positive a query; take same_id = masked or negative")
    if settings.optimizer.learning_rate is not None and settings.optimizer.lr_scaling not in (None, "none"):
        raise ConfigError(
            f"learning_rate {settings.optimizer.learning_rate} is the rate as it is used, and lr_scaling "
            f"{settings.optimizer.lr_scaling} "
            "computes one from the batch; give one of them"
        )
    given = [name for name in LENGTHS if getattr(settings, name) is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} each say how long to train; give one of them")
    if settings.loss.learned_temperature and not takes_temperature(settings.loss.kind):
        raise ConfigError(f"the loss {settings.loss.kind} takes no temperature, so none can be learned")
    mergeable = ("contrastive",) if settings.method == "xbm" else ("info_nce",)
    if settings.dictionary.sharded and settings.loss.kind not in mergeable:
        raise ConfigError(
            f"what the shards of {settings.method} cost is merged for the loss {mergeable[0]}; got "
            f"{settings.loss.kind}: take that, or leave out dictionary.sharded"
        )
    if settings.second_view.options and settings.method in ONE_VIEW:
        raise ConfigError(f"{settings.method} takes one view of an image; leave out second_view")
    if settings.chunks > 1 and settings.batch_norm.kind == "split":
        raise ConfigError("chunks cannot be cut across split batch norm's groups; use chunks = 1")
    if settings.chunks > 1 and settings.checkpointing and settings.batch_norm.kind != "layer":
        raise ConfigError(
            "checkpointing with chunks is for networks without batch norm (batch_norm = layer); with it, "
            "chunks drop activations by themselves; give one of them"
        )
