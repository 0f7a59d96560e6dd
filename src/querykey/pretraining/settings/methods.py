"""What a method of pretraining looks its queries up in: its settings, and each method's defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from querykey.errors import ConfigError, RangeError

__all__ = [
    "METHODS",
    "ONE_VIEW",
    "PRESETS",
    "DictionarySettings",
    "Method",
    "check_dictionary",
    "default_capacity",
    "defaults_of",
]

Method = Literal["simclr", "moco", "moco-v2", "moco-v3", "memory-bank", "end-to-end", "xbm"]
Contrast = Literal["softmax", "info_nce", "nce"]
Align = Literal["none", "moments", "kalman"]

QUEUE_SHARE = 0.1
"""Of the images: above it old keys of a query's own image, and of its like, crowd the queue."""
LARGEST_QUEUE, LARGEST_MEMORY = 65536, 8192
"""MoCo's own, and XBM's default."""


@dataclass(frozen=True, kw_only=True)
class DictionarySettings:
    """The settings of dictionaries and of what encodes keys; each belongs to some methods only.

    Args:
        capacity: Rows of a queue or a memory; None: a power of two of at most a tenth of the images for
            a queue, and all images for a memory, up to the papers' 65,536 and 8,192.
        start: A queue's first rows: "empty", or "random" ones, which are the paper's.
        same_id: What an old key of a query's own image is: "masked" (neither), "negative" (the paper's)
            or "positive".
        momentum: Of the key encoder, from 0 to 1.
        momentum_schedule: "constant", or "cosine" up to 1 at the end.
        symmetric: Whether each view is a query once, so that a step has both directions.
        shuffle: Whether keys are encoded in another order: with split batch norm, or over processes,
            their sub-batches are then not those of the queries.
        separate: Whether keys have an encoder of their own, which is trained too.
        predictor_hidden: Width inside the prediction head.
        contrast: Of a memory bank: "softmax" over all slots, "info_nce" or "nce" against a sample.
        negatives: Of that sample.
        slot_momentum: Of a slot of the bank, from 0 to below 1.
        proximal: Weight of the squared distance of an embedding from its slot, at least 0.
        memory_weight: Of the loss over a cross-batch memory; that in the batch weighs 1.
        memory_warm_up: Share of the steps before that memory is used.
        prefill: Whether that memory is filled by the warm encoder then; and whether a memory bank starts
            from what the untrained encoder makes of each image, or from the paper's random rows, which
            are what the first epoch then learns.
        align: Whether its moments are brought to those of the batch: "none", "moments" or "kalman".
        items_per_class: In a batch, where labels make the pairs.
        sharded: Whether each of several processes holds and scores its share of a queue, a bank or a memory,
            in the place of all of it.
    """

    capacity: int | None = None
    start: Literal["empty", "random"] = "empty"
    same_id: Literal["masked", "negative", "positive"] = "masked"
    momentum: float = 0.99
    momentum_schedule: Literal["constant", "cosine"] = "constant"
    symmetric: bool = False
    shuffle: bool = False
    separate: bool = False
    predictor_hidden: int | None = None
    contrast: Contrast = "softmax"
    negatives: int = 4096
    slot_momentum: float = 0.5
    proximal: float = 0.0
    memory_weight: float = 1.0
    memory_warm_up: float = 0.1
    prefill: bool = True
    align: Align = "none"
    items_per_class: int = 4
    sharded: bool = False


@dataclass(frozen=True)
class MethodTraits:
    """What a method is like.

    Args:
        settings: Names of the settings above that it has.
        defaults: Settings that differ from SimCLR's.
        views: How many views of an image it needs.
        large_views: Preset for images from 64 pixels up.
        rate: Of the optimiser's base rate, found with SGD in runs of minutes (LOG.md).
    """

    settings: frozenset[str]
    defaults: Mapping[str, Any]
    views: int
    large_views: str
    rate: float = 1.0


_QUEUE = frozenset(
    {"capacity", "start", "same_id", "momentum", "momentum_schedule", "symmetric", "shuffle", "sharded"}
)
_SHUFFLED = {"batch_norm": "split", "shuffle": True}
METHODS: dict[Method, MethodTraits] = {
    "simclr": MethodTraits(frozenset(), {}, 2, "simclr"),
    "moco": MethodTraits(
        _QUEUE,
        {"head": "linear", "head_batch_norm": False, "loss": "info_nce", "temperature": 0.1, **_SHUFFLED},
        2,
        "moco_v1",
        rate=0.3,
    ),
    "moco-v2": MethodTraits(
        _QUEUE,
        {"head_batch_norm": False, "loss": "info_nce", "temperature": 0.2, **_SHUFFLED},
        2,
        "moco_v2",
        rate=0.3,
    ),
    "moco-v3": MethodTraits(
        frozenset({"momentum", "momentum_schedule", "shuffle", "predictor_hidden"}),
        {"loss": "info_nce", "temperature": 0.2, "head_dim": 256, "head_last_norm": "plain",
         "momentum_schedule": "cosine"},
        2,
        "moco_v2",
    ),
    "memory-bank": MethodTraits(
        frozenset({"contrast", "negatives", "slot_momentum", "proximal", "prefill", "sharded"}),
        {"head": "linear", "head_batch_norm": False, "loss": "info_nce", "temperature": 0.1},
        1,
        "moco_v1",
        rate=0.3,
    ),
    "end-to-end": MethodTraits(
        frozenset({"symmetric", "shuffle", "separate"}),
        {"head": "linear", "head_batch_norm": False, "loss": "info_nce", "temperature": 0.1,
         "symmetric": True, "separate": True},
        2,
        "moco_v1",
        rate=0.3,
    ),
    "xbm": MethodTraits(
        frozenset(
            {"capacity", "memory_weight", "memory_warm_up", "prefill", "align", "items_per_class", "sharded"}
        ),
        {"head": "linear", "head_batch_norm": False, "loss": "contrastive"},
        1,
        "moco_v1",
        rate=0.3,
    ),
}  # fmt: skip
"""The methods. Where a paper's setting is for ImageNet and its authors have one for CIFAR, it is that."""

ONE_VIEW = frozenset(name for name, traits in METHODS.items() if traits.views == 1)

PRESETS: dict[str, dict[str, Any]] = {
    "moco-cifar": {
        "method": "moco", "backbone": "torchvision:resnet18", "stem": "small", "image_size": 32,
        "view_size": 32, "views": "small_images", "batch_size": 512, "capacity": 4096, "start": "random",
        "same_id": "negative", "momentum": 0.99, "temperature": 0.1, "optimizer": "sgd", "rule": "none",
        "learning_rate": 0.06, "weight_decay": 5e-4, "warm_up": 0.0, "batch_norm": "split",
        "batch_norm_groups": 8, "shuffle": True, "symmetric": False, "epochs": 200.0,
        "view_options": {"crop_scale": (0.08, 1.0), "jitter": (0.4, 0.4, 0.4, 0.1)},
    },
}  # fmt: skip
"""Whole recipes of authors: MoCo's notebook for CIFAR-10 (github.com/facebookresearch/moco)."""

_SHARES: dict[str, tuple[float, bool]] = {
    "momentum": (1.0, True), "slot_momentum": (1.0, False), "memory_warm_up": (1.0, False),
}  # fmt: skip
"""Settings from 0 to a bound, and whether the bound itself is allowed."""
LARGEST = 2**31 - 1
_AT_LEAST = {"capacity": 1, "negatives": 1, "items_per_class": 2, "predictor_hidden": 1}


def defaults_of(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, on the defaults of its method.

    Args:
        method: One of `METHODS`.
        given: Settings by name.

    Returns:
        Keyword arguments of `PretrainSettings`.

    Raises:
        ConfigError: If the method is not known, or a setting is given that it does not have.

    Example:
        >>> defaults_of("moco", {"momentum": 0.9})["temperature"]
        0.1
    """
    if method not in get_args(Method):
        raise ConfigError(f"method {method!r} is not known; there are {', '.join(get_args(Method))}")
    known: Method = method  # type: ignore[assignment]
    traits = METHODS[known]
    own = {field.name for field in fields(DictionarySettings)}
    for name in given:
        if name in own - traits.settings:
            having = [other for other, its in METHODS.items() if name in its.settings]
            raise ConfigError(f"{method} has no {name}; it belongs to {', '.join(having)}")
    return {"method": method, **traits.defaults, **given}


def default_capacity(method: Method, *, images: int, batch_size: int) -> int | None:
    """The number of rows of a dictionary if it is not given.

    Args:
        method: With a queue or a memory; None comes back for the others.
        images: Trained on.
        batch_size: In a step.

    Returns:
        At least a batch, since XBM enqueues one whole before it looks.
    """
    if method == "xbm":
        return max(batch_size, min(images, LARGEST_MEMORY))
    if "capacity" not in METHODS[method].settings:
        return None
    share = max(2, int(QUEUE_SHARE * images))
    return int(max(2 * batch_size, min(LARGEST_QUEUE, 2 ** (share.bit_length() - 1))))


def check_dictionary(settings: DictionarySettings) -> None:
    """Refuse what cannot be meant.

    Args:
        settings: As given.

    Raises:
        RangeError: If a number is outside its range.
        ConfigError: If a word is not one of those there are.
    """
    for field in fields(DictionarySettings):
        words = get_args(field.type)
        value = getattr(settings, field.name)
        if words and isinstance(words[0], str) and value not in words:
            raise ConfigError(f"{field.name} must be one of {', '.join(words)}; got {value!r}")
    for name, least in _AT_LEAST.items():
        value = getattr(settings, name)
        if value is not None and not least <= value <= LARGEST:
            bound = f"at least {least}" if value < least else f"at most {LARGEST}"
            raise RangeError(f"{name} must be {bound}, got {value}")
    for name, (most, is_closed) in _SHARES.items():
        value = getattr(settings, name)
        if not (0 <= value < most or (is_closed and value == most)):
            raise RangeError(f"{name} must be from 0 to {'' if is_closed else 'below '}{most:g}, got {value}")
    for name in ("proximal", "memory_weight"):
        if not 0 <= getattr(settings, name) < float("inf"):
            raise RangeError(f"{name} must be at least 0 and finite, got {getattr(settings, name)}")
    if settings.sharded and settings.same_id == "positive":
        raise ConfigError("a sharded queue knows one positive a query; take same_id = masked or negative")
