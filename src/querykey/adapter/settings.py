"""Settings of a fit, and how they are resolved for the data."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import reduce
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, Le

from querykey.config import settings as tree
from querykey.config.old_names import ADAPTER_FILES
from querykey.config.ranges import AtLeastTwo, Count, NonNegative, PositiveInt, whole_numbers
from querykey.encoders.heads import FCKind, Start
from querykey.errors import ConfigError, RangeError
from querykey.losses.by_name import LossName, loss_options, objective, takes_temperature
from querykey.runtime.codes import check_bits

__all__ = [
    "DRAWN",
    "LARGEST_WHOLE",
    "PARAMETERS",
    "PRESETS",
    "AdapterLoss",
    "AdapterSettings",
    "Candidates",
    "FCLayerSettings",
    "Ladder",
    "MemorySettings",
    "SelectionSettings",
    "Target",
    "Task",
    "TrainingPreset",
    "resolve",
]

Task = Literal["unlabelled", "labels", "pairs", "query side"]
Target = Literal["frozen", "centred", "soft_whitened"]
Candidates = str | tuple[str, ...]
Ladder = Literal["joint", "rotation", "sequential", "selection"]


class TrainingPreset(NamedTuple):
    """Values of settings that are None, one preset per trained candidate.

    Args:
        name: Name in reports.
        loss: Name of the loss.
        temperature: Temperature of a loss that has one.
        sampled: Rows drawn from the memory each step.
        negatives: Hardest negatives per query.
        positives: Farthest positives per query.
        rank: Rank of the trained change; None: full rank.
    """

    name: str
    loss: LossName
    temperature: float
    sampled: int = 0
    negatives: int = 0
    positives: int = 0
    rank: int | None = None


LARGEST_WHOLE, DRAWN = 16_384, 8_192
"""Rows up to which distillation uses all of them, and the number drawn each step beyond that."""

PRESETS: dict["Task", tuple[TrainingPreset, ...]] = {
    "unlabelled": (TrainingPreset("distillation", "score_distillation", 0.05),),
    "labels": (
        TrainingPreset("nca", "nca", 0.07, sampled=2048),
        TrainingPreset("hard negatives", "info_nce", 0.07, sampled=512, negatives=8, positives=4),
    ),
    "pairs": (
        TrainingPreset("info_nce", "info_nce", 0.05, sampled=2048),
        TrainingPreset("hard negatives", "info_nce", 0.05, negatives=32),
    ),
    "query side": (
        TrainingPreset("low rank", "info_nce", 0.05, sampled=2048, rank=16),
        TrainingPreset("info_nce", "info_nce", 0.05, sampled=2048),
    ),
}
"""With clean labels and fine classes, InfoNCE with all positives and the hardest negatives is better; with
broad or noisy classes NCA, for which one near positive is enough. Validation chooses. See docs/results.md."""


@dataclass(frozen=True, kw_only=True)
class AdapterLoss:
    """The pair loss.

    Args:
        kind: None: "score_distillation" without labels, "info_nce" for pairs; for labels "nca" or "info_nce",
            chosen by validation.
        options: The loss's own keyword arguments, such as temperature or margin.
    """

    kind: LossName | None = None
    options: Mapping[str, Any] = field(default_factory=dict, metadata={"options": tree.Options(loss_options)})


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """Where the keys come from.

    Args:
        kind: "cross_batch", or "in_batch" for none.
        capacity: Rows the memory stores at the most; at least all rows makes it the whole data set.
        holds: "features" of the frozen model, or "projections", which become stale.
        sharded: Whether each of several processes stores and scores a shard of the memory instead of all.
        prefill: Whether the memory is filled before the first step.
    """

    kind: Literal["cross_batch", "in_batch"] = "cross_batch"
    capacity: PositiveInt = 50_000
    holds: Literal["features", "projections"] = "features"
    sharded: bool = False
    prefill: bool = True


@dataclass(frozen=True, kw_only=True)
class SelectionSettings:
    """Which rows of the memory are used in a step. None: see `PRESETS`.

    Args:
        sampled: Rows drawn at random each step, for all queries.
        negatives: Hardest negatives per query; without labels the most similar rows.
        positives: Farthest positives per query (labels).
        neighbours: Most similar rows per query ("score_difference").
    """

    sampled: Count | None = None
    negatives: Count | None = None
    positives: Count | None = None
    neighbours: PositiveInt = 10


@dataclass(frozen=True, kw_only=True)
class FCLayerSettings:
    """The layer that is trained.

    Args:
        kind: "linear", "residual" or "two_layer"; None: residual for labels and pairs at full width, linear
            otherwise.
        start: "pca", "pca_centred", "identity" or "orthogonal"; None: the best of the closed forms.
    """

    kind: FCKind | None = None
    start: Start | None = None


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """All settings of a fit; None is chosen for the data.

    Args:
        dim: Width of the adapted rows; None: 64, or the width where that is less.
        dims: Sizes of the adapted rows, each a prefix of the largest; () for `dim` alone.
        bits: Bits per number of the codes of each size, 8 and 1; () for no codes.
        ladder: How several sizes are trained. "joint": the sum of their losses (Matryoshka). "rotation": the
            largest first, then a rotation of it, which leaves its scores unchanged, by the sum of the losses
            of the smaller ones. "sequential": a rotation for each smaller one in turn (SMRL). "selection":
            the same with selected dimensions instead of rotations (ADS). None: "rotation" for the target
            "frozen", else "joint".
        size_weights: Loss weights of sizes that are trained jointly: "equal", or "inverse" to the size.
        rotation: Rotation of 1-bit codes: "itq" (learned) or "random".
        both_sides: Whether the gradient goes through the keys too.
        side: "both": queries and documents are transformed. "query": documents stay as they are in the
            index, which needs dim = width.
        steps: Optimizer steps per run; None: chosen by the size of the data, at most 2,000 in all runs of a
            fit. 0: no training.
        batch_size: Items per step, clipped to the data.
        learning_rate: AdamW's peak rate; cosine to 0. None: 1e-3, or 3e-4 for data so few that they are
            validated in folds.
        weight_decay: Decay towards the candidate that training starts from, decoupled as AdamW's.
        classes: "known" if the adapter is used on the classes of the fit, "new" for other classes. None:
            chosen by known classes, and never worse on new ones.
        target: Rows whose scores a fit without labels preserves; None: "soft_whitened", or what the queries
            prefer.
        candidates: "all", "closed_form", or names of candidates or of families of them.
        validation_fraction: Fraction of the rows for validation if there are many; 0: none.
        n_iter_no_change: Evaluations (25 per run) without improvement before training stops.
        precision: Precision of the layer's matrix products in training: "float32"; "bfloat16", with weights,
            sums, scores and losses in float32; or "auto": bfloat16 if this machine is 15% faster with it.
        seed: Random seed.
        loss: See `AdapterLoss`; and so on.
    """

    dim: PositiveInt | None = None
    dims: tuple[int, ...] = ()
    bits: tuple[int, ...] = ()
    ladder: Ladder | None = None
    size_weights: Literal["equal", "inverse"] = "equal"
    rotation: Literal["itq", "random"] = "itq"
    both_sides: bool = True
    side: Literal["both", "query"] = "both"
    steps: Count | None = None
    batch_size: AtLeastTwo = 128
    learning_rate: NonNegative | None = None
    weight_decay: NonNegative = 1e-2
    classes: Literal["known", "new"] | None = None
    target: Target | None = None
    candidates: Candidates = "all"
    validation_fraction: Annotated[float, Ge(0), Le(0.5)] = 0.1
    n_iter_no_change: PositiveInt = 8
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    seed: Count = 0
    loss: AdapterLoss = AdapterLoss()
    memory: MemorySettings = MemorySettings()
    selection: SelectionSettings = SelectionSettings()
    fc: FCLayerSettings = FCLayerSettings()

    def __post_init__(self) -> None:
        if isinstance(self.candidates, str) and self.candidates not in ("all", "closed_form"):
            object.__setattr__(self, "candidates", (self.candidates,))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the adapted rows, largest first; `dim` alone without `dims`."""
        return self.dims or (int(self.dim or 0),)

    def weights(self, sizes: Sequence[int]) -> tuple[float, ...]:
        """Loss weights of sizes that are trained jointly, with mean 1."""
        raw = [1 / size if self.size_weights == "inverse" else 1.0 for size in sizes]
        return tuple(weight * len(raw) / sum(raw) for weight in raw)

    def as_dict(self) -> dict[str, Any]:
        """Nested dicts of plain values, for run.json."""
        return tree.as_tables(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AdapterSettings":
        """Read the settings of adapter.json, of this version or of 0.1; unknown keys are ignored."""
        return tree.make(cls, tree.current(values, ADAPTER_FILES, warn=False), ignore_unknown=True)

    @classmethod
    def from_parameters(cls, **parameters: Any) -> "AdapterSettings":
        """Make settings from the flat parameters of `Adapter`.

        Args:
            **parameters: Names of `PARAMETERS` to values.

        Example:
            >>> AdapterSettings.from_parameters(capacity=8, fc="linear").memory.capacity
            8
        """
        given = {PARAMETERS[name].removesuffix(".options"): value for name, value in parameters.items()}
        given |= {name: whole_numbers(given[name], name=name) for name in ("dims", "bits") if name in given}
        return tree.make(cls, given)

    def as_parameters(self) -> dict[str, Any]:
        """The parameters of `Adapter` that give these settings."""
        made = dict.fromkeys(PARAMETERS, self)
        return {name: reduce(getattr, PARAMETERS[name].split("."), value) for name, value in made.items()}


def _parameters() -> dict[str, str]:
    """Parameter names: the `kind` of a table has the name of the table, other settings their own."""
    made: dict[str, str] = {}
    for table in fields(AdapterSettings):
        if not is_dataclass(table.type):
            made[table.name] = table.name
            continue
        for one in fields(table.type):
            name = {"kind": table.name, "options": f"{table.name}_options"}.get(one.name, one.name)
            made[name] = f"{table.name}.{one.name}"
    return made


PARAMETERS = _parameters()
"""Parameters of `Adapter` to dotted names of settings."""


def resolve(
    settings: AdapterSettings, *, task: Task, items: int, width: int, preset: TrainingPreset | None = None
) -> AdapterSettings:
    """Fill in settings that are None and clip numbers to the data, with one warning for all of them.

    Args:
        settings: Settings as given.
        task: Type of the data.
        items: Rows to train on.
        width: Width of the frozen rows.
        preset: Values of settings that are None; None: the first preset of the task.

    Returns:
        Settings without None, except `start`, which validation chooses, and `steps`.

    Raises:
        RangeError: If a number is outside its range.
        ConfigError: If settings contradict each other or the task.
    """
    preset = PRESETS[task][0] if preset is None else preset
    _check(settings, task, width)
    dims = tuple(sorted(set(settings.dims), reverse=True))
    dim = settings.dim or (width if settings.side == "query" else min(64, width))
    dim = dims[0] if dims else dim
    for bits in settings.bits:
        for size in dims or (dim,):
            check_bits(size, bits)
    loss = settings.loss.kind or preset.loss
    options = dict(settings.loss.options)
    if takes_temperature(loss):
        options.setdefault("temperature", preset.temperature)
    if objective(loss, **options).keeps_scores != (task == "unlabelled"):
        need = (
            "keeps the frozen scores and takes no labels" if task != "unlabelled" else "needs labels or pairs"
        )
        raise ConfigError(f"the loss {loss} {need}; choose another, or leave it out")
    fc = settings.fc.kind or ("residual" if dim == width and task != "unlabelled" else "linear")
    lowered = _clipped(settings, preset, items)
    keeps_frozen = task == "unlabelled" and settings.target == "frozen"
    ladder = settings.ladder or ("rotation" if keeps_frozen else "joint")
    sizes = {"dim": dim, "dims": dims, "ladder": ladder}
    return tree.changed(settings, {**lowered, **sizes, "loss": {"kind": loss, **options}, "fc.kind": fc})


def _clipped(settings: AdapterSettings, preset: TrainingPreset, items: int) -> dict[str, int]:
    """Row counts, filled in and clipped to the data, with a warning if a given one is lowered."""
    selection = settings.selection
    given = {
        "batch_size": settings.batch_size, "selection.neighbours": selection.neighbours,
        "selection.sampled": selection.sampled, "selection.negatives": selection.negatives,
        "selection.positives": selection.positives,
    }  # fmt: skip
    presets = {f"selection.{name}": getattr(preset, name) for name in ("sampled", "negatives", "positives")}
    chosen: dict[str, int] = {
        name: presets[name] if value is None else value for name, value in given.items()
    }
    most = {name: items if name in ("batch_size", "selection.sampled") else items - 1 for name in chosen}
    clipped = {name: min(value, most[name]) for name, value in chosen.items()}
    lowered = [
        f"{name} {given[name]} to {value}"
        for name, value in clipped.items()
        if given[name] is not None and value < chosen[name] and name != "selection.sampled"
    ]
    if lowered:
        warnings.warn(f"{items} rows to train on: lowered {', '.join(lowered)}", UserWarning, stacklevel=5)
    return clipped


def _check(settings: AdapterSettings, task: Task, width: int) -> None:
    tree.require_valid(settings)
    if settings.dim is not None and settings.dim > width:
        raise RangeError(f"dim must be from 1 to the width of the features, {width}; got {settings.dim}")
    _check_sizes(settings, width)
    if settings.side == "query" and settings.dim not in (None, width):
        raise ConfigError(
            f'side="query" leaves documents {width} wide, so dim must be {width} or left out; '
            f"got {settings.dim}"
        )
    if settings.side == "query" and task != "query side":
        raise ConfigError('side="query" needs (query, document) pairs: use fit_pairs, or side="both"')
    if settings.memory.holds == "projections" and task != "labels":
        raise ConfigError('holds="projections" is for fits with labels; use holds="features"')
    if settings.memory.sharded:
        _check_sharded(settings, task)
    if settings.memory.kind == "cross_batch" and settings.memory.capacity < settings.batch_size:
        raise RangeError(
            f"capacity {settings.memory.capacity} is below batch_size {settings.batch_size}; "
            "raise the capacity or lower the batch size"
        )


def _check_sizes(settings: AdapterSettings, width: int) -> None:
    dims = settings.dims
    if dims and not all(1 <= size <= width for size in dims):
        raise RangeError(f"dims must be from 1 to the width of the features, {width}; got {list(dims)}")
    if dims and settings.dim not in (None, max(dims)):
        raise ConfigError(
            f"dim={settings.dim} and dims={list(dims)}: the largest of dims is the width, so leave out dim"
        )
    if settings.side == "query" and dims and dims != (width,):
        raise ConfigError(
            f'side="query" leaves documents {width} wide, so dims must be left out; got {list(dims)}'
        )


def _check_sharded(settings: AdapterSettings, task: Task) -> None:
    if settings.memory.kind == "in_batch":
        raise ConfigError('memory="in_batch" has no rows to shard; leave out sharded, or the memory')
    if task == "unlabelled" and settings.loss.options.get("form") in ("chunked", "streamed"):
        raise ConfigError('over a sharded memory the loss is dense, of a share; leave out form="chunked"')
