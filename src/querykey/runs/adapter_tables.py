"""The tables of a run: losses and memories by kind, selection and FC layer. None is the fit's own default."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat

from querykey.losses.streaming import current_form

__all__ = [
    "LARGEST", "NCA", "AtLeastTwo", "AutoLoss", "Circle", "Contrastive", "Count", "CrossBatch",
    "FCLayerSettings", "Form", "InBatch", "InfoNCE", "Loss", "Memory", "MultiSimilarity", "NonNegative",
    "Positive", "ScoreDifference", "ScoreDistillation", "Selection", "Strict", "Triplet",
]  # fmt: skip

Form = Annotated[Literal["auto", "dense", "chunked"], BeforeValidator(current_form)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
LARGEST = 2**31 - 1
"""Of a whole number: what counts rows, steps or images, and a seed, is far below."""
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[int, Field(gt=0, le=LARGEST)]
AtLeastTwo = Annotated[int, Field(ge=2, le=LARGEST)]


class Strict(BaseModel):
    """Frozen, and strict: no unknown key, no text for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class AutoLoss(Strict):
    """The loss that the fit chooses for the data."""

    kind: Literal["auto"] = "auto"
    temperature: PositiveFloat | None = None


class NCA(Strict):
    """Tell some positive key of each query from its negatives."""

    kind: Literal["nca"] = "nca"
    temperature: PositiveFloat | None = None


class InfoNCE(Strict):
    """Tell each query's positive keys from its others."""

    kind: Literal["info_nce"] = "info_nce"
    temperature: PositiveFloat | None = None
    form: Form | None = None


class ScoreDistillation(Strict):
    """Keep the frozen scores: their softmax over the memory is the target."""

    kind: Literal["score_distillation"] = "score_distillation"
    temperature: PositiveFloat | None = None
    target_temperature: PositiveFloat | None = None
    form: Form | None = None


class ScoreDifference(Strict):
    """Keep the frozen scores of the nearest rows: their absolute difference is the loss."""

    kind: Literal["score_difference"] = "score_difference"


class Contrastive(Strict):
    """Pull positives within one margin, push negatives beyond another."""

    kind: Literal["contrastive"] = "contrastive"
    positive_margin: float | None = None
    negative_margin: float | None = None
    distance: Literal["cosine", "euclidean"] | None = None


class Triplet(Strict):
    """A positive nearer than a negative by a margin."""

    kind: Literal["triplet"] = "triplet"
    margin: NonNegative | None = None
    mining: Literal["all", "hard", "semi_hard"] | None = None
    soft: bool | None = None


class MultiSimilarity(Strict):
    """Pairs weighed by their own score and by their neighbours'."""

    kind: Literal["multi_similarity"] = "multi_similarity"
    alpha: PositiveFloat | None = None
    beta: PositiveFloat | None = None
    base: Cosine | None = None
    epsilon: NonNegative | None = None


class Circle(Strict):
    """Pairs weighed by how far each is from its optimum."""

    kind: Literal["circle"] = "circle"
    margin: float | None = None
    gamma: PositiveFloat | None = None


class CrossBatch(Strict):
    """A memory of earlier batches; with room for all rows it is the whole data set."""

    kind: Literal["cross_batch"] = "cross_batch"
    capacity: Positive | None = None
    holds: Literal["features", "projections"] | None = None
    sharded: bool | None = None


class InBatch(Strict):
    """No memory: the batch alone."""

    kind: Literal["in_batch"] = "in_batch"


class Selection(Strict):
    """How many rows of the memory take part: drawn for all queries of a batch, and selected by each."""

    sampled: Count | None = None
    negatives: Count | None = None
    positives: Count | None = None
    neighbours: Positive | None = None


class FCLayerSettings(Strict):
    """The layer that is trained and what it starts from."""

    kind: Literal["linear", "residual", "two_layer"] | None = None
    start: Literal["auto", "pca", "pca_centred", "identity", "orthogonal"] = "auto"


Loss = (
    AutoLoss
    | NCA
    | InfoNCE
    | ScoreDistillation
    | ScoreDifference
    | Contrastive
    | Triplet
    | MultiSimilarity
    | Circle
)
Memory = CrossBatch | InBatch
