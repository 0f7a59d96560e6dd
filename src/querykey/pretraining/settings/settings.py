"""How an encoder is pretrained: settings, and what they become for the images and the machine at hand."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from querykey.data.augment.views import Views, view_preset
from querykey.encoders.backbones import Stem
from querykey.encoders.norm.batchnorm import BatchNormKind
from querykey.encoders.projection import HeadKind, LastNorm
from querykey.errors import ConfigError
from querykey.losses.by_name import LossName, current_name
from querykey.losses.streaming import current_form
from querykey.pretraining.settings.methods import PRESETS, DictionarySettings, Method, defaults_of

__all__ = ["LENGTHS", "OPTIMIZERS", "OptimizerName", "PretrainSettings", "Recipe", "asked_settings"]

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

LENGTHS = ("minutes", "epochs", "steps")
"""Each says how long a run is."""

LEAST_SIDE = 8
"""Of an image and of a view in pixels."""

SMALL = 64
"""Images below this are small: no blur, the small stem, and views of three quarters of their size."""


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(DictionarySettings):
    """All settings of a pretraining; None is chosen by `resolve_settings` or measured.

    What belongs to dictionaries is in `DictionarySettings`. The defaults here are SimCLR's; `of` has
    those of each method.

    Args:
        method: See `METHODS`.
        backbone: `small_cnn`, `small_cnn:WIDTH`, `small_cnn:WIDTHxDEPTH`, `timm:NAME`, `torchvision:NAME`
            or `module:factory`.
        stem: "small" (3x3, no pooling), "plain", or "auto": small below 64 pixels.
        init: A file of weights to start from; None: random ones.
        head: "none", "linear" or "mlp": the projection head g.
        head_layers: Layers of an MLP, 2 or 3.
        head_hidden: Width between them; None: that of h.
        head_dim: Width of z.
        head_batch_norm: Whether the head's layers are batch-normed.
        head_last_norm: That of the last layer: "scale", "plain" or "none"; see `ProjectionHead`.
        batch_norm: "device", "global" (over all processes), "layer" or "split".
        batch_norm_groups: Groups of a split batch norm.
        image_size: Pixels of a side at evaluation; None: the images' own, at most 224.
        view_size: Pixels of a side of a view; None: three quarters of image_size below 64 pixels,
            else image_size.
        views: A preset's name, or "auto" for the images at hand.
        view_options: Fields of `Views` that differ from the preset.
        second_view_options: Fields in which the second view of an image differs from the first.
        view_strength: Of the colour jitter; None: the preset's.
        loss: A key of `querykey.losses.by_name.LOSSES`.
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
        seed: Random seed.
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
    head_last_norm: LastNorm = "scale"
    batch_norm: BatchNormKind = "device"
    batch_norm_groups: int = 8
    image_size: int | None = None
    view_size: int | None = None
    views: str = "auto"
    view_options: Mapping[str, Any] = field(default_factory=dict)
    second_view_options: Mapping[str, Any] = field(default_factory=dict)
    view_strength: float | None = None
    loss: LossName = "info_nce"
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", current_name(self.loss))

    @classmethod
    def of(cls, method: str, **given: Any) -> "PretrainSettings":
        """What was given, on the defaults of a method.

        Args:
            method: See `METHODS`.
            **given: Settings by name.

        Returns:
            The settings.

        Raises:
            ConfigError: If the method is not known, or it has no such setting.
        """
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(given) - set(known)):
            raise ConfigError(f"pretrain has no setting {unknown[0]!r}; there are {', '.join(known)}")
        return cls(**defaults_of(method, given))

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for a run file."""
        return asdict(self) | {
            "loss_options": dict(self.loss_options),
            "view_options": dict(self.view_options),
            "second_view_options": dict(self.second_view_options),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PretrainSettings":
        """Back from a run file; keys that are not known are left out."""
        known = {f.name for f in fields(cls)}
        read = {name: value for name, value in values.items() if name in known}
        if "loss" in read:
            read["loss"] = current_name(read["loss"], warn=False)
        if options := read.get("loss_options"):
            read["loss_options"] = {
                key: current_form(value, warn=False) if key == "form" else value
                for key, value in options.items()
            }
        return cls(**read)

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

    def make_second_views(self, channels: int) -> Views:
        """Those of the second view of an image.

        Args:
            channels: Of an image.

        Returns:
            The `Views`; `make_views` where the second view does not differ.
        """
        return Views.from_dict(asdict(self.make_views(channels)) | dict(self.second_view_options))


def asked_settings(method: str | None, preset: str | None, given: Mapping[str, Any]) -> PretrainSettings:
    """What a user asked for, before anything is resolved.

    Args:
        method: See `METHODS`; None: the preset's, else "simclr".
        preset: One of `PRESETS`, or None.
        given: Settings by name; they win over the preset's.

    Returns:
        The settings.

    Raises:
        ConfigError: If a name is not known, or preset and method contradict each other.
    """
    if preset is None:
        return PretrainSettings.of(method or "simclr", **given)
    if preset not in PRESETS:
        raise ConfigError(f"preset {preset!r} is not known; there are {', '.join(PRESETS)}")
    recipe = dict(PRESETS[preset])
    own = recipe.pop("method")
    if method not in (None, own):
        raise ConfigError(f"preset {preset} is a recipe of {own}, and method is {method}; give one of them")
    if any(given.get(name) is not None for name in LENGTHS):
        recipe = {name: value for name, value in recipe.items() if name not in LENGTHS}
    return PretrainSettings.of(own, **recipe | dict(given))
