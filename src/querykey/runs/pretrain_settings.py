"""A pretraining as data: TOML and `--set` in, frozen and checked settings out, without torch.

    data = "photos"
    method = "simclr"
    minutes = 10
    backbone = { name = "torchvision:resnet18", stem = "small" }
    loss = { kind = "decoupled", temperature = 0.1 }
    optimizer = { kind = "lars", rule = "square_root" }

What is left out is the run's own to choose or to measure; RUN/run.json holds what it chose.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from querykey.config.errors import Grammar
from querykey.config.parsing import check, read_raw
from querykey.runs.adapter_tables import AtLeastTwo, Count, Form, NonNegative, Positive, Strict

__all__ = [
    "BackboneTable",
    "BatchNormTable",
    "DictionaryTable",
    "HeadTable",
    "KeyEncoderTable",
    "LossTable",
    "OptimizerTable",
    "PretrainRun",
    "SecondViewTable",
    "Side",
    "ViewsTable",
    "describe_pretrain_settings",
    "parse_pretrain_run",
    "read_pretrain_run",
]

Probability = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Side = Annotated[int, Field(ge=8, le=4096)]
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]


class BackboneTable(Strict):
    """The network that is trained."""

    name: str | None = None
    stem: Literal["auto", "small", "plain"] | None = None
    init: str | None = None


class HeadTable(Strict):
    """The projection head on top of it, which is thrown away afterwards."""

    kind: Literal["none", "linear", "mlp"] | None = None
    layers: Literal[2, 3] | None = None
    hidden: Positive | None = None
    dim: Positive | None = None
    batch_norm: bool | None = None
    last_norm: Literal["scale", "plain", "none"] | None = None


class BatchNormTable(Strict):
    """Over which rows batch norm takes its statistics."""

    kind: Literal["device", "global", "layer", "split"] | None = None
    groups: Positive | None = None


class SecondViewTable(Strict):
    """In what the second view of an image differs from the first."""

    crop_scale: Pair | None = None
    crop_ratio: Pair | None = None
    flip: Probability | None = None
    jitter: Annotated[list[float], Field(min_length=4, max_length=4)] | None = None
    jitter_probability: Probability | None = None
    grayscale: Probability | None = None
    blur: Probability | None = None
    blur_sigma: Pair | None = None
    solarize: Probability | None = None
    cutout: Probability | None = None
    sobel: Probability | None = None
    noise: Probability | None = None
    rotate: Probability | None = None


class ViewsTable(SecondViewTable):
    """How an image becomes two views: a preset, and what differs from it."""

    preset: Literal["auto", "simclr", "moco_v1", "moco_v2", "small_images", "grayscale", "digits"] | None = (
        None
    )
    size: Side | None = None
    strength: PositiveFloat | None = None


class LossTable(Strict):
    """The loss; each kind takes the options that its function has."""

    kind: (
        Literal[
            "nt_xent", "info_nce", "decoupled", "debiased", "hard_negative", "nt_logistic", "margin",
            "contrastive", "triplet", "multi_similarity", "nca", "circle",
        ]
        | None
    ) = None  # fmt: skip
    temperature: PositiveFloat | None = None
    learned_temperature: bool | None = None
    normalised: bool | None = None
    sigma: PositiveFloat | None = None
    tau_plus: Momentum | None = None
    beta: NonNegative | None = None
    margin: NonNegative | None = None
    positive_margin: float | None = None
    negative_margin: float | None = None
    mining: Literal["all", "hard", "semi_hard"] | None = None
    form: Form | None = None


class DictionaryTable(Strict):
    """What queries are looked up in: a queue, a memory bank or a cross-batch memory."""

    capacity: Positive | None = None
    start: Literal["empty", "random"] | None = None
    same_id: Literal["masked", "negative", "positive"] | None = None
    contrast: Literal["softmax", "info_nce", "nce"] | None = None
    negatives: Positive | None = None
    momentum: Momentum | None = None
    proximal: NonNegative | None = None
    weight: NonNegative | None = None
    warm_up: Momentum | None = None
    prefill: bool | None = None
    align: Literal["none", "moments", "kalman"] | None = None
    items_per_class: AtLeastTwo | None = None
    sharded: bool | None = None


class KeyEncoderTable(Strict):
    """What encodes keys."""

    momentum: Probability | None = None
    schedule: Literal["constant", "cosine"] | None = None
    symmetric: bool | None = None
    shuffle: bool | None = None
    separate: bool | None = None
    predictor_hidden: Positive | None = None


class OptimizerTable(Strict):
    """The optimiser. learning_rate is the rate as it is used; rule computes one from the batch."""

    kind: Literal["sgd", "adamw", "lars"] | None = None
    learning_rate: PositiveFloat | None = None
    rule: Literal["linear", "square_root", "none"] | None = None
    weight_decay: NonNegative | None = None
    sgd_momentum: Momentum | None = None
    warm_up: Momentum | None = None


class PretrainRun(Strict):
    """All settings of one pretraining; None is the run's own default.

    Args:
        data: The images, as `querykey help sources` says.
        method: How it learns; simclr if nothing is said.
        preset: A whole recipe of a paper's authors, which has a method of its own.
        minutes: Wall-clock length; becomes a number of steps before the first.
        epochs: Length in passes over the data, instead.
        steps: Length in steps, instead.
        batch_size: Images a step.
        chunks: Parts in which a step is computed, exactly; memory falls, time grows.
        checkpointing: Whether activations are computed again backward instead of kept.
        image_size: Pixels of a side at evaluation.
        held_out: Labelled images kept for the online kNN.
        looks: How often in a run the monitors look.
        precision: auto measures.
        layout: auto measures.
        save_every: Seconds between two checkpoints.
        keep: How many checkpoints are kept.
        seed: Random seed.
        backbone: See `BackboneTable`; and so on.
    """

    data: str | None = None
    method: Literal["simclr", "moco", "moco-v2", "moco-v3", "memory-bank", "end-to-end", "xbm"] | None = None
    preset: Literal["moco-cifar"] | None = None
    minutes: PositiveFloat | None = None
    epochs: PositiveFloat | None = None
    steps: Positive | None = None
    batch_size: Positive | None = None
    chunks: Positive | None = None
    checkpointing: bool | None = None
    image_size: Side | None = None
    held_out: Count | None = None
    looks: Count | None = None
    precision: Literal["auto", "float32", "bfloat16"] | None = None
    layout: Literal["auto", "contiguous", "channels_last"] | None = None
    save_every: NonNegative | None = None
    keep: Positive | None = None
    seed: Count | None = None
    backbone: BackboneTable = BackboneTable()
    head: HeadTable = HeadTable()
    batch_norm: BatchNormTable = BatchNormTable()
    views: ViewsTable = ViewsTable()
    second_view: SecondViewTable = SecondViewTable()
    loss: LossTable = LossTable()
    dictionary: DictionaryTable = DictionaryTable()
    key_encoder: KeyEncoderTable = KeyEncoderTable()
    optimizer: OptimizerTable = OptimizerTable()

    @model_validator(mode="before")
    @classmethod
    def _fill_kinds(cls, run: Any) -> Any:
        """`--set loss=decoupled` names a kind, as `--set backbone=timm:resnet18` names a network."""
        if not isinstance(run, dict):
            return run
        return run | {
            table: {first: run[table]} for table, first in _FIRST.items() if isinstance(run.get(table), str)
        }

    def as_settings(self) -> dict[str, Any]:
        """What was said, as keyword arguments of `PretrainSettings`.

        Returns:
            Only what is not None.
        """
        plain = self.model_dump(exclude_none=True)
        tables = {name: plain.pop(name) for name in _TABLES}
        said: dict[str, Any] = plain
        backbone, head, norm = tables["backbone"], tables["head"], tables["batch_norm"]
        said |= {("backbone" if name == "name" else name): value for name, value in backbone.items()}
        said |= {("head" if name == "kind" else f"head_{name}"): value for name, value in head.items()}
        said |= {("batch_norm" if name == "kind" else f"batch_norm_{name}"): v for name, v in norm.items()}
        views, loss, optimizer = tables["views"], tables["loss"], tables["optimizer"]
        renamed = {"preset": "views", "size": "view_size", "strength": "view_strength"}
        said |= {renamed[name]: views.pop(name) for name in list(views) if name in renamed}
        said |= {name: loss.pop(name) for name in list(loss) if name in _OF_EVERY_LOSS}
        said |= {
            ("loss" if name == "kind" else name): loss.pop(name) for name in list(loss) if name == "kind"
        }
        said |= {("optimizer" if name == "kind" else name): value for name, value in optimizer.items()}
        said |= {_OF_DICTIONARIES.get(name, name): value for name, value in tables["dictionary"].items()}
        said |= {_OF_KEYS.get(name, name): value for name, value in tables["key_encoder"].items()}
        options = {"view_options": views, "second_view_options": tables["second_view"], "loss_options": loss}
        return said | {name: given for name, given in options.items() if given}


_FIRST = {
    "backbone": "name", "head": "kind", "batch_norm": "kind", "views": "preset", "loss": "kind",
    "optimizer": "kind",
}  # fmt: skip
"""The tables, and the key that a bare word stands for."""
_TABLES = (*_FIRST, "second_view", "dictionary", "key_encoder")
_OF_DICTIONARIES = {"momentum": "slot_momentum", "weight": "memory_weight", "warm_up": "memory_warm_up"}
_OF_KEYS = {"schedule": "momentum_schedule"}
_OF_EVERY_LOSS = ("temperature", "learned_temperature", "normalised")

_GRAMMAR = Grammar(
    root=PretrainRun,
    unions={},
    tables={
        "backbone": BackboneTable, "head": HeadTable, "batch_norm": BatchNormTable, "views": ViewsTable,
        "second_view": SecondViewTable, "loss": LossTable, "dictionary": DictionaryTable,
        "key_encoder": KeyEncoderTable, "optimizer": OptimizerTable,
    },
)  # fmt: skip


def read_pretrain_run(path: str | Path | None, settings: Sequence[str] = (), **options: Any) -> PretrainRun:
    """Read a run from a TOML file, options and `--set` settings; the later win.

    Args:
        path: A run file, or None for a run of defaults.
        settings: Each "a.b=value".
        **options: Settings that have their own option on the command line; None is not given.

    Returns:
        The checked run.

    Raises:
        MissingPathError: If there is no such file.
        ConfigError: If it is no TOML, or a setting has a fault; all faults are named.
    """
    raw = read_raw(path, settings, firsts=_FIRST, **options)
    return parse_pretrain_run(raw, name="the settings" if path is None else str(path))


def parse_pretrain_run(raw: Mapping[str, Any], *, name: str = "the settings") -> PretrainRun:
    """Check a run.

    Args:
        raw: Settings as nested tables.
        name: What to call them in a message.

    Returns:
        The checked run.

    Raises:
        ConfigError: Naming every fault with its dotted key.

    Example:
        >>> parse_pretrain_run({"minutes": 2, "loss": "decoupled"}).as_settings()
        {'minutes': 2.0, 'loss': 'decoupled'}
    """
    return check(PretrainRun, raw, grammar=_GRAMMAR, name=name)


def describe_pretrain_settings() -> str:
    """Every key of a run and what it may be.

    Returns:
        A line a key, of at most 80 characters; what is longer goes on below.
    """
    return "\n".join(
        fill(words, 80, initial_indent=f"{key:<24} ", subsequent_indent=25 * " ")
        for key, words in _GRAMMAR.rows()
    )
