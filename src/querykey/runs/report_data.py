"""Data of a run's report from stored features; no model is trained or run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from querykey.errors import DataError, MissingPathError, ShapeError
from querykey.features.features import Features
from querykey.lookup.nearest import nearest
from querykey.pretraining.saved_encoder import read_encoder
from querykey.runs.adapt import Run, load_run
from querykey.runs.data import DataAt, open_features
from querykey.runs.evaluate_adapter import require_like_those_of, training_features
from querykey.runs.neighbours import (
    Neighbourhood,
    QueryResult,
    Side,
    compare_neighbours,
    first_neighbours,
    sample_indices,
)
from querykey.runs.projections import Map, Sprite, make_sprite, maps_of

__all__ = ["Gathered", "Served", "gather_adapter", "gather_encoder"]

MAPPED = 800
"""Maximum number of points of a map; more would overlap."""
SERVED_TO, SERVED, SERVED_SHOWN = 500, 10, 4
"""Queries of the memory, rows returned for each, and queries shown."""


@dataclass(frozen=True)
class Served:
    """Rows of the memory that are nearest to some queries, by frozen score.

    Args:
        k: Rows per query.
        num_queries: Number of queries.
        rows: Rows in the memory.
        suspects: Fraction of the returned rows that may be false negatives; None without labels or pairs.
        by_chance: The same fraction among all rows; None if it is not defined.
        shown: A few queries; a row that may be a false negative has `is_right` False.
    """

    k: int
    num_queries: int
    rows: int
    suspects: float | None
    by_chance: float | None
    shown: Sequence[QueryResult]


@dataclass(frozen=True, eq=False)
class Gathered:
    """Results of a run on features.

    Args:
        features: The features.
        spec: Their location.
        is_fitted_on: Whether the run was fitted on them.
        sides: Names of the embeddings, such as "frozen" and "adapted".
        found: Nearest neighbours.
        mapped: Row numbers of the items on the maps.
        maps: The maps of each side.
        sprite: Thumbnails; None if the items are no images.
        served: Rows of the memory for training queries; None if the training features are missing.
        fitted_on: The training features.
        served_sprite: Thumbnails for `served`.
    """

    features: Features
    spec: str
    is_fitted_on: bool
    sides: Sequence[str]
    found: Neighbourhood
    mapped: Sequence[int]
    maps: Sequence[Map]
    sprite: Sprite | None
    served: Served | None = None
    fitted_on: Features | None = None
    served_sprite: Sprite | None = None


def gather_adapter(folder: Path, features: str | None = None) -> Gathered:
    """Neighbours and maps before and after adaptation, and rows of the memory.

    Args:
        folder: The folder of the run.
        features: Location of features; None: the training features.

    Returns:
        The results.

    Raises:
        MissingPathError: If the training features are missing or have changed.
        ModelMismatchError: If they are of another model than the run's.
        ShapeError: If they are of another width.
        DataError: If there are fewer than two rows.
    """
    run = load_run(folder)
    fitted_on = _fitted_on(run)
    at = run.trained_on
    if features is not None:
        shown, key = open_features(DataAt(features))
        spec, is_fitted_on = features, key == run.features.get("key")
    elif fitted_on is not None and at is not None:
        shown, spec, is_fitted_on = fitted_on, at.spec, True
    else:
        where = "the run does not record their location" if at is None else f"they were at {at.spec}"
        raise MissingPathError(
            f"{folder}: its training features are missing or have changed ({where}); give features"
        )
    require_like_those_of(run, shown, spec)
    documents = torch.as_tensor(run.adapter.transform_documents(shown.vectors))
    frozen_queries = None if shown.queries is None else shown.queries.vectors
    queries = None if frozen_queries is None else torch.as_tensor(run.adapter.transform(frozen_queries))
    sides = [Side("frozen", shown.vectors, frozen_queries), Side("adapted", documents, queries)]
    gathered = _gathered(shown, spec, sides, is_fitted_on=is_fitted_on)
    if fitted_on is None:
        return gathered
    served = _served(fitted_on, are_pairs=run.settings is not None and run.settings.pairs)
    pictured = {answer.item for one in served.shown for answer in one.found[0]}
    if run.settings is None or not run.settings.pairs:
        pictured |= {one.query for one in served.shown}
    sprite = make_sprite(fitted_on, sorted(pictured))
    return replace(gathered, served=served, fitted_on=fitted_on, served_sprite=sprite)


def gather_encoder(folder: Path, features: str) -> Gathered:
    """Neighbours and maps of features computed by a pretrained encoder.

    Args:
        folder: The folder of a finished pretraining run.
        features: Location of the features.

    Returns:
        Neighbours and maps of h.

    Raises:
        ShapeError: If their width differs from that of h.
        DataError: If there are fewer than two rows.
    """
    shown, _ = open_features(DataAt(features))
    width = read_encoder(folder).encoder.backbone.dim
    if shown.dim != width:
        raise ShapeError(
            f"{features}: rows are {shown.dim} wide and h of {folder} is {width}; compute features with "
            f"querykey embed and {folder} as the model"
        )
    return _gathered(shown, features, [Side("h", shown.vectors, None)], is_fitted_on=False)


def _gathered(features: Features, spec: str, sides: Sequence[Side], *, is_fitted_on: bool) -> Gathered:
    if len(features) < 2:
        raise DataError(f"{spec}: {len(features)} row is too few for a report; at least 2 are needed")
    found, mapped = compare_neighbours(features, sides), sample_indices(len(features), MAPPED)
    of_sides = [maps_of(side.rows[mapped], side.name) for side in sides]
    # maps of one kind stand beside each other
    maps = [one for kind in zip(*of_sides, strict=True) for one in kind]
    queries = (*found.changed, *found.failures)
    pictured = {answer.item for one in queries for side in one.found for answer in side}
    if found.kind != "pairs":
        pictured |= {one.query for one in queries}
    sprite, names = make_sprite(features, [*pictured, *mapped.tolist()]), [side.name for side in sides]
    return Gathered(features, spec, is_fitted_on, names, found, mapped.tolist(), maps, sprite)


def _fitted_on(run: Run) -> Features | None:
    """The training features; None if they are missing or have changed."""
    try:
        return training_features(run)
    except DataError:
        return None


def _served(features: Features, *, are_pairs: bool) -> Served:
    """The nearest rows for sampled queries in a memory of all training rows, and possible false negatives.

    With pairs, a document without a pair that scores above all documents of the query may be a false
    negative; with labels, a row of the query's class.
    """
    k = min(SERVED, len(features) - 1)
    if are_pairs:
        return _served_to_queries(features, k)
    queries = sample_indices(len(features), SERVED_TO)
    rows, ids, labels = features.vectors, torch.arange(len(features)), features.labels
    scores, index = nearest(rows[queries], rows, k, query_ids=queries, key_ids=ids)
    if labels is None:
        return Served(k, len(queries), len(features), None, None, _shown(queries, scores, index, None))
    same = (labels[index] == labels[queries, None]) & (labels[queries, None] >= 0)
    counts = torch.bincount(labels[labels >= 0]).double()
    chance = float((counts / len(labels) * (counts - 1) / max(1, len(labels) - 1)).sum())
    suspects, shown = float(same.double().mean()), _shown(queries, scores, index, same)
    return Served(k, len(queries), len(features), suspects, chance, shown)


def _served_to_queries(features: Features, k: int) -> Served:
    assert features.pairs is not None
    assert features.queries is not None
    with_pairs = torch.unique(features.pairs[:, 0])
    queries = with_pairs[sample_indices(len(with_pairs), SERVED_TO)]
    most = int(torch.bincount(features.pairs[:, 0]).max())
    scores, index = nearest(features.queries.vectors[queries], features.vectors, min(k + most, len(features)))
    codes = features.pairs[:, 0] * len(features) + features.pairs[:, 1]
    positive = torch.isin(queries[:, None] * len(features) + index, codes)
    above = positive.cumsum(dim=1) == 0  # no document of the query has a higher score
    # the other documents move to the front, in their order
    order = positive.int().argsort(dim=1, stable=True)[:, :k]
    scores, index, suspect = (one.gather(1, order) for one in (scores, index, above & ~positive))
    fraction, shown = float(suspect.double().mean()), _shown(queries, scores, index, suspect)
    return Served(k, len(queries), len(features), fraction, None, shown)


def _shown(queries: Tensor, scores: Tensor, index: Tensor, suspect: Tensor | None) -> list[QueryResult]:
    """The queries with the most possible false negatives."""
    count = torch.zeros(len(queries)) if suspect is None else suspect.sum(dim=1)
    order = (-count.double()).argsort(stable=True)[:SERVED_SHOWN].tolist()
    right = None if suspect is None else ~suspect
    return [
        QueryResult(
            int(queries[row]),
            [first_neighbours(scores[row], index[row], None if right is None else right[row])],
        )
        for row in order
    ]
