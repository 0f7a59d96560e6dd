"""The settings of a pretraining: one tree for Python, TOML, `--set` and run.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Gt, Le

from querykey.config import settings as tree
from querykey.config.old_names import PRETRAINING
from querykey.config.ranges import (
    AtLeastTwo,
    Count,
    NonNegative,
    Positive,
    PositiveInt,
    Probability,
    ProbabilityBelowOne,
    Side,
)
from querykey.data.augment.views import Views, view_preset
from querykey.encoders.backbones import Stem
from querykey.encoders.norm.batchnorm import BatchNormKind
from querykey.encoders.projection import HeadKind, LastNorm
from querykey.losses.by_name import LossName, loss_options

__all__ = [
    "BackboneSettings",
    "BatchNormSettings",
    "DictionarySettings",
    "HeadSettings",
    "KeyEncoderSettings",
    "LossSettings",
    "Method",
    "OptimizerName",
    "OptimizerSettings",
    "PretrainSettings",
    "SecondViewSettings",
    "ViewSettings",
]

Method = Literal["simclr", "moco", "moco-v2", "moco-v3", "memory-bank", "end-to-end", "xbm"]
Contrast = Literal["softmax", "info_nce", "nce"]
Align = Literal["none", "moments", "kalman"]
OptimizerName = Literal["sgd", "adamw", "lars"]
LearningRateScaling = Literal["linear", "square_root", "none"]
Precision = Literal["auto", "float32", "bfloat16"]
Layout = Literal["auto", "contiguous", "channels_last"]
Length = Annotated[float, Gt(0), Le(10**9)]

TEMPERATURE = 0.2
"""SimCLR's authors for small batches of CIFAR-10 (github.com/google-research/simclr, issue 166)."""


def _loss_kinds() -> Mapping[str, Mapping[str, Any]]:
    """The keyword arguments of each loss but the temperature, which all have in common."""
    return {
        kind: {name: annotation for name, annotation in options.items() if name != "temperature"}
        for kind, options in loss_options(with_target=False).items()
    }


@cache
def _view_kinds() -> Mapping[str, Mapping[str, Any]]:
    hints = get_type_hints(Views, include_extras=True)
    return {"": {one.name: hints[one.name] for one in fields(Views) if one.name != "size"}}


_VIEW_OPTIONS = {"options": tree.Options(_view_kinds, by=None)}


@dataclass(frozen=True, kw_only=True)
class BackboneSettings:
    """The network that is trained.

    Args:
        name: `small_cnn`, `small_cnn:WIDTH`, `small_cnn:WIDTHxDEPTH`, `timm:NAME`, `torchvision:NAME`
            or `module:factory`.
        stem: "small" (3x3, no pooling), "plain", or "auto": small below 64 pixels.
        init: A file of weights to start from; None: random ones.
    """

    name: str = "small_cnn"
    stem: Stem = "auto"
    init: str | None = None


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """The projection head g, which is removed after training.

    Args:
        kind: "none", "linear" or "mlp".
        layers: Layers of an MLP, 2 or 3; for 1 take kind linear.
        hidden: Width between them; None: that of h.
        dim: Width of z.
        batch_norm: Whether its layers are batch-normed.
        last_norm: Batch norm of the last layer: "scale", "plain" or "none"; see `ProjectionHead`.
    """

    kind: HeadKind = "mlp"
    layers: Literal[2, 3] = 2
    hidden: PositiveInt | None = None
    dim: PositiveInt = 128
    batch_norm: bool = True
    last_norm: LastNorm = "scale"


@dataclass(frozen=True, kw_only=True)
class BatchNormSettings:
    """Over which rows batch norm takes its statistics.

    Args:
        kind: "device", "global" (over all processes), "layer" or "split".
        groups: Groups of a split batch norm.
    """

    kind: BatchNormKind = "device"
    groups: PositiveInt = 8


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """How an image becomes two views: a preset, and what differs from it.

    Args:
        preset: A preset's name, or "auto" for the images at hand.
        size: Pixels of a side; None: three quarters of image_size below 64 pixels, else image_size.
        strength: Of the colour jitter; None: the preset's.
        options: Fields of `Views` that differ from the preset.
    """

    preset: Literal["auto", "simclr", "moco_v1", "moco_v2", "small_images", "grayscale", "digits"] = "auto"
    size: Side | None = None
    strength: Positive | None = None
    options: Mapping[str, Any] = field(default_factory=dict, metadata=_VIEW_OPTIONS)


@dataclass(frozen=True, kw_only=True)
class SecondViewSettings:
    """In what the second view of an image differs from the first.

    Args:
        options: Fields of `Views`.
    """

    options: Mapping[str, Any] = field(default_factory=dict, metadata=_VIEW_OPTIONS)


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The loss.

    Args:
        kind: A key of `querykey.losses.by_name.LOSSES` that needs no target.
        temperature: Of a loss that has one.
        learned_temperature: Whether it is learned, starting there.
        normalised: Whether z is scaled to length 1 before it is looked up.
        options: The other keyword arguments of the loss.
    """

    kind: LossName = "info_nce"
    temperature: Positive = TEMPERATURE
    learned_temperature: bool = False
    normalised: bool = True
    options: Mapping[str, Any] = field(default_factory=dict, metadata={"options": tree.Options(_loss_kinds)})


@dataclass(frozen=True, kw_only=True)
class DictionarySettings:
    """What queries are looked up in; each setting belongs to some methods only.

    Args:
        capacity: Rows of a queue or a memory; None: a power of two of at most a tenth of the images for
            a queue, and all images for a memory, up to the papers' 65,536 and 8,192.
        start: A queue's first rows: "empty", or "random" ones, which are the paper's.
        same_id: What an old key of a query's own image is: "masked" (neither), "negative" (the paper's)
            or "positive".
        contrast: Of a memory bank: "softmax" over all slots, "info_nce" or "nce" against a sample.
        negatives: Of that sample.
        momentum: Of a slot of the bank.
        proximal: Weight of the squared distance of an embedding from its slot.
        weight: Of the loss over a cross-batch memory; that in the batch weighs 1.
        warm_up: Share of the steps before that memory is used.
        prefill: Whether that memory is filled by the warm encoder then; and whether a memory bank starts
            from what the untrained encoder makes of each image, or from the paper's random rows, which
            are what the first epoch then learns.
        align: Whether its moments are brought to those of the batch: "none", "moments" or "kalman".
        items_per_class: In a batch, where labels make the pairs.
        sharded: Whether each of several processes stores and scores its shard of a queue, a bank or a
            memory, instead of all of it.
    """

    capacity: PositiveInt | None = None
    start: Literal["empty", "random"] = "empty"
    same_id: Literal["masked", "negative", "positive"] = "masked"
    contrast: Contrast = "softmax"
    negatives: PositiveInt = 4096
    momentum: ProbabilityBelowOne = 0.5
    proximal: NonNegative = 0.0
    weight: NonNegative = 1.0
    warm_up: ProbabilityBelowOne = 0.1
    prefill: bool = True
    align: Align = "none"
    items_per_class: AtLeastTwo = 4
    sharded: bool = False


@dataclass(frozen=True, kw_only=True)
class KeyEncoderSettings:
    """What encodes keys; each setting belongs to some methods only.

    Args:
        momentum: Of the key encoder.
        schedule: "constant", or "cosine" up to 1 at the end.
        symmetric: Whether each view is a query once, so that a step has both directions.
        shuffle: Whether keys are encoded in another order: with split batch norm, or over processes,
            their sub-batches are then not those of the queries.
        separate: Whether keys have an encoder of their own, which is trained too.
        predictor_hidden: Width inside the prediction head.
    """

    momentum: Probability = 0.99
    schedule: Literal["constant", "cosine"] = "constant"
    symmetric: bool = False
    shuffle: bool = False
    separate: bool = False
    predictor_hidden: PositiveInt | None = None


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimizer.

    Args:
        kind: "sgd" (Nesterov), "adamw" or "lars".
        learning_rate: Peak rate; None: the optimizer's base rate under `lr_scaling`.
        lr_scaling: "linear" (base x B / 256), "square_root" (base x sqrt(B / 256)) or "none"; None: the
            optimizer's.
        weight_decay: None: the optimizer's.
        sgd_momentum: Of SGD and LARS.
        warm_up: Share of the steps in which the rate rises.
    """

    kind: OptimizerName = "sgd"
    learning_rate: Positive | None = None
    lr_scaling: LearningRateScaling | None = None
    weight_decay: NonNegative | None = None
    sgd_momentum: ProbabilityBelowOne = 0.9
    warm_up: ProbabilityBelowOne = 0.1


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """All settings of a pretraining; None is chosen by `resolve_settings` or measured.

    The defaults here are SimCLR's; `of` has those of each method.

    Args:
        method: See `METHODS`.
        epochs: Length of the run in passes over the data; None where `minutes` says it.
        minutes: Length of the run in wall-clock time; it becomes a number of steps before step 0.
        steps: Length of the run in steps; wins over both.
        batch_size: Images a step; each gives two views.
        chunks: Parts in which a step is computed, with the whole batch's exact gradient.
        checkpointing: Whether a chunk's activations are recomputed instead of stored.
        image_size: Pixels of a side at evaluation; None: the images' own, at most 224.
        held_out: Labelled images that are not trained on, the queries of the online kNN.
        num_evals: Evaluations in a run.
        precision: "float32", "bfloat16", or "auto": whichever a step is measured faster with.
        layout: "contiguous", "channels_last", or "auto" likewise.
        seed: Random seed.
        backbone: See `BackboneSettings`; and so on.
    """

    method: Method = "simclr"
    epochs: Length | None = None
    minutes: Length | None = None
    steps: PositiveInt | None = None
    batch_size: AtLeastTwo = 256
    chunks: PositiveInt = 1
    checkpointing: bool = False
    image_size: Side | None = None
    held_out: Count = 1000
    num_evals: Count = 10
    precision: Precision = "auto"
    layout: Layout = "auto"
    seed: Count = 0
    backbone: BackboneSettings = BackboneSettings()
    head: HeadSettings = HeadSettings()
    batch_norm: BatchNormSettings = BatchNormSettings()
    views: ViewSettings = ViewSettings()
    second_view: SecondViewSettings = SecondViewSettings()
    loss: LossSettings = LossSettings()
    dictionary: DictionarySettings = DictionarySettings()
    key_encoder: KeyEncoderSettings = KeyEncoderSettings()
    optimizer: OptimizerSettings = OptimizerSettings()

    @classmethod
    def make(cls, given: Mapping[str, Any]) -> "PretrainSettings":
        """What was given, on the defaults of SimCLR.

        Args:
            given: Tables, dotted keys and bare words: {"head.dim": 8}, {"head": {"dim": 8}}, {"head": "mlp"}.

        Raises:
            ConfigError: If there is no such setting.
        """
        return tree.make(cls, tree.current(given, PRETRAINING))

    def as_dict(self) -> dict[str, Any]:
        """As nested tables of plain values, for run.json."""
        return tree.as_tables(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PretrainSettings":
        """Back from run.json, of this version or of 0.1; keys that do not exist are left out."""
        return tree.make(cls, tree.current(values, PRETRAINING, warn=False), ignore_unknown=True)

    def changed(self, given: Mapping[str, Any]) -> "PretrainSettings":
        """With some settings changed.

        Args:
            given: As `make` takes it.
        """
        return tree.changed(self, given)

    def make_views(self, channels: int) -> Views:
        """The views that resolved settings describe.

        Args:
            channels: Of an image.

        Returns:
            The `Views`.

        Raises:
            ConfigError: If a view option does not exist.
        """
        chosen = self.views
        assert chosen.size is not None
        views = view_preset(chosen.preset, size=chosen.size, channels=channels, strength=chosen.strength)
        return Views.from_dict(asdict(views) | dict(chosen.options))

    def make_second_views(self, channels: int) -> Views:
        """Those of the second view of an image.

        Args:
            channels: Of an image.

        Returns:
            The `Views`; `make_views` where the second view does not differ.
        """
        return Views.from_dict(asdict(self.make_views(channels)) | dict(self.second_view.options))
