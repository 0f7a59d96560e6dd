"""How an encoder is pretrained: settings, and what they become for the images and the machine at hand."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from querykey.data.views import Views, view_preset
from querykey.encoders.backbones import Stem
from querykey.encoders.batchnorm import BatchNormKind
from querykey.encoders.projection import HeadKind
from querykey.errors import ConfigError, RangeError
from querykey.optim import scaled_learning_rate
from querykey.training.view_objectives import ViewLossName, takes_temperature, view_objective

__all__ = ["OPTIMIZERS", "OptimizerName", "PretrainSettings", "Recipe", "resolve_settings"]

Method = Literal["simclr"]
OptimizerName = Literal["sgd", "adamw", "lars"]
Rule = Literal["linear", "square_root", "none"]
Precision = Literal["auto", "float32", "bfloat16"]
Layout = Literal["auto", "contiguous", "channels_last"]


@dataclass(frozen=True)
class Recipe:
    """An optimiser's defaults.

    Args:
        base: Learning rate at a batch of 256 under the rule.
        rule: How the rate grows with the batch.
        weight_decay: Of weights; batch norm and biases have none.
    """

    base: float
    rule: Rule
    weight_decay: float


OPTIMIZERS: dict[OptimizerName, Recipe] = {
    "sgd": Recipe(0.2, "linear", 5e-4),
    "adamw": Recipe(2e-3, "linear", 0.05),
    "lars": Recipe(0.3, "linear", 1e-6),
}
"""SGD and AdamW: found with `small_cnn` on CIFAR-10 (docs/pretraining.md). LARS: SimCLR's own."""

TEMPERATURE = 0.2
"""SimCLR's authors for small batches of CIFAR-10 (github.com/google-research/simclr, issue 166)."""

CROPS = (0.2, 1.0)
"""Of small images, unless a preset is named: in runs of minutes better than the papers' 0.08 to 1."""

LEAST_SIDE = 8
"""Of an image and of a view in pixels."""

SMALL = 64
"""Images below this are small: no blur, the small stem, and views of three quarters of their size."""


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Everything a run of pretraining is told; None is chosen by `resolve_settings` or measured.

    Args:
        method: "simclr".
        backbone: `small_cnn`, `small_cnn:WIDTH`, `timm:NAME`, `torchvision:NAME` or `module:factory`.
        stem: "small" (3x3, no pooling), "plain", or "auto": small below 64 pixels.
        init: A file of weights to start from; None: random ones.
        head: "none", "linear" or "mlp": the projection head g.
        head_layers: Layers of an MLP, 2 or 3.
        head_hidden: Width between them; None: that of h.
        head_dim: Width of z.
        head_batch_norm: Whether the head's layers are batch-normed.
        batch_norm: "device", "global" (over all processes), "layer" or "split".
        batch_norm_groups: Groups of a split batch norm.
        image_size: Pixels of a side at evaluation; None: the images' own, at most 224.
        view_size: Pixels of a side of a view; None: three quarters of image_size below 64 pixels,
            else image_size.
        views: A preset's name, or "auto" for the images at hand.
        view_options: Fields of `Views` that differ from the preset.
        view_strength: Of the colour jitter; None: the preset's.
        loss: See `ViewLossName`.
        loss_options: The loss's own keyword arguments.
        temperature: Of the loss, where it has one.
        learned_temperature: Whether it is learned, starting there.
        normalised: Whether z is scaled to length 1 before it is looked up.
        optimizer: "sgd" (Nesterov), "adamw" or "lars".
        learning_rate: Peak rate; None: the optimiser's base rate under `rule`.
        rule: "linear" (base x B / 256), "square_root" (base x sqrt(B / 256)) or "none"; None: the
            optimiser's.
        weight_decay: None: the optimiser's.
        sgd_momentum: Of SGD and LARS.
        warm_up: Share of the steps in which the rate rises.
        batch_size: Images a step; each gives two views.
        chunks: Parts in which a step is computed, with the whole batch's exact gradient.
        checkpointing: Whether a chunk's activations are computed again instead of kept.
        epochs: Length of the run; None where `minutes` says it.
        minutes: Length of the run in wall-clock time; it becomes a number of steps before step 0.
        steps: Length of the run in steps; wins over both.
        held_out: Labelled images that training does not see and the online kNN asks for.
        looks: How often in a run the monitors look.
        precision: "float32", "bfloat16", or "auto": whichever a step is measured faster with.
        layout: "contiguous", "channels_last", or "auto" likewise.
        seed: Everything random is keyed by it.
    """

    method: Method = "simclr"
    backbone: str = "small_cnn"
    stem: Stem = "auto"
    init: str | None = None
    head: HeadKind = "mlp"
    head_layers: int = 2
    head_hidden: int | None = None
    head_dim: int = 128
    head_batch_norm: bool = True
    batch_norm: BatchNormKind = "device"
    batch_norm_groups: int = 8
    image_size: int | None = None
    view_size: int | None = None
    views: str = "auto"
    view_options: Mapping[str, Any] = field(default_factory=dict)
    view_strength: float | None = None
    loss: ViewLossName = "nt_xent"
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = TEMPERATURE
    learned_temperature: bool = False
    normalised: bool = True
    optimizer: OptimizerName = "sgd"
    learning_rate: float | None = None
    rule: Rule | None = None
    weight_decay: float | None = None
    sgd_momentum: float = 0.9
    warm_up: float = 0.1
    batch_size: int = 256
    chunks: int = 1
    checkpointing: bool = False
    epochs: float | None = None
    minutes: float | None = None
    steps: int | None = None
    held_out: int = 1000
    looks: int = 10
    precision: Precision = "auto"
    layout: Layout = "auto"
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for a run file."""
        return asdict(self) | {
            "loss_options": dict(self.loss_options),
            "view_options": dict(self.view_options),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PretrainSettings":
        """Back from a run file; keys that are not known are left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def make_views(self, channels: int) -> Views:
        """The views that resolved settings describe.

        Args:
            channels: Of an image.

        Returns:
            The `Views`.

        Raises:
            ConfigError: If a view option does not exist.
        """
        assert self.view_size is not None
        views = view_preset(self.views, size=self.view_size, channels=channels, strength=self.view_strength)
        return Views.from_dict(asdict(views) | dict(self.view_options))


def resolve_settings(
    settings: PretrainSettings, *, images: int, channels: int, side: int | None
) -> PretrainSettings:
    """Fill in what was left open for these images; only what must be measured stays None or "auto".

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
    batch = min(settings.batch_size, images)
    rate = settings.learning_rate
    if rate is None:
        rate = scaled_learning_rate(batch, rule=rule, base=_base(recipe, rule))
    preset = settings.views
    options = dict(settings.view_options)
    if preset == "auto":
        preset = "grayscale" if channels == 1 else ("small_images" if size < SMALL else "simclr")
        if preset == "small_images":
            options.setdefault("crop_scale", CROPS)
    length = {name: getattr(settings, name) for name in ("minutes", "epochs", "steps")}
    if all(value is None for value in length.values()):
        length["minutes"] = 10.0
    return replace(
        settings,
        **length,
        image_size=size,
        view_size=settings.view_size or (max(LEAST_SIDE, math.ceil(0.75 * size)) if size < SMALL else size),
        views=preset,
        view_options=options,
        batch_size=batch,
        chunks=min(settings.chunks, batch),
        learning_rate=rate,
        rule=rule,
        weight_decay=recipe.weight_decay if settings.weight_decay is None else settings.weight_decay,
        held_out=min(settings.held_out, images // 10),
    )


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
_SHARES = ("warm_up", "sgd_momentum")
_CHOICES = {
    "head": HeadKind, "batch_norm": BatchNormKind, "stem": Stem, "optimizer": OptimizerName, "rule": Rule,
    "precision": Precision, "layout": Layout, "loss": ViewLossName,
}  # fmt: skip
_ABOVE_ZERO = ("temperature", "learning_rate", "epochs", "minutes", "view_strength")


def _check(settings: PretrainSettings) -> None:
    _check_choices(settings)
    for name, least in _AT_LEAST.items():
        value = getattr(settings, name)
        if value is not None and not value >= least:
            reason = ": a view needs others to be told from" if name == "batch_size" else ""
            raise RangeError(f"{name} must be at least {least}, got {value}{reason}")
    for name in _ABOVE_ZERO:
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise RangeError(f"{name} must be > 0 and finite, got {value}")
    for name in _SHARES:
        if not 0 <= getattr(settings, name) < 1:
            raise RangeError(f"{name} must be from 0 to below 1, got {getattr(settings, name)}")
    if settings.head_layers not in (2, 3):
        raise RangeError(f"head_layers must be 2 or 3, got {settings.head_layers}; for 1 use head linear")
    if settings.weight_decay is not None and not 0 <= settings.weight_decay < math.inf:
        raise RangeError(f"weight_decay must be at least 0, got {settings.weight_decay}")
    view_objective(settings.loss, settings.temperature, **settings.loss_options)
    _check_together(settings)


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
    given = [name for name in ("minutes", "epochs", "steps") if getattr(settings, name) is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} each say how long to train; give one of them")
    if settings.learned_temperature and not takes_temperature(settings.loss):
        raise ConfigError(f"the loss {settings.loss} takes no temperature, so none can be learned")
    if settings.chunks > 1 and settings.batch_norm == "split":
        raise ConfigError("chunks cannot be cut across split batch norm's groups; use chunks = 1")
    if settings.chunks > 1 and settings.checkpointing and settings.batch_norm != "layer":
        raise ConfigError(
            "checkpointing with chunks is for networks without batch norm (batch_norm = layer); with it, "
            "chunks drop activations by themselves; give one of them"
        )
