"""Each method of pretraining: the settings it has, its defaults, and published settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from querykey.config.old_names import PRETRAINING
from querykey.config.settings import current, flat, tables_of
from querykey.errors import ConfigError
from querykey.pretraining.settings.settings import (
    LearningRateScaling,
    Method,
    OptimizerName,
    PretrainSettings,
)

__all__ = ["LENGTHS", "METHODS", "ONE_VIEW", "OPTIMIZERS", "PRESETS", "OptimizerDefaults", "given_settings"]

LENGTHS = ("minutes", "epochs", "steps")
"""Settings of the length of a run."""

_OF_SOME_METHODS = ("dictionary.", "key_encoder.")


@dataclass(frozen=True)
class OptimizerDefaults:
    """An optimizer's defaults.

    Args:
        base: Learning rate at a batch of 256 under the scaling.
        lr_scaling: How the rate grows with the batch.
        weight_decay: Of weights; batch norm and biases have none.
    """

    base: float
    lr_scaling: LearningRateScaling
    weight_decay: float


OPTIMIZERS: dict[OptimizerName, OptimizerDefaults] = {
    "sgd": OptimizerDefaults(0.2, "linear", 5e-4),
    "adamw": OptimizerDefaults(2e-3, "linear", 0.05),
    "lars": OptimizerDefaults(0.3, "linear", 1e-6),
}
"""SGD and AdamW: found with `small_cnn` on CIFAR-10 (docs/pretraining.md). LARS: SimCLR's own."""


@dataclass(frozen=True)
class MethodTraits:
    """The properties of a method.

    Args:
        settings: Its settings of dictionary and key encoder, by dotted name.
        defaults: Settings that differ from SimCLR's.
        views: Number of views of an image.
        large_views: Preset for images from 64 pixels up.
        rate: Factor of the base rate of the optimizer, found with SGD in runs of minutes (LOG.md).
    """

    settings: frozenset[str]
    defaults: Mapping[str, Any]
    views: int
    large_views: str
    rate: float = 1.0


def _names(table: str, *names: str) -> frozenset[str]:
    return frozenset(f"{table}.{name}" for name in names)


_QUEUE = _names("dictionary", "capacity", "start", "same_id", "sharded") | _names(
    "key_encoder", "momentum", "schedule", "symmetric", "shuffle"
)
_SHUFFLED = {"batch_norm.kind": "split", "key_encoder.shuffle": True}
_LINEAR = {"head.kind": "linear", "head.batch_norm": False}
METHODS: dict[Method, MethodTraits] = {
    "simclr": MethodTraits(frozenset(), {}, 2, "simclr"),
    "moco": MethodTraits(_QUEUE, {**_LINEAR, "loss.temperature": 0.1, **_SHUFFLED}, 2, "moco_v1", rate=0.3),
    "moco-v2": MethodTraits(
        _QUEUE, {"head.batch_norm": False, "loss.temperature": 0.2, **_SHUFFLED}, 2, "moco_v2", rate=0.3
    ),
    "moco-v3": MethodTraits(
        _names("key_encoder", "momentum", "schedule", "shuffle", "predictor_hidden"),
        {
            "loss.temperature": 0.2,
            "head.dim": 256,
            "head.last_norm": "plain",
            "key_encoder.schedule": "cosine",
        },
        2,
        "moco_v2",
    ),
    "memory-bank": MethodTraits(
        _names("dictionary", "contrast", "negatives", "momentum", "proximal", "prefill", "sharded"),
        {**_LINEAR, "loss.temperature": 0.1},
        1,
        "moco_v1",
        rate=0.3,
    ),
    "end-to-end": MethodTraits(
        _names("key_encoder", "symmetric", "shuffle", "separate"),
        {**_LINEAR, "loss.temperature": 0.1, "key_encoder.symmetric": True, "key_encoder.separate": True},
        2,
        "moco_v1",
        rate=0.3,
    ),
    "xbm": MethodTraits(
        _names(
            "dictionary", "capacity", "weight", "warm_up", "prefill", "align", "items_per_class", "sharded"
        ),
        {**_LINEAR, "loss.kind": "contrastive"},
        1,
        "moco_v1",
        rate=0.3,
    ),
}
"""The methods. Settings of the authors for CIFAR are preferred to those for ImageNet."""

ONE_VIEW = frozenset(name for name, traits in METHODS.items() if traits.views == 1)

PRESETS: dict[str, dict[str, Any]] = {
    "moco-cifar": {
        "method": "moco", "backbone.name": "torchvision:resnet18", "backbone.stem": "small", "image_size": 32,
        "views.size": 32, "views.preset": "small_images", "batch_size": 512, "dictionary.capacity": 4096,
        "dictionary.start": "random", "dictionary.same_id": "negative", "key_encoder.momentum": 0.99,
        "loss.temperature": 0.1, "optimizer.kind": "sgd", "optimizer.lr_scaling": "none",
        "optimizer.learning_rate": 0.06, "optimizer.weight_decay": 5e-4, "optimizer.warm_up": 0.0,
        "batch_norm.kind": "split", "batch_norm.groups": 8, "key_encoder.shuffle": True,
        "key_encoder.symmetric": False, "epochs": 200.0, "views.crop_scale": (0.08, 1.0),
        "views.jitter": (0.4, 0.4, 0.4, 0.1),
    },
}  # fmt: skip
"""Published settings: the MoCo notebook for CIFAR-10 (github.com/facebookresearch/moco)."""


def given_settings(method: str | None = None, preset: str | None = None, **given: Any) -> PretrainSettings:
    """The given settings, with those of a preset and the defaults of the method; not resolved.

    Args:
        method: See `METHODS`; None: the preset's, else "simclr".
        preset: One of `PRESETS`, or None.
        **given: As `PretrainSettings.make` takes it; overrides the preset.

    Returns:
        The settings.

    Raises:
        ConfigError: If a name is not known, the method does not have a setting, or preset and method
            contradict each other.

    Example:
        >>> given_settings("moco", key_encoder={"momentum": 0.9}).loss.temperature
        0.1
    """
    own = flat(tables_of(PretrainSettings, current(given, PRETRAINING)))
    if preset is None:
        return _on_defaults(method or "simclr", own)
    if preset not in PRESETS:
        raise ConfigError(f"preset {preset!r} is not known; there are {', '.join(PRESETS)}")
    values = dict(PRESETS[preset])
    of_preset = values.pop("method")
    if method not in (None, of_preset):
        raise ConfigError(f"preset {preset} is for {of_preset}, and method is {method}; give one of them")
    if any(own.get(name) is not None for name in LENGTHS):
        values = {name: value for name, value in values.items() if name not in LENGTHS}
    return _on_defaults(of_preset, values | own)


def _on_defaults(method: str, given: Mapping[str, Any]) -> PretrainSettings:
    if method not in get_args(Method):
        raise ConfigError(f"method {method!r} is not known; there are {', '.join(get_args(Method))}")
    known: Method = method  # type: ignore[assignment]
    traits = METHODS[known]
    made = PretrainSettings.make({"method": method, **traits.defaults, **given})
    for name in given:
        if name.startswith(_OF_SOME_METHODS) and name not in traits.settings:
            having = [other for other, its in METHODS.items() if name in its.settings]
            raise ConfigError(f"{method} has no {name}; it belongs to {', '.join(having)}")
    return made
