"""What stored embeddings show of a run, for its report; nothing is trained and no model is run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from querykey.errors import DataError, MissingPathError, ShapeError
from querykey.features.features import Features
from querykey.lookup.nearest import nearest
from querykey.pretraining.saved_encoder import read_encoder
from querykey.runs.adapt import Run, load_run
from querykey.runs.data import DataAt, open_features
from querykey.runs.evaluate_adapter import require_like_those_of, training_features
from querykey.runs.neighbours import SHOWN_K, Answer, Looked, Neighbourhood, Side, drawn, look_among
from querykey.runs.projections import Map, Sprite, make_sprite, maps_of

__all__ = ["Gathered", "Served", "gather_adapter", "gather_encoder"]

MAPPED = 800
"""Points of a map: more lie on top of each other."""
SERVED_TO, SERVED, SERVED_SHOWN = 500, 10, 4
"""Queries that are served, rows each is served, and queries that are shown."""


@dataclass(frozen=True)
class Served:
    """What the memory had for some queries: the rows nearest by frozen score.

    Args:
        k: Rows a query.
        asked: Queries.
        rows: Rows of the memory that could be served.
        suspects: Share of the served rows that may be false negatives; None where nothing tells.
        by_chance: That share among all rows; None where nothing tells.
        shown: A few queries; a row that may be a false negative is not right.
    """

    k: int
    asked: int
    rows: int
    suspects: float | None
    by_chance: float | None
    shown: Sequence[Looked]


@dataclass(frozen=True, eq=False)
class Gathered:
    """What features show of a run.

    Args:
        features: They themselves.
        spec: Where they are.
        is_fitted_on: Whether the run was fitted on them.
        sides: Names of the embeddings, such as "frozen" and "adapted".
        found: What queries find among them.
        mapped: Numbers of the items on the maps.
        maps: Of each side.
        sprite: Pictures; None where the items have none.
        served: Of the training features; None where they are not there.
        fitted_on: The training features, which `served` is about.
        served_sprite: Pictures of what was served.
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
    """What features show of an adapter: neighbours and maps before and after, and what the memory served.

    Args:
        folder: Of the run.
        features: Where the features are; None: those that it was fitted on.

    Returns:
        What they show.

    Raises:
        MissingPathError: If the features are not where the run says, or not as they were.
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
        where = "the run does not say where they were" if at is None else f"they were at {at.spec}"
        raise MissingPathError(
            f"{folder}: its training features are gone or have changed ({where}); say where features are "
            "with --features FEATURES"
        )
    require_like_those_of(run, shown, spec)
    documents = torch.as_tensor(run.adapter.transform_documents(shown.vectors))
    frozen_queries = None if shown.queries is None else shown.queries.vectors
    queries = None if frozen_queries is None else torch.as_tensor(run.adapter.transform(frozen_queries))
    sides = [Side("frozen", shown.vectors, frozen_queries), Side("adapted", documents, queries)]
    seen = _gathered(shown, spec, sides, is_fitted_on=is_fitted_on)
    if fitted_on is None:
        return seen
    served = _served(fitted_on, are_pairs=run.settings is not None and run.settings.pairs)
    pictured = {answer.item for one in served.shown for answer in one.found[0]}
    if run.settings is None or not run.settings.pairs:
        pictured |= {one.query for one in served.shown}
    sprite = make_sprite(fitted_on, sorted(pictured))
    return replace(seen, served=served, fitted_on=fitted_on, served_sprite=sprite)


def gather_encoder(folder: Path, features: str) -> Gathered:
    """What features that a pretrained encoder made show of it.

    Args:
        folder: Of the pretraining, finished.
        features: Where the features are.

    Returns:
        Neighbours and maps of h.

    Raises:
        ShapeError: If they are not as wide as the encoder's h.
        DataError: If there are fewer than two rows.
    """
    shown, _ = open_features(DataAt(features))
    width = read_encoder(folder).encoder.backbone.dim
    if shown.dim != width:
        raise ShapeError(
            f"{features}: rows are {shown.dim} wide and h of {folder} is {width}; make features of it with "
            f"querykey embed SOURCE --model {folder} --out FEATURES"
        )
    return _gathered(shown, features, [Side("h", shown.vectors, None)], is_fitted_on=False)


def _gathered(features: Features, spec: str, sides: Sequence[Side], *, is_fitted_on: bool) -> Gathered:
    if len(features) < 2:
        raise DataError(f"{spec}: {len(features)} row is too few for a report; at least 2 are needed")
    found, mapped = look_among(features, sides), drawn(len(features), MAPPED)
    of_sides = [maps_of(side.rows[mapped], side.name) for side in sides]
    maps = [
        one for kind in zip(*of_sides, strict=True) for one in kind
    ]  # those of one kind beside each other
    seen = {answer.item for one in (*found.changed, *found.failures) for side in one.found for answer in side}
    if found.kind != "pairs":
        seen |= {one.query for one in (*found.changed, *found.failures)}
    sprite = make_sprite(features, [*seen, *mapped.tolist()])
    return Gathered(
        features, spec, is_fitted_on, [side.name for side in sides], found, mapped.tolist(), maps, sprite
    )


def _fitted_on(run: Run) -> Features | None:
    """The training features, where they are there and as they were."""
    try:
        return training_features(run)
    except DataError:
        return None


def _served(features: Features, *, are_pairs: bool) -> Served:
    """What a memory of all training rows has for a query: which rows score highest, and which belong to it.

    Of pairs these are documents that are not the query's own; one that scores above the query's own
    may be a false negative. Otherwise it is one of the query's own class.
    """
    k = min(SERVED, len(features) - 1)
    if are_pairs:
        return _served_to_queries(features, k)
    asked = drawn(len(features), SERVED_TO)
    scores, index = nearest(
        features.vectors[asked], features.vectors, k, query_ids=asked, key_ids=torch.arange(len(features))
    )
    labels = features.labels
    if labels is None:
        return Served(k, len(asked), len(features), None, None, _shown(asked, scores, index, None))
    own = (labels[index] == labels[asked, None]) & (labels[asked, None] >= 0)
    counts = torch.bincount(labels[labels >= 0]).double()
    chance = float((counts / len(labels) * (counts - 1) / max(1, len(labels) - 1)).sum())
    return Served(
        k, len(asked), len(features), float(own.double().mean()), chance, _shown(asked, scores, index, own)
    )


def _served_to_queries(features: Features, k: int) -> Served:
    assert features.pairs is not None
    assert features.queries is not None
    having = torch.unique(features.pairs[:, 0])
    asked = having[drawn(len(having), SERVED_TO)]
    most = int(torch.bincount(features.pairs[:, 0]).max())
    scores, index = nearest(features.queries.vectors[asked], features.vectors, min(k + most, len(features)))
    codes = features.pairs[:, 0] * len(features) + features.pairs[:, 1]
    own = torch.isin(asked[:, None] * len(features) + index, codes)
    above = own.cumsum(dim=1) == 0  # no document of the query stands higher
    # those that are not the query's own move to the front, in their order
    order = own.int().argsort(dim=1, stable=True)[:, :k]
    scores, index, suspect = (one.gather(1, order) for one in (scores, index, above & ~own))
    return Served(
        k,
        len(asked),
        len(features),
        float(suspect.double().mean()),
        None,
        _shown(asked, scores, index, suspect),
    )


def _shown(
    asked: torch.Tensor, scores: torch.Tensor, index: torch.Tensor, suspect: torch.Tensor | None
) -> list[Looked]:
    """The queries with the most that may be false negatives."""
    count = torch.zeros(len(asked)) if suspect is None else suspect.sum(dim=1)
    return [
        Looked(int(asked[row]), [[
            Answer(item, score, None if suspect is None else not bool(suspect[row, place]))
            for place, (item, score) in enumerate(zip(index[row].tolist(), scores[row].tolist(), strict=True))
            if place < SHOWN_K and item >= 0
        ]])
        for row in (-count.double()).argsort(stable=True)[:SERVED_SHOWN].tolist()
    ]  # fmt: skip
