"""What adapters are compared with: projections, product quantisation, two published adaptors."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from querykey.adapter.relevance import unit_rows
from querykey.adapter.validation import in_blocks
from querykey.data.batches import UniformBatches
from querykey.encoders.heads import FCLayer
from querykey.errors import MissingExtraError
from querykey.evaluation import baselines
from querykey.lookup.lookup import DensePairs, Lookup
from querykey.lookup.nearest import nearest
from querykey.lookup.unit_length import unit_length
from querykey.losses.preserving import rank_loss, score_difference
from querykey.optim import warm_up_cosine
from querykey.studies.engine.data import FitRows
from querykey.types import Rows

__all__ = ["baseline", "matryoshka_adaptor", "product_quantised", "search_adaptor"]

BATCH, RATE, STEPS = 128, 1e-3, 600
"""Rows a step, peak rate of AdamW (cosine to 0) and steps: those of our own fits."""
NEIGHBOURS = 10
"""k of the top-k similarity loss."""

Moves = Callable[[Tensor], Tensor]


def baseline(name: str, train: FitRows, dim: int) -> baselines.Projector:
    """Fit a baseline by its name.

    Args:
        name: "frozen", "truncated", "pca", "pca_uncentred", "whitened_pca", "random_projection" or "lda".
        train: What it is fitted on; "lda" needs labels.
        dim: Width of its output; "frozen" keeps that of the rows.

    Returns:
        The projection.

    Raises:
        KeyError: If there is none of that name.
    """
    width = train.rows.shape[1]
    match name:
        case "frozen":
            return baselines.Projector(name=name, dim=width)
        case "truncated":
            return baselines.truncated(width, dim)
        case "pca" | "pca_uncentred":
            return baselines.pca(train.rows, dim, centred=name == "pca")
        case "whitened_pca":
            return baselines.whitened_pca(train.rows, dim)
        case "random_projection":
            return baselines.random_projection(width, dim)
        case "lda":
            assert train.labels is not None
            return baselines.lda(train.rows, train.labels, dim)
        case _:
            raise KeyError(name)


def product_quantised(rows: Rows, count: int, *, seed: int) -> Moves:
    """Rows as a product quantiser of faiss stores them: 256 centroids in each of `count` parts of a row.

    Args:
        rows: Frozen rows that centroids are fitted to [rows, width].
        count: Parts, and bytes a row; divides the width.
        seed: Of k-means.

    Returns:
        Frozen rows to the centroids that stand for them [rows, width]. Queries stay floats.

    Source:
        Jégou et al. 2011, Product quantization for nearest neighbor search, with asymmetric distances.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("faiss", extra="results", purpose="product quantisation") from error

    unit = unit_rows(rows).numpy()
    quantiser: Any = faiss.ProductQuantizer(unit.shape[1], count, 8)  # only some versions have types
    quantiser.cp.seed = 1234 + seed
    quantiser.cp.min_points_per_centroid = 1  # small collections are fitted without a word
    quantiser.train(unit)

    def stored(frozen: Tensor) -> Tensor:
        codes = quantiser.compute_codes(unit_rows(frozen).numpy())
        return torch.from_numpy(quantiser.decode(codes))

    return stored


def matryoshka_adaptor(rows: Rows, sizes: Sequence[int], *, seed: int, steps: int = STEPS) -> Moves:
    r"""Rows with a learned change, whose prefixes keep the frozen scores.

    .. math:: f(x) = x + W_2\,\text{gelu}(W_1 x + b_1) + W x + b, \quad
              \sum_d \Bigl(L_{\text{top-}k}(f(x)_{:d}) + L_{\text{pair}}(f(x)_{:d})\Bigr) + L_{\text{rec}}

    Both similarity losses are mean absolute differences to the frozen cosine: over the k nearest rows, and
    over all rows of the batch. The reconstruction is the mean absolute change of a number.

    Args:
        rows: Frozen rows [rows, width].
        sizes: Of the prefixes.
        seed: Of the batches.
        steps: Of AdamW.

    Returns:
        Frozen rows to rows of the full width.

    Source:
        Yoon et al. 2024, arXiv:2407.20243, without labels; weights of the losses are 1.
    """
    unit = unit_rows(rows)
    width = unit.shape[1]
    ids = torch.arange(len(unit))
    neighbours = nearest(unit, unit, min(NEIGHBOURS, len(unit) - 1), query_ids=ids, key_ids=ids)[1]
    layer = FCLayer(width, width, kind="two_layer")
    layer.set_affine_(torch.eye(width), torch.zeros(width))
    course = _Course(layer, len(unit), seed=seed, steps=steps)
    for batch in course:
        near = neighbours[batch]
        chosen, place = torch.unique(torch.cat([batch, near.flatten()]), return_inverse=True)
        made = layer.project(unit[chosen])
        ours, of_near = place[: len(batch)], place[len(batch) :].view(near.shape)
        top_k = torch.zeros(len(batch), len(chosen), dtype=torch.bool).scatter_(1, of_near, value=True)
        pairwise = torch.isin(chosen, batch).expand(len(batch), -1) & (chosen != batch[:, None])
        frozen = unit[chosen]
        losses = []
        for mask in (top_k, pairwise):
            pairs = DensePairs(mask, torch.zeros_like(mask))
            target = Lookup(frozen[ours], frozen, pairs)
            losses += [
                score_difference(Lookup(z[ours], z, pairs), target).mean()
                for z in (unit_length(made[:, :size]) for size in sizes)
            ]
        recovery = (made - frozen).abs().mean()
        course.descend(torch.stack(losses).sum() + recovery)
    return in_unit_rows(layer)


def search_adaptor(train: FitRows, sizes: Sequence[int], *, seed: int, steps: int = STEPS) -> Moves:
    r"""Rows with a learned change, fitted to (query, document) pairs: ranking, recovery and prediction.

    .. math:: L = \sum_d \text{mean}\log\bigl(1 + e^{s^d_{in} - s^d_{ip}}\bigr) + \text{mean} |f(x) - x|
              + \text{mean} |p(f(q)) - f(d)|

    with p a linear layer from queries to their documents, used in training alone.

    Args:
        train: With queries and pairs.
        sizes: Of the prefixes: the ranking loss is summed over them.
        seed: Of the batches.
        steps: Of AdamW.

    Returns:
        Frozen rows, of queries or of documents, to rows of the full width.

    Source:
        Yoon et al. 2023, arXiv:2310.08750; weights of the losses are 1.
    """
    assert train.queries is not None
    assert train.pairs is not None
    documents, queries = unit_rows(train.rows), unit_rows(train.queries)
    width = documents.shape[1]
    layer, predictor = FCLayer(width, width, kind="two_layer"), FCLayer(width, width, kind="residual")
    layer.set_affine_(torch.eye(width), torch.zeros(width))
    predictor.set_affine_(torch.eye(width), torch.zeros(width))
    both = nn.ModuleList([layer, predictor])
    course = _Course(both, len(train.pairs), seed=seed, steps=steps)
    for batch in course:
        asked, answers = train.pairs[batch, 0], train.pairs[batch, 1]
        q, d = queries[asked], documents[answers]
        made_q, made_d = layer.project(q), layer.project(d)
        own = answers[:, None] == answers[None, :]
        lookup = Lookup(made_q, made_d, DensePairs(own, ~own), "cosine")
        ranked = torch.stack([rank_loss(lookup.prefix(size)).mean() for size in sizes]).sum()
        recovery = sum((made - x).abs().mean() for made, x in ((made_q, q), (made_d, d)))
        prediction = (predictor.project(made_q) - made_d).abs().mean()
        course.descend(ranked + recovery + prediction)
    return in_unit_rows(layer)


class _Course:
    """Batches of row numbers, and a step of AdamW on each.

    Args:
        module: Is trained in place.
        items: Rows that batches are drawn from.
        seed: Of the batches.
        steps: Of AdamW.
    """

    def __init__(self, module: nn.Module, items: int, *, seed: int, steps: int) -> None:
        self.steps = steps
        self.batches = UniformBatches(items, batch_size=min(BATCH, items), seed=seed)
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=0.0)

    def __iter__(self) -> Iterator[Tensor]:
        for step in range(self.steps):
            self.optimizer.param_groups[0]["lr"] = RATE * warm_up_cosine(step, steps=self.steps)
            yield self.batches(step)

    def descend(self, loss: Tensor) -> None:
        """A step along the gradient of a loss."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def in_unit_rows(layer: FCLayer) -> Moves:
    """A layer on frozen rows of any length, without gradient."""
    return lambda rows: in_blocks(layer, unit_rows(rows))
