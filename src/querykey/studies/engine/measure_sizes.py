"""How an arm on sizes and codes is measured: one fit or baseline, asked at every size and precision."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from querykey.adapter.estimator import Adapter
from querykey.evaluation.geometry import neighbour_overlap
from querykey.evaluation.protocol import LABEL_METRICS, PAIR_METRICS, Examination
from querykey.evaluation.ranking import GradedPairs, Ranking, measure_rankings
from querykey.evaluation.table import OVERLAP, OVERLAP_K
from querykey.io.points import FLOAT, Point, point_of
from querykey.lookup.lookup import Lookup, PairRule, look_up
from querykey.lookup.nearest import nearest
from querykey.studies.engine.baselines import (
    baseline,
    matryoshka_adaptor,
    product_quantised,
    search_adaptor,
)
from querykey.studies.engine.data import FitRows
from querykey.studies.engine.study import SCORE
from querykey.types import PerQuery, Rows

__all__ = ["fitted", "measure_points"]

CANDIDATES, DEPTH, QUERIES = 100, 10, 128
"""Rows that a first pass over codes of 1 bit leaves to codes of 8 bits, how deep they are ranked, and queries
at once."""

Moves = Callable[[Tensor], Tensor]


class Made(NamedTuple):
    """What a method makes of rows at a point."""

    queries: Moves
    keys: Moves
    coarse: Moves | None = None
    """Keys of a first pass."""


def measure_points(
    examination: Examination, train: FitRows, settings: dict[str, Any], measures: Sequence[str], seed: int
) -> tuple[dict[str, PerQuery], dict[str, Any]]:
    """Fit one method, and measure all that it has of the points asked for.

    Args:
        examination: What is asked.
        train: What is fitted on.
        settings: "method": "ladder", "alone" (a fit a size), "product quantisation", "Matryoshka-Adaptor",
            "Search-Adaptor" or a name of `baseline`; "dims"; "labels": False leaves out the labels; and, of
            a fit, those of `Adapter`.
        measures: Names of points; other measures are left out, and points that the method does not have.
        seed: Of the fit.

    Returns:
        (measure to a number a query, metrics of the fit).
    """
    points = {name: point for name in measures if (point := point_of(name)) is not None}
    method, given = settings["method"], {k: v for k, v in settings.items() if k not in ("method", "labels")}
    if settings.get("labels") is False:
        train = train._replace(labels=None)
    dims = [int(size) for size in given.pop("dims", ())]
    makers, end = _method(method, train, dims, given, seed)
    made = {name: makers(point) for name, point in points.items()}
    numbers = {
        name: _measured(examination, points[name], one) for name, one in made.items() if one is not None
    }
    floats = [
        values for name, values in numbers.items() if points[name].metric == SCORE and _is_float(points[name])
    ]
    if floats:
        numbers[SCORE] = torch.stack(floats).mean(dim=0)
    return numbers, end


def _is_float(point: Point) -> bool:
    return point.bits == FLOAT and not point.is_bytes and point.share == 1


def _method(
    method: str, train: FitRows, dims: list[int], given: dict[str, Any], seed: int
) -> tuple[Callable[[Point], Made | None], dict[str, Any]]:
    """(what a method makes at a point, metrics of its fit)."""
    match method:
        case "ladder" | "alone":
            adapters = (
                dict.fromkeys(dims, fitted(train, {"dims": dims, **given}, seed))
                if method == "ladder"
                else {size: fitted(train, {"dim": size, **given}, seed) for size in dims}
            )
            return partial(_of_adapter, adapters), _end({id(one): one for one in adapters.values()}.values())
        case "product quantisation":
            return partial(_of_bytes, train.rows, seed), {}
        case "Matryoshka-Adaptor":
            return partial(_of_prefix, matryoshka_adaptor(train.rows, dims, seed=seed, **given), dims), {}
        case "Search-Adaptor":
            return partial(_of_prefix, search_adaptor(train, dims, seed=seed, **given), dims), {}
        case name:
            return partial(_of_projection, name, train, dims), {}


def fitted(train: FitRows, settings: dict[str, Any], seed: int) -> Adapter:
    """An adapter that is fitted to rows, to rows with labels, or to pairs.

    Args:
        train: What it is fitted to.
        settings: Of `Adapter`.
        seed: Of the fit.

    Returns:
        It.
    """
    adapter = Adapter(**settings, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they are in the report, which the record stores
        if train.pairs is None:
            return adapter.fit(train.rows, train.labels)
        assert train.queries is not None
        return adapter.fit_pairs(train.queries, train.rows, pairs=train.pairs[:, :2].numpy())


def _end(adapters: Iterable[Adapter]) -> dict[str, Any]:
    names = ("seconds", "steps_taken")
    found = [one.report_ for one in adapters]
    return {name: sum(float(report[name]) for report in found) for name in names}


def _of_adapter(adapters: dict[int, Adapter], point: Point) -> Made | None:
    adapter = adapters.get(point.size)
    if adapter is None or point.is_bytes or point.bits not in (FLOAT, *adapter.settings_.bits):
        return None

    def move(rows: Tensor) -> Tensor:
        out = adapter.transform(rows, dim=point.size)
        assert isinstance(out, Tensor)
        return out

    def coded(bits: int) -> Moves:
        code = adapter.code(dim=point.size, bits=bits)
        return lambda rows: torch.from_numpy(code.decode(code.encode(move(rows).numpy())))

    if point.rescored:
        return Made(move, coded(8), coded(1))
    return Made(move, move if point.bits == FLOAT else coded(point.bits))


def _of_prefix(layer: Moves, dims: Sequence[int], point: Point) -> Made | None:
    if point.size not in dims or point.bits != FLOAT or point.is_bytes:
        return None
    move = partial(_prefix, layer, point.size)
    return Made(move, move)


def _of_bytes(rows: Rows, seed: int, point: Point) -> Made | None:
    if not point.is_bytes or rows.shape[1] % point.size:
        return None
    return Made(_as_they_are, product_quantised(rows, point.size, seed=seed))


def _of_projection(name: str, train: FitRows, dims: Sequence[int], point: Point) -> Made | None:
    if point.size not in dims or point.bits != FLOAT or point.is_bytes:
        return None
    move = baseline(name, train, point.size).transform
    return Made(move, move)


def _measured(examination: Examination, point: Point, made: Made) -> PerQuery:
    task = examination.task
    ids, query_rows = task.ids, examination.query_rows
    metric_name = {"retrieval": "R@1" if task.queries is None else "NDCG@10"}.get(point.metric, point.metric)
    queries = made.queries((task.test if task.queries is None else task.queries)[query_rows])
    keys = made.keys(task.test)
    if point.metric == OVERLAP:
        found = nearest(queries, keys, OVERLAP_K, query_ids=ids[query_rows], key_ids=ids)[1]
        return neighbour_overlap(found, examination.frozen_neighbours) * point.share
    if task.queries is not None:
        metric = PAIR_METRICS[metric_name]
        if made.coarse is not None:
            return metric(_among_the_best(examination.graded, queries, keys, made.coarse(task.test)))
        lookup = Lookup(queries, keys, examination.graded, "cosine")
    else:
        labels = task.test_labels
        assert labels is not None
        rule = PairRule(positive="label")
        lookup = look_up(
            queries,
            keys,
            query_ids=ids[query_rows],
            key_ids=ids,
            query_labels=labels[query_rows],
            key_labels=labels,
            rule=rule,
            score="cosine",
        )
        metric = LABEL_METRICS[metric_name]
    return measure_rankings(lookup, {metric_name: metric})[metric_name] * point.share


def _among_the_best(graded: GradedPairs, queries: Tensor, keys: Tensor, coarse: Tensor) -> Ranking:
    """The ranking by codes of 8 bits among the best `CANDIDATES` by those of 1 bit."""
    found = nearest(queries, coarse, min(CANDIDATES, len(coarse)))[1]
    scores = torch.cat(
        [
            torch.einsum("qd,qkd->qk", some, keys[rows])
            for some, rows in zip(torch.split(queries, QUERIES), torch.split(found, QUERIES), strict=True)
        ]
    )
    order = found.gather(1, scores.sort(dim=1, descending=True, stable=True).indices[:, :DEPTH])
    grades = graded.grades(0, len(keys))
    return Ranking(grades.gather(1, order), grades.topk(DEPTH, dim=1).values, (grades > 0).sum(dim=1))


def _prefix(layer: Moves, size: int, rows: Tensor) -> Tensor:
    return layer(rows)[:, :size]


def _as_they_are(rows: Tensor) -> Tensor:
    return rows
