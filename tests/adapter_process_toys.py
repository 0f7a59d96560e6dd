"""Small fits of adapters, for the tests of what several processes do together."""

from functools import partial

import torch
from torch.nn import functional as F

from querykey.adapter.fit import fit_adapter
from querykey.adapter.settings import AdapterSettings
from querykey.adapter.split import TrainingPairs
from querykey.distributed.process_group import current_process_group
from querykey.lookup import PairRule, look_up
from querykey.lookup.top_k import top_k
from querykey.losses import contrastive, score_distillation

ROWS, WIDTH = 90, 8
COMMON = {
    "dim": 4,
    "steps": 6,
    "batch_size": 10,
    "validation_fraction": 0.3,
    "seed": 3,
    "n_iter_no_change": 100,
}
QUEUE = {"labels": True, "capacity": 24}
SIZES = {"dim": None, "dims": (4, 2), "bits": (8,)}
KINDS = {
    "classes, the whole set in memory": {"labels": True},
    "classes, a queue that forgets": QUEUE | {"loss": "multi_similarity"},
    "classes, a memory of projections": QUEUE
    | {"holds": "projections", "loss": "contrastive",
       "loss_options": {"positive_margin": 1.0, "negative_margin": 0.3}},
    "classes, the batch alone": {"labels": True, "memory": "in_batch", "loss": "triplet"},
    "no labels": {"capacity": 24},
    "no labels, score differences": {"capacity": 24, "loss": "score_difference"},
    "pairs": {"pairs": True, "capacity": 24, "negatives": 3},
    **{
        f"{name}, sharded": settings | {"sharded": True}
        for name, settings in {
            "classes, the whole set in memory": {"labels": True, "sampled": 9},
            "classes, a queue that forgets": QUEUE | {"loss": "multi_similarity", "positives": 2},
            "classes, a memory of projections": QUEUE | {"holds": "projections", "loss": "triplet"},
            "no labels": {"capacity": 25},
            "no labels, the whole set in memory": {"loss_options": {"temperature": 0.02}},
            "no labels, a row a share": {"capacity": 4, "batch_size": 4},
            "no labels, queries alone": {"capacity": 24, "both_sides": False},
            "no labels, score differences": {"capacity": 24, "loss": "score_difference"},
            "pairs": {"pairs": True, "capacity": 24, "negatives": 3},
            "pairs, the whole set in memory": {"pairs": True, "negatives": 3},
            "sizes, jointly": {"capacity": 24} | SIZES,
        }.items()
    },
    "sizes, jointly": {"labels": True} | SIZES,
    "sizes, one after the other": {"ladder": "sequential", "capacity": 24} | SIZES,
    "sizes, rotated": {"ladder": "rotation", "capacity": 24} | SIZES,
    "sizes, selected": {"labels": True, "ladder": "selection"} | SIZES,
    "pairs, the whole set in memory": {"pairs": True, "negatives": 3, "side": "query", "dim": 8},
}  # fmt: skip


def fitted(kind):
    """Weights, what the looks saw, and the name of the candidate that won."""
    draw = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(ROWS, WIDTH, generator=draw), dim=1)
    settings = dict(KINDS[kind])
    labels = torch.arange(ROWS) % 6 if settings.pop("labels", False) else None
    pairs = None
    if settings.pop("pairs", False):
        asked = F.normalize(rows[:60] + 0.1 * torch.randn(60, WIDTH, generator=draw), dim=1)
        numbers = torch.arange(60)
        pairs = TrainingPairs(asked, numbers, numbers)
    made = fit_adapter(rows, AdapterSettings.from_parameters(**COMMON | settings), labels=labels, pairs=pairs)
    seen = ("loss", "validation", "candidates", "negative_score", "false_negatives_label")
    looks = [[look.get(name, 0.0) for name in seen] for look in made.history]
    winner = torch.tensor(list(made.report["candidate"].encode()))
    codes = {
        f"codes {dim} {name}": torch.from_numpy(value)
        for (dim, _), code in made.codes.items() for name, value in code.tensors.items()
    }  # fmt: skip
    return (
        made.fc.state_dict() | codes | {"looks": torch.tensor(looks, dtype=torch.float64), "winner": winner}
    )


MODES = ("similar", "hard_negative", "hard_positive", "semi_hard")
LOSSES = {
    "contrastive": partial(contrastive, positive_margin=0.9, negative_margin=0.1),
    "contrastive, euclidean": partial(
        contrastive, distance="euclidean", positive_margin=0.2, negative_margin=1.3
    ),
    "score_distillation": partial(score_distillation, temperature=0.02),
}  # fmt: skip


def of_shares(processes):
    """What shares of some keys give together: selections with ties, losses, and gradients of queries."""
    draw = torch.Generator().manual_seed(5)
    keys = F.normalize(torch.randn(31, WIDTH, generator=draw, dtype=torch.float64), dim=1)
    keys[20:25] = keys[3:8]  # ties, in other shares
    queries = F.normalize(torch.randn(7, WIDTH, generator=draw, dtype=torch.float64), dim=1)
    labels, own = torch.arange(31) % 5, slice(processes.rank, None, processes.world_size)
    labels[20:25] = labels[3:8]

    def looked_up(queries, keys):
        return look_up(
            queries, keys[own], query_ids=torch.arange(7), key_ids=torch.arange(31)[own],
            query_labels=torch.arange(7) % 6, key_labels=labels[own], rule=PairRule(positive="label"),
            shard_group=processes,
        )  # fmt: skip

    found = {}
    for mode in MODES:
        for k in (1, 4, 40):
            found[f"{mode} {k}"] = top_k(looked_up(queries, keys), k, mode)
    for name, loss in LOSSES.items():
        moved = queries.clone().requires_grad_()
        lookup = looked_up(moved, keys)
        target = [looked_up(queries.roll(1, 0), keys)] if name == "score_distillation" else []
        cost = loss(lookup, *target)
        cost.sum().backward()
        found |= {name: processes.sum(cost), f"{name}, gradient": processes.sum(moved.grad)}
    return found


def every_kind(processes):
    assert processes == current_process_group()
    found = {f"{kind}/{name}": value for kind in KINDS for name, value in fitted(kind).items()}
    return found | {f"shares/{name}": value for name, value in of_shares(processes).items()}
