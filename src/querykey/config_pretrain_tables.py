"""The tables of a pretraining as data: network, head, views, loss, dictionary, optimiser."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from querykey.config_parts import AtLeastTwo, Form, NonNegative, Positive, Strict

__all__ = [
    "BackboneTable", "BatchNormTable", "DictionaryTable", "HeadTable", "KeyEncoderTable", "LossTable",
    "OptimizerTable", "SecondViewTable", "Side", "ViewsTable",
]  # fmt: skip

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
            "contrastive", "multi_similarity",
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
