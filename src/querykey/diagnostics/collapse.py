"""Metrics of a pretraining run while it trains, and the check for collapse of any run."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from querykey.errors import DataError, ShapeError
from querykey.evaluation.few_labels import split_by_class
from querykey.evaluation.geometry import alignment, effective_rank, uniformity
from querykey.evaluation.knn import knn_correct
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.lookup.unit_length import unit_length
from querykey.types import Labels, Numbers, Rows

__all__ = ["check_collapse", "mean_cosine", "monitor", "pretext_accuracy"]

NEIGHBOURS = 20
"""For a bank of thousands; the papers use 200 with a bank of all training rows."""
TEMPERATURE = 0.1
QUERY_SHARE = 0.25
SCORE_ELEMENTS = 2**22
"""Scores in memory at once: 16 MB, whatever the batch."""

LOWEST_RANK, HEALTHY_RANK = 1.5, 2.0
HIGHEST_COSINE, HEALTHY_COSINE, ONE_POINT = 0.99, 0.97, 0.9999
LEAST_START_RANK, LEAST_RANK_SHARE = 3.0, 0.1
"""Of the rows of an adapter: a rank near 1 is no collapse of rows that had hardly more."""


@torch.no_grad()
def monitor(
    h: Rows,
    z_1: Tensor,
    z_2: Tensor,
    *,
    loss: float,
    labels: Labels | None = None,
    queries: Numbers | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Metrics of a pretraining run, for its record.

    Args:
        h: Embeddings [rows, dim] in eval mode; the queries are images that are not trained on.
        z_1: Projections [pairs, dim] of one view of some images.
        z_2: Of another view of the same images, in the same order.
        loss: Of the step, or a mean over steps.
        labels: Class of each row of h, -1 if unlabelled; None: no kNN.
        queries: Rows of h that are classified by the other rows; None: a quarter, by class.
        seed: Of that quarter; use the same in every call, so that scores are comparable.

    Returns:
        loss; effective_rank_h and effective_rank_z (of both views); alignment in [0, 4]; uniformity of
        one view, at most 0; mean_cosine of different images in [-1, 1]; pretext, see
        `pretext_accuracy`; width_z. With labels also knn, the accuracy of classifying the
        queries by the other rows, with knn_k, knn_temperature, knn_bank and knn_queries (labelled rows),
        which it depends on. Metrics of rows that are not finite are NaN.

    Raises:
        ShapeError: If the views differ in shape.
        DataError: If there are fewer than two pairs.

    Example:
        >>> metrics = monitor(torch.eye(4), torch.eye(4), torch.eye(4), loss=1.0)
        >>> round(metrics["effective_rank_h"], 3), metrics["pretext"], metrics["alignment"]
        (4.0, 1.0, 0.0)
    """
    _check(z_1, z_2)
    metrics = {"loss": loss, "width_z": float(z_1.shape[1])}
    names = ("effective_rank_z", "alignment", "uniformity", "mean_cosine", "pretext")
    metrics |= dict.fromkeys(names, math.nan)
    if z_1.isfinite().all() and z_2.isfinite().all():
        metrics |= {
            "effective_rank_z": effective_rank(torch.cat([z_1, z_2]), unit=True),
            "alignment": alignment(z_1, z_2),
            "uniformity": uniformity(z_1),
            "mean_cosine": mean_cosine(z_1),
            "pretext": pretext_accuracy(z_1, z_2),
        }
    is_finite = bool(h.isfinite().all())
    metrics["effective_rank_h"] = effective_rank(h) if is_finite else math.nan
    if labels is not None and is_finite and bool((labels != IGNORE_LABEL).any()):
        metrics |= _knn(h, labels, queries, seed)
    return metrics


def pretext_accuracy(z_1: Tensor, z_2: Tensor) -> float:
    r"""The share of rows whose nearest other row, of both views together, is the same image.

    .. math:: \frac{1}{2B} \sum_i \Bigl[ s_{i\,p(i)} > \max_{k \ne i,\, p(i)} s_{ik} \Bigr]

    A tie counts as not solved, so identical rows score 0. Scores are cosines, computed in
    blocks: no matrix [2B, 2B] is stored.

    Args:
        z_1: [pairs, dim].
        z_2: [pairs, dim], in the same order.

    Returns:
        From 0 to 1.

    Raises:
        ShapeError: If the views differ in shape.
        DataError: If there are fewer than two pairs: one has no negatives.

    Example:
        >>> pretext_accuracy(torch.eye(2), torch.tensor([[0.9, 0.1], [0.8, 0.2]]))
        0.75

    Source:
        Chen et al. 2020, arXiv:2002.05709, table 5 ("contrastive accuracy").
    """
    _check(z_1, z_2)
    pairs = len(z_1)
    unit = unit_length(torch.cat([z_1, z_2]).float())
    size = max(1, SCORE_ELEMENTS // len(unit))
    solved = 0
    for start in range(0, len(unit), size):
        scores = unit[start : start + size] @ unit.T
        row = torch.arange(len(scores), device=scores.device)
        other = (start + row + pairs) % len(unit)
        positive = scores[row, other]
        scores[row, other] = -torch.inf
        scores[row, start + row] = -torch.inf
        solved += int((positive > scores.max(dim=1).values).sum())
    return solved / len(unit)


def mean_cosine(rows: Rows) -> float:
    r"""The mean cosine of two different rows, without a matrix of all pairs.

    .. math:: \frac{\lVert \sum_i u_i \rVert^2 - \sum_i \lVert u_i \rVert^2}{n (n - 1)}

    Args:
        rows: [rows, dim], at least 2.

    Returns:
        From -1 to 1: 1 if all rows have the same direction, about 0 if they are spread.

    Raises:
        DataError: If there are fewer than 2 rows.

    Example:
        >>> mean_cosine(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]))
        0.333...
    """
    if len(rows) < 2:
        raise DataError(f"a mean cosine needs at least 2 rows, got {len(rows)}")
    unit = unit_length(rows.double())
    apart = unit.sum(dim=0).square().sum() - unit.square().sum()
    return float(apart) / (len(rows) * (len(rows) - 1))


def check_collapse(metrics: Mapping[str, float], start: Mapping[str, float] | None = None) -> str | None:
    """Whether a run has collapsed.

    Args:
        metrics: Of `monitor` in pretraining; for an adapter loss, and effective_rank of the adapted rows of a
            sample.
        start: Metrics before the first step. Rows of an untrained network without batch norm may be close
            together: what was so before training is not a collapse, except for a single point. The rank of
            an adapter is compared with that before training.

    Returns:
        A message with what has collapsed and what to do, or None. Reasons are a loss or projections that are
        not finite, rows along few directions, or identical rows.

    Example:
        >>> check_collapse(monitor(torch.eye(3), torch.ones(3, 2), torch.ones(3, 2), loss=1.0))
        'the projections have collapsed: the mean cosine of different images is 1.0000; ...'
        >>> check_collapse({"loss": 1.0, "effective_rank": 1.2}, {"effective_rank": 9.0})
        'the rows have collapsed: effective rank 1.2, 9.0 before training; ...'
    """
    of_projections = "mean_cosine" in metrics
    if not math.isfinite(metrics["loss"]):
        lengthen = ", or lengthen the warm-up" if of_projections else ""
        return f"the loss is {metrics['loss']}; lower the learning rate{lengthen}"
    if of_projections:
        return _collapsed_projections(metrics, start)
    ranks = [each.get("effective_rank", math.nan) for each in (metrics, start or {})]
    return _collapsed_rows(*ranks)


def _collapsed_projections(metrics: Mapping[str, float], start: Mapping[str, float] | None) -> str | None:
    cosine, rank = metrics["mean_cosine"], metrics["effective_rank_z"]
    if math.isnan(cosine):
        return "projections are NaN or infinite; lower the learning rate, or lengthen the warm-up"
    were_close = start is not None and not start["mean_cosine"] < HEALTHY_COSINE
    advice = "lower the learning rate, raise the temperature, or put batch norm into the projection head"
    if cosine > ONE_POINT or (cosine > HIGHEST_COSINE and not were_close):
        return (
            f"the projections have collapsed: the mean cosine of different images is {cosine:.4f}; {advice}"
        )
    were_flat = start is not None and not start["effective_rank_z"] >= HEALTHY_RANK
    if rank < LOWEST_RANK and metrics["width_z"] > 1 and not were_flat:
        return f"the projections have collapsed onto a line: their effective rank is {rank:.2f}; {advice}"
    return None


def _collapsed_rows(rank: float, start_rank: float) -> str | None:
    """For an adapter; its rank before training is that of its closed form. NaN is not a collapse."""
    if (rank < LOWEST_RANK and start_rank > LEAST_START_RANK) or rank < LEAST_RANK_SHARE * start_rank:
        return (
            f"the rows have collapsed: effective rank {rank:.1f}, {start_rank:.1f} before training; "
            "lower the learning rate, or raise the temperature or the margin"
        )
    return None


def _knn(h: Tensor, labels: Tensor, chosen: Tensor | None, seed: int) -> dict[str, float]:
    if chosen is None:
        bank, queries = split_by_class(labels, fraction=QUERY_SHARE, seed=seed)
    else:
        labelled = labels != IGNORE_LABEL
        queries = chosen[labelled[chosen]]
        bank = labelled.index_fill(0, chosen, value=False).nonzero()[:, 0]
    if not len(queries) or not len(bank):
        return {}
    k = min(NEIGHBOURS, len(bank))
    right = knn_correct(h[bank], labels[bank], h[queries], labels[queries], k=k, temperature=TEMPERATURE)
    return {
        "knn": float(right.double().nanmean()),
        "knn_k": float(k),
        "knn_temperature": TEMPERATURE,
        "knn_bank": float(len(bank)),
        "knn_queries": float(len(queries)),
    }


def _check(z_1: Tensor, z_2: Tensor) -> None:
    if z_1.shape != z_2.shape:
        raise ShapeError(
            f"the views' projections are {tuple(z_1.shape)} and {tuple(z_2.shape)}; need the same shape"
        )
    if len(z_1) < 2:
        raise DataError(f"the pretext task needs at least 2 pairs of views, got {len(z_1)}")
