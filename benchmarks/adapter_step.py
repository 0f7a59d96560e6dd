"""One labelled adapter step beside the cross-batch memory of pytorch-metric-learning.

Both train a linear layer with rows of length 1 from 1280 to 256, with the same optimiser, on batches
of 128 with 7,500 rows in memory: ours of frozen features, theirs of projections, as each works. A step with
the defaults on 15,000 rows of 384 numbers is timed beside its matrix products, computed again alone.
"""

import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from timing import Row, in_turns, median_ratio
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from querykey.adapter.closed_forms import principal_components
from querykey.adapter.sampling import plan_of_items
from querykey.adapter.settings import AdapterSettings, resolve
from querykey.adapter.training import layer_at
from querykey.data.batches import UniformBatches
from querykey.encoders.heads import FCLayer
from querykey.evaluation.moments import moments

ROWS, WIDTH, DIM, CLASSES, BATCH = 7_500, 1280, 256, 77, 128
STEPS, REPEATS = 10, 9
MANY_ROWS, NARROW, MANY_CLASSES, MOST_BY_PRODUCTS = 15_000, 384, 150, 1.5
DEFAULTS = {"sampled": None, "negatives": None, "positives": None}
PEER = "pytorch-metric-learning"
BOTH, QUERY = "gradient through both sides", "gradient through the query side"

OURS: dict[str, tuple[dict[str, Any], float | None]] = {
    f"info_nce, k = 8, {BOTH}": ({"loss": "info_nce", "negatives": 8}, 6.0),
    f"multi_similarity, k = 8, {BOTH}": ({"loss": "multi_similarity", "negatives": 8}, 6.0),
    f"info_nce, k = 8, {QUERY}": ({"loss": "info_nce", "negatives": 8, "both_sides": False}, 10.0),
    f"multi_similarity, k = 8, {QUERY}": (
        {"loss": "multi_similarity", "negatives": 8, "both_sides": False},
        10.0,
    ),
    "the defaults for these classes: nca, 2,048 sampled": ({"sampled": None}, None),
    "the defaults for many classes: info_nce, k = 8, 512 sampled": (
        {"loss": "info_nce", "negatives": 8, "sampled": 512},
        None,
    ),
}
OURS |= {
    f"{name}, bfloat16": (given | {"precision": "bfloat16"}, None if target is None else 10.0)
    for name, (given, target) in OURS.items()
}
"""Settings of each plan, and how many times the peer's steps per second it should take."""


def rows_and_labels(rows: int = ROWS, width: int = WIDTH, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Unit rows around a centre for each class, near enough to each other for hard negatives."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, width, generator=draw)
    return F.normalize(centres[labels] + torch.randn(rows, width, generator=draw), dim=1), labels


def pca_layer(rows: Tensor, settings: AdapterSettings) -> FCLayer:
    """The start of a fit: PCA without centring."""
    return layer_at(principal_components(moments(rows), DIM, centred=False), settings)


def our_steps(rows: Tensor, labels: Tensor, chosen: dict[str, Any]) -> Callable[[], None]:
    """The plan that `fit_adapter` takes with these settings."""
    settings = AdapterSettings.from_parameters(
        **{
            "sampled": 0,
            "positives": 0,
            "negatives": 0,
            "dim": DIM,
            "batch_size": BATCH,
            "learning_rate": 1e-3,
            **chosen,
        }
    )
    settings = resolve(settings, task="labels", items=len(rows), width=rows.shape[1])
    fc = pca_layer(rows, settings)
    plan, numbers = plan_of_items(fc, settings, rows, torch.arange(len(rows)), labels), itertools.count()

    def steps() -> None:
        for _ in range(STEPS):
            plan.take(next(numbers))

    return steps


def their_steps(rows: Tensor, labels: Tensor) -> Callable[[], None]:
    """Cross-batch memory of projections, multi-similarity loss and its miner, all rows in memory."""
    from pytorch_metric_learning.losses import CrossBatchMemory, MultiSimilarityLoss
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    layer = nn.Linear(WIDTH, DIM)
    with torch.no_grad():
        layer.weight.copy_(principal_components(moments(rows), DIM, centred=False).weight)
        layer.bias.zero_()
    loss = CrossBatchMemory(MultiSimilarityLoss(), DIM, memory_size=ROWS, miner=MultiSimilarityMiner())
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    with torch.no_grad():
        for ids in torch.arange(ROWS).split(BATCH):
            loss.add_to_memory(F.normalize(layer(rows[ids]), dim=1), labels[ids], len(ids))
    assert loss.has_been_filled
    batches, numbers = UniformBatches(ROWS, batch_size=BATCH, seed=0), itertools.count()

    def steps() -> None:
        for _ in range(STEPS):
            ids = batches(next(numbers))
            value = loss(F.normalize(layer(rows[ids]), dim=1), labels[ids])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    return steps


class Products(TorchDispatchMode):
    """Keeps the arguments of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.calls.append((func, tuple(one.clone() if isinstance(one, Tensor) else one for one in args)))
        return func(*args, **(kwargs or {}))

    def run(self) -> None:
        """Compute them again."""
        for func, args in self.calls:
            func(*args)


def beside_products() -> list[Row]:
    """Seconds of a step with the defaults by those of its bare products: same shapes, layout and dtype."""
    rows, labels = rows_and_labels(MANY_ROWS, NARROW, MANY_CLASSES)
    table = []
    for precision in ("float32", "bfloat16"):
        steps = our_steps(rows, labels, DEFAULTS | {"precision": precision})
        steps()
        with Products() as products:
            steps()
        seconds = in_turns({"steps": steps, "products": products.run}, REPEATS)
        ratio = median_ratio(seconds["steps"], seconds["products"])
        table.append(
            Row(
                f"a step with the defaults, {MANY_ROWS:,} x {NARROW}, by its products, {precision}",
                ratio,
                f"at most {MOST_BY_PRODUCTS:g}",
                ratio <= MOST_BY_PRODUCTS,
                {f"{of}_ms": round(1000 * statistics.median(s) / STEPS, 2) for of, s in seconds.items()},
            )
        )
    return table


def measure() -> list[Row]:
    """Steps per second of each plan by the peer's, and of the defaults beside their products."""
    rows, labels = rows_and_labels()
    contenders = {name: our_steps(rows, labels, chosen) for name, (chosen, _) in OURS.items()}
    seconds = in_turns({PEER: their_steps(rows, labels), **contenders}, REPEATS)
    step = {name: round(1000 * statistics.median(taken) / STEPS, 2) for name, taken in seconds.items()}
    table = []
    for name, (_, target) in OURS.items():
        ratio = median_ratio(seconds[PEER], seconds[name])
        table.append(
            Row(
                f"steps per second by the peer's: {name}",
                ratio,
                "" if target is None else f"at least {target:g}",
                None if target is None else ratio >= target,
                {"step_ms": step[name], "peer_step_ms": step[PEER]},
            )
        )
    return table + beside_products()


if __name__ == "__main__":
    for row in measure():
        print(row)
