"""What a fit learns from: rows with classes, (query, document) pairs, or rows alone.

Each task says what is held out, how candidates are scored, which closed forms there are, and how a layer
is trained on a part of the data.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from querykey.adapter.closed_forms import (
    Affine,
    discriminant,
    identity,
    low_rank,
    principal_components,
    procrustes,
    ridge,
    soft_whitening,
)
from querykey.adapter.relevance import Relevance, unit_rows
from querykey.adapter.sampling import FitPlan, plan_of_items, plan_of_pairs
from querykey.adapter.settings import AdapterSettings, Target, Task
from querykey.adapter.split import (
    Fold,
    TrainingPairs,
    class_folds,
    known_folds,
    query_folds,
    row_fold,
)
from querykey.adapter.validation import (
    MOST_KEYS,
    DistillationScorer,
    HeldOutQueries,
    LabelScorer,
    PairScorer,
    Scorer,
    Transform,
    ValidationQueries,
    copies_of,
    padded,
)
from querykey.distributed.process_group import ProcessGroup
from querykey.encoders.heads import orthogonal
from querykey.errors import ConfigError
from querykey.evaluation.moments import (
    ClassMoments,
    Moments,
    PairMoments,
    class_moments,
    moments,
    pair_moments,
)
from querykey.types import FrozenRows, Labels, Numbers

__all__ = [
    "Form",
    "HeldOutFold",
    "LabelTask",
    "PairTask",
    "RowTask",
    "Statistics",
    "TaskData",
    "select_forms",
    "start_form",
]

POWERS = (0.125, 0.25, 0.5, 0.75, 1.0)
DEFAULT_POWER = 0.25
SHRINKAGES = (0.02, 0.1, 0.3, 0.5, 0.7)
FILL = 0.3
"""Weight of the axes in the dimensions beyond the discriminants."""
STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
RANKS, LOW_RANK_STRENGTHS = (4, 16, 64), (1.0, 10.0, 100.0)
HELD_OUT_QUERIES = 500
"""Held-out rows of a fit without labels: used for early stopping only."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Moments that closed forms are computed from.

    Args:
        rows: Of all rows.
        classes: Of the rows with a class.
        pairs: Of (query, document) pairs.
        growth: Number of all pairs over the number of these, which scales the strength of a ridge.
    """

    rows: Moments
    classes: ClassMoments | None = None
    pairs: PairMoments | None = None
    growth: float = 1.0


Form = Callable[[Statistics], Affine]


@dataclass(frozen=True, eq=False)
class HeldOutFold:
    """A fold with its prepared queries.

    Args:
        fold: The held-out rows.
        queries: Its queries, with what is relevant to each.
    """

    fold: Fold
    queries: HeldOutQueries


def general_forms(dim: int, width: int, *, nested: bool = False) -> dict[str, Form]:
    """The closed forms of rows alone; at full width the frozen rows are one of them.

    With several sizes each form is nested: a prefix is the form of the smaller size.
    """
    forms: dict[str, Form] = {"frozen": lambda _: identity(width)} if dim == width and not nested else {}
    forms["pca"] = lambda of: principal_components(of.rows, dim, centred=True)
    if dim < width or nested:  # at full width it is a rotation of the frozen rows
        forms["pca_uncentred"] = lambda of: principal_components(of.rows, dim, centred=False)
    for power in POWERS:
        forms[f"soft_whitening {power:g}"] = partial(_whitened, dim=dim, power=power)
    return forms


def select_forms(forms: dict[str, Form], wanted: object) -> dict[str, Form]:
    """The forms selected by name or by family; all of them if `wanted` is no tuple."""
    if not isinstance(wanted, tuple):
        return forms
    known = {*forms, *(name.split()[0] for name in forms), "frozen", "trained"}
    unknown = [name for name in wanted if name not in known and not name.startswith("trained ")]
    if unknown:
        raise ConfigError(
            f"candidates has no {', '.join(unknown)} here; it takes all, closed_form, or names of: "
            f"{', '.join(sorted(known))}"
        )
    return {name: form for name, form in forms.items() if name in wanted or name.split()[0] in wanted}


def start_form(start: str, dim: int, width: int, seed: int) -> dict[str, Form]:
    """The one form that a user chose to start from."""
    match start:
        case "identity":
            eye = torch.eye(dim, width, dtype=torch.float64)
            return {"identity": lambda _: Affine(eye, eye.new_zeros(dim))}
        case "orthogonal":
            turn = orthogonal(dim, width, seed=seed).double()
            return {"orthogonal": lambda _: Affine(turn, turn.new_zeros(dim))}
        case _:
            centred = start == "pca_centred"
            name = "pca" if centred else "pca_uncentred"
            return {name: lambda of: principal_components(of.rows, dim, centred=centred)}


def _whitened(of: Statistics, dim: int, power: float) -> Affine:
    return soft_whitening(of.rows, dim, power=power)


class LabelTask:
    """Rows of which some have a class.

    Args:
        vectors: Frozen rows [items, width].
        labels: Class of each, -1 where it is not known.
        settings: Resolved.
    """

    task: Task = "labels"

    def __init__(self, vectors: FrozenRows, labels: Labels, settings: AdapterSettings) -> None:
        self.vectors, self.labels, self.settings = vectors, labels, settings
        self.documents = vectors  # what an index holds
        self.classes = int(labels.max()) + 1
        known = (labels >= 0).nonzero()[:, 0]
        share, seed = settings.validation_fraction, settings.seed
        new = [] if settings.classes == "known" else class_folds(vectors, labels, share=share, seed=seed)
        if settings.classes == "new":
            folds, new = new, []
        elif len(known) > len(new) and len(new) == 1:  # one run of training serves both folds
            folds = known_folds(vectors, labels, share=share, seed=seed, without=new[0].held_out)
            both = [torch.unique(torch.cat([one.held_out, new[0].held_out])) for one in folds]
            folds = [Fold(rows, one.queries) for rows, one in zip(both, folds, strict=True)]
        else:
            folds = known_folds(vectors, labels, share=share, seed=seed)
        every = torch.cat([known[:0], *(fold.queries for fold in [*folds, *new])])
        self.keys = _some_keys(known, every, seed)
        rows = unit_rows(vectors, self.keys)
        self.scorer = LabelScorer(rows, labels[self.keys])
        self.folds, self.new = ([self._ready(fold) for fold in some] for some in (folds, new))
        sample = self.folds[0].fold.queries if self.folds else known
        self.sample = unit_rows(vectors, sample[:1000])
        self._total: Statistics | None = None

    def _ready(self, fold: Fold) -> HeldOutFold:
        places = torch.searchsorted(self.keys, fold.queries)
        return HeldOutFold(fold, self.scorer.prepare(places, copies_of(self.scorer.rows, places)))

    def groups(self, held_out: list[HeldOutFold]) -> Tensor:
        """Class of each query."""
        return torch.cat([self.scorer.labels[one.queries.numbers] for one in held_out])

    def statistics(self, fold: Fold | None) -> Statistics:
        if self._total is None:
            self._total = Statistics(
                moments(self.vectors), class_moments(self.vectors, self.labels, self.classes)
            )
        if fold is None:
            return self._total
        assert self._total.classes is not None
        rows = moments(self.vectors, fold.held_out)
        classes = class_moments(self.vectors, self.labels, self.classes, fold.held_out)
        return Statistics(self._total.rows - rows, self._total.classes - classes)

    def forms(self) -> dict[str, Form]:
        dim, width = self.settings.dim or 0, self.vectors.shape[1]
        forms = general_forms(dim, width, nested=len(self.settings.sizes) > 1)
        total = self.statistics(None).classes
        if total is not None and total.degrees > 0:
            for shrinkage in SHRINKAGES:
                forms[f"discriminant {shrinkage:g}"] = partial(_discriminated, dim=dim, shrinkage=shrinkage)
        return forms

    def filled(self, name: str) -> dict[str, Form]:
        """The same discriminants with the remaining dimensions filled; empty if there are none."""
        dim = self.settings.dim or 0
        if not name.startswith("discriminant") or dim < len(torch.unique(self.labels[self.labels >= 0])):
            return {}
        shrinkage = float(name.split()[1])
        return {f"{name} + pca": partial(_discriminated, dim=dim, shrinkage=shrinkage, fill=FILL)}

    def plan(self, fc: nn.Module, settings: AdapterSettings, fold: Fold | None, to: ProcessGroup) -> FitPlan:
        return plan_of_items(fc, settings, self.vectors, self._kept(fold), self.labels, processes=to)

    def trained_on(self, fold: Fold | None) -> int:
        return len(self._kept(fold))

    def _kept(self, fold: Fold | None) -> Numbers:
        """The rows with a class. The others could only be negatives, even of their own class."""
        train = _rest(len(self.vectors), fold)
        return train[self.labels[train] >= 0]


def _discriminated(of: Statistics, dim: int, shrinkage: float, fill: float = 0.0) -> Affine:
    assert of.classes is not None
    return discriminant(of.classes, of.rows, dim, shrinkage=shrinkage, fill=fill)


class PairTask:
    """Queries and their documents.

    Args:
        documents: Frozen rows of documents [documents, width], each once.
        pairs: What belongs together; every query has a document.
        settings: Resolved.
    """

    def __init__(self, documents: FrozenRows, pairs: TrainingPairs, settings: AdapterSettings) -> None:
        self.documents, self.pairs, self.settings = documents, pairs, settings
        self.task: Task = "query side" if settings.side == "query" else "pairs"
        answered = torch.unique(pairs.query_ids)
        self.relevance = Relevance(pairs.query_ids, pairs.document_ids, queries=len(pairs.queries))
        folds = query_folds(
            len(pairs.queries), answered, share=settings.validation_fraction, seed=settings.seed
        )
        held_out = torch.cat([answered[:0], *(fold.queries for fold in folds)])
        self.scorer = _pair_scorer(
            pairs.queries, documents, self.relevance, held_out, settings.seed, moves=settings.side == "both"
        )
        self.folds = [HeldOutFold(fold, self.scorer.prepare(fold.queries)) for fold in folds]
        self.new: list[HeldOutFold] = []
        self.sample = unit_rows(pairs.queries, (held_out if len(held_out) else answered)[:1000])
        self._documents: Moments | None = None

    def statistics(self, fold: Fold | None) -> Statistics:
        kept = self._kept(fold)
        query_of, document_of = self.pairs.query_ids[kept], self.pairs.document_ids[kept]
        queries = moments(self.pairs.queries, torch.unique(query_of))
        if self._documents is None:
            self._documents = moments(self.documents)
        both = pair_moments(self.pairs.queries, self.documents, query_of, document_of)
        # a query with its documents is a class
        counts = torch.bincount(query_of, minlength=len(self.pairs.queries)).double()
        there = counts > 0
        sums = torch.zeros(len(counts), self.documents.shape[1], dtype=torch.float64)
        for pairs in torch.split(torch.arange(len(query_of)), 8192):
            sums.index_add_(0, query_of[pairs], unit_rows(self.documents, document_of[pairs]).double())
        sums[there] += unit_rows(self.pairs.queries, there.nonzero()[:, 0]).double()
        classes = ClassMoments(queries + both.documents, counts + there, sums)
        growth = len(self.pairs.query_ids) / max(1, len(kept))
        return Statistics(self._documents + queries, classes, both, growth)

    def forms(self) -> dict[str, Form]:
        dim, width = self.settings.dim or 0, self.documents.shape[1]
        if self.task == "query side":
            forms: dict[str, Form] = {"frozen": lambda _: identity(width), "procrustes": _turned}
            forms |= {f"ridge {s:g}": partial(_ridged, strength=s) for s in STRENGTHS}
            for rank, s in itertools.product(RANKS, LOW_RANK_STRENGTHS):
                if rank < width:
                    forms[f"low_rank {rank}, {s:g}"] = partial(_low_ranked, rank=rank, strength=s)
            return forms
        forms = general_forms(dim, width, nested=len(self.settings.sizes) > 1)
        for shrinkage in SHRINKAGES:
            forms[f"discriminant {shrinkage:g}"] = partial(_discriminated, dim=dim, shrinkage=shrinkage)
        return forms

    def plan(self, fc: nn.Module, settings: AdapterSettings, fold: Fold | None, to: ProcessGroup) -> FitPlan:
        return plan_of_pairs(fc, settings, self.documents, self._kept(fold), self.pairs, processes=to)

    def trained_on(self, fold: Fold | None) -> int:
        return len(self._kept(fold))

    def _kept(self, fold: Fold | None) -> Numbers:
        every = torch.arange(len(self.pairs.query_ids))
        return every if fold is None else every[~torch.isin(self.pairs.query_ids, fold.held_out)]


def _turned(of: Statistics) -> Affine:
    assert of.pairs is not None
    return procrustes(of.pairs)


def _ridged(of: Statistics, strength: float) -> Affine:
    assert of.pairs is not None
    return ridge(of.pairs, strength=strength / of.growth)


def _low_ranked(of: Statistics, rank: int, strength: float) -> Affine:
    assert of.pairs is not None
    return low_rank(of.pairs, strength=strength / of.growth, rank=rank)


class RowTask:
    """Rows alone, or with validation queries.

    Args:
        vectors: Frozen rows [items, width].
        settings: Resolved.
        validation: Validation queries, if there are any: then queries are held out, and no rows.
    """

    task: Task = "unlabelled"

    def __init__(
        self, vectors: FrozenRows, settings: AdapterSettings, validation: ValidationQueries | None
    ) -> None:
        self.vectors, self.settings, self.validation = vectors, settings, validation
        self.documents = vectors  # what an index holds
        self.new: list[HeldOutFold] = []
        self.power: str = settings.target or "soft_whitened"
        self._target: Affine | None = None
        self._total: Moments | None = None
        self.scorer: Scorer
        self.folds: list[HeldOutFold] = []
        self.sample = unit_rows(vectors, torch.arange(len(vectors))[:1000])
        if validation is not None and validation.pairs is not None:
            self._hold_out_pairs(validation, validation.pairs)
        else:
            self._hold_out_scores()

    def _hold_out_pairs(self, validation: ValidationQueries, pairs: Tensor) -> None:
        """Validation queries with relevant rows: they are scored by finding these."""
        seed, held_out = self.settings.seed, torch.unique(pairs[:, 0])
        # half of real queries are held out: the other half enters the moments
        most = min(2 * HELD_OUT_QUERIES, len(held_out) // 2 if validation.are_real else len(held_out))
        held_out = held_out[_draw(len(held_out), most, seed)]
        relevance = Relevance(pairs[:, 0], pairs[:, 1], queries=len(validation.queries))
        scorer = _pair_scorer(validation.queries, self.vectors, relevance, held_out, seed, moves=True)
        self.scorer = scorer
        if len(held_out) >= 2:
            self.folds = [HeldOutFold(Fold(held_out, held_out), scorer.prepare(held_out))]

    def _hold_out_scores(self) -> None:
        """Validation queries, or rows: they are scored by how well they keep the scores of the target."""
        vectors, settings, validation = self.vectors, self.settings, self.validation
        share, seed, every = settings.validation_fraction, settings.seed, torch.arange(len(self.vectors))
        folds = row_fold(vectors, share=share, seed=seed, most=HELD_OUT_QUERIES)
        keys = _some_keys(every, torch.cat([every[:0], *(fold.queries for fold in folds)]), seed)
        rows, temperature = unit_rows(vectors, keys), _temperature(settings)
        if validation is not None:
            held_out = torch.arange(len(validation.queries))
            held_out = held_out[_draw(len(held_out), min(2 * HELD_OUT_QUERIES, len(held_out) // 2), seed)]
            queries, none = unit_rows(validation.queries), torch.full((len(held_out), 0), -1)
            self.scorer = DistillationScorer(queries, rows, self.target(None), temperature)
            if len(held_out) >= 2:
                fold = Fold(held_out, held_out)
                self.folds = [HeldOutFold(fold, HeldOutQueries(held_out, none, none))]
            return
        self.scorer = DistillationScorer(rows, rows, self.target(folds[0] if folds else None), temperature)
        for fold in folds:
            places = torch.searchsorted(keys, fold.queries)
            excluded = padded(copies_of(rows, places))
            self.folds.append(HeldOutFold(fold, HeldOutQueries(places, places[:, None], excluded)))
            self.sample = unit_rows(vectors, fold.queries)

    def target(self, fold: Fold | None) -> Affine:
        """What makes the rows whose scores are kept, at full width."""
        if self._target is None:
            self._target = self.target_form(self.power)(self.statistics(fold))
        return self._target

    def aim(self, name: str) -> None:
        """Keep the scores of another target: "frozen", or the name of a form of full width."""
        self.power, self._target = name, None

    def target_form(self, name: str) -> Form:
        """The form of full width behind a target's name."""
        width = self.vectors.shape[1]
        names: dict[Target, str] = {
            "frozen": "frozen", "centred": "pca", "soft_whitened": f"soft_whitening {DEFAULT_POWER:g}"
        }  # fmt: skip
        return general_forms(width, width)[names.get(name, name)]  # type: ignore[call-overload]

    def statistics(self, fold: Fold | None) -> Statistics:
        if self._total is None:
            self._total = moments(self.vectors)
        if self.validation is None:
            return Statistics(
                self._total if fold is None else self._total - moments(self.vectors, fold.held_out)
            )
        if not self.validation.are_real:
            return Statistics(self._total)
        queries = moments(self.validation.queries)
        if fold is not None:
            queries -= moments(self.validation.queries, fold.held_out)
        return Statistics(self._total + queries)

    def forms(self) -> dict[str, Form]:
        nested = len(self.settings.sizes) > 1
        return general_forms(self.settings.dim or 0, self.vectors.shape[1], nested=nested)

    def plan(self, fc: nn.Module, settings: AdapterSettings, fold: Fold | None, to: ProcessGroup) -> FitPlan:
        target = self.target(fold)
        keeps: Transform | None = None if self.power == "frozen" else target
        return plan_of_items(fc, settings, self.vectors, self._kept(fold), None, target=keeps, processes=to)

    def trained_on(self, fold: Fold | None) -> int:
        return len(self._kept(fold))

    def _kept(self, fold: Fold | None) -> Numbers:
        """Rows that are trained on: all of them where it is queries that are held out."""
        return _rest(len(self.vectors), fold if self.validation is None else None)


TaskData = LabelTask | PairTask | RowTask
"""`folds` are held out and `new` are folds of whole classes; `forms` are the closed forms by name."""


def _pair_scorer(
    queries: Tensor, documents: Tensor, relevance: Relevance, held_out: Tensor, seed: int, *, moves: bool
) -> PairScorer:
    """All documents are keys, or all answers and a fixed draw of the others where they are very many."""
    every = torch.arange(len(documents))
    answers = torch.unique(torch.cat([every[:0], *(relevance.documents_of(int(one)) for one in held_out)]))
    keys = _some_keys(every, answers, seed)
    if len(keys) < len(every):
        first = torch.arange(len(queries)).repeat_interleave(relevance.first.diff())
        there = torch.isin(relevance.documents, keys)
        relevance = Relevance(
            first[there], torch.searchsorted(keys, relevance.documents[there]), queries=len(queries)
        )
    return PairScorer(unit_rows(queries), unit_rows(documents, keys), relevance, moves)


def _some_keys(every: Numbers, needed: Tensor, seed: int) -> Tensor:
    """All rows up to 200,000; beyond that the needed ones and a fixed draw of the others, ascending."""
    if len(every) <= MOST_KEYS:
        return every
    drawn = every[_draw(len(every), MOST_KEYS, seed)]
    both: Tensor = torch.unique(torch.cat([needed, drawn]))
    return both


def _draw(count: int, most: int, seed: int) -> Tensor:
    drawn = np.random.default_rng([seed, 2]).permutation(count)[:most].astype(np.int64)
    return torch.from_numpy(drawn).sort().values


def _rest(items: int, fold: Fold | None) -> Numbers:
    every = torch.arange(items)
    return every if fold is None or not len(fold.held_out) else every[~torch.isin(every, fold.held_out)]


def _temperature(settings: AdapterSettings) -> float:
    return float(settings.loss.options.get("temperature", 0.05))
