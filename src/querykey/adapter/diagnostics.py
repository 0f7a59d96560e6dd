"""Signs of life of a run, written into every record, and the word that stops it."""

import math

import torch
from torch import nn

from querykey.adapter.steps import Step
from querykey.dictionaries.protocol import Dictionary
from querykey.evaluation.geometry import effective_rank
from querykey.lookup.lookup import Lookup
from querykey.types import PairMask, Rows

__all__ = ["collapse_reason", "health"]


@torch.no_grad()
def health(step: Step, memory: Dictionary, capacity: int, fc: nn.Module, sample: Rows) -> dict[str, float]:
    """What a step shows of the run's health.

    Args:
        step: The step just taken.
        memory: The dictionary.
        capacity: Rows the memory holds when full.
        fc: The FC layer, after the step; its gradients are still there.
        sample: Frozen unit rows that training does not see.

    Returns:
        Loss, candidates (rows that a query meets, mean), mean positive and negative score, gradient norm,
        memory fill (share), age of its rows (enqueues, mean and largest), effective rank of the adapted
        sample, and, where labels are known, the share of a query's negatives that are of its own class.
    """
    lookup, age = step.lookup, memory.age().float()
    grads = [p.grad.norm() for p in fc.parameters() if p.grad is not None]
    seen = {
        "loss": step.loss,
        "candidates": _candidates(lookup),
        "positive_score": _mean(lookup, lookup.positive),
        "negative_score": _mean(lookup, lookup.negative),
        "gradient_norm": float(torch.stack(grads).norm()) if grads else 0.0,
        "memory_fill": len(memory) / max(capacity, 1),
        "age_mean": float(age.mean()) if len(age) else 0.0,
        "age_max": float(age.max()) if len(age) else 0.0,
        "effective_rank": effective_rank(fc(sample)),
    }
    if step.labels is not None and bool((step.labels[0] >= 0).any()):
        mine, theirs = step.labels
        same = (mine[:, None] == theirs[None, :]) & (mine >= 0)[:, None]
        counts = torch.stack([(same & lookup.negative).sum(), lookup.negative.sum()])
        own_class, negatives = lookup.shard_group.sum(counts).tolist()
        seen["false_negatives"] = own_class / max(1, negatives)
    return {name: value for name, value in seen.items() if not math.isnan(value) or name == "loss"}


def collapse_reason(seen: dict[str, float], start_rank: float) -> str | None:
    """Why a run means nothing any more, in a sentence, or None.

    Args:
        seen: What `health` gave.
        start_rank: Effective rank of the same sample before training.

    Returns:
        The reason: a loss that is no number, or rows that have fallen onto few directions.
    """
    if not math.isfinite(seen["loss"]):
        return f"the loss is {seen['loss']}; lower the learning rate"
    rank = seen["effective_rank"]
    if (rank < 1.5 and start_rank > 3) or rank < 0.1 * start_rank:
        return (
            f"the rows have collapsed: effective rank {rank:.1f}, {start_rank:.1f} before training; "
            "lower the learning rate, or raise the temperature or the margin"
        )
    return None


def _candidates(lookup: Lookup) -> float:
    """Positives and negatives a query, mean."""
    counts = torch.stack([mask.sum() for mask in lookup.masks])
    return float(lookup.shard_group.sum(counts).sum()) / max(1, len(lookup))


def _mean(lookup: Lookup, mask: PairMask) -> float:
    """Of the scores of some pairs; not a number where there are none."""
    own = torch.stack([lookup.scores[mask].sum(dtype=torch.float64), mask.sum(dtype=torch.float64)])
    total, count = lookup.shard_group.sum(own).tolist()
    return total / count if count else math.nan
