"""Small fits of adapters, for the tests of what several processes do together."""

import torch
from torch.nn import functional as F

from querykey.processes import current_processes
from querykey.training.fit_adapter import fit_adapter
from querykey.training.settings import AdapterSettings
from querykey.training.split import TrainingPairs

ROWS, WIDTH = 90, 8
COMMON = {"dim": 4, "steps": 6, "batch_size": 10, "held_out": 0.3, "seed": 3, "patience": 100}
QUEUE = {"labels": True, "capacity": 24}
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
    "pairs, the whole set in memory": {"pairs": True, "negatives": 3, "side": "query", "dim": 8},
}  # fmt: skip


def fitted(kind):
    """Weights and what the looks saw."""
    draw = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(ROWS, WIDTH, generator=draw), dim=1)
    settings = dict(KINDS[kind])
    labels = torch.arange(ROWS) % 6 if settings.pop("labels", False) else None
    pairs = None
    if settings.pop("pairs", False):
        asked = F.normalize(rows[:60] + 0.1 * torch.randn(60, WIDTH, generator=draw), dim=1)
        numbers = torch.arange(60)
        pairs = TrainingPairs(asked, numbers, numbers)
    made = fit_adapter(rows, AdapterSettings(**COMMON | settings), labels=labels, pairs=pairs)
    looks = [[look["loss"], look["guard"]] for look in made.history]
    return made.fc.state_dict() | {"looks": torch.tensor(looks, dtype=torch.float64)}


def every_kind(processes):
    assert processes == current_processes()
    return {f"{kind}/{name}": value for kind in KINDS for name, value in fitted(kind).items()}
