"""Training a candidate from a closed form, scored on held-out queries now and then."""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from querykey.adapter.closed_forms import Affine
from querykey.adapter.sampling import FitPlan
from querykey.adapter.selection import mean_at_best
from querykey.adapter.sequential import SequentialLayer
from querykey.adapter.settings import AdapterSettings
from querykey.adapter.steps import Step
from querykey.adapter.verdict import Report
from querykey.diagnostics.collapse import check_collapse
from querykey.diagnostics.dictionary import dictionary_health
from querykey.distributed.process_group import current_process_group
from querykey.encoders.heads import FCLayer, orthogonal
from querykey.evaluation.geometry import effective_rank
from querykey.lookup.lookup import IGNORE_LABEL, Lookup
from querykey.lookup.unit_length import unit_length
from querykey.losses.streaming import Form, chosen_form, loss_bytes
from querykey.optim import warm_up_cosine
from querykey.runtime.codes import Code
from querykey.types import FrozenRows, PairMask, Rows

__all__ = [
    "CHECKS",
    "Fitted",
    "LowRankChange",
    "Record",
    "Training",
    "describe_fit_memory",
    "layer_at",
    "step_metrics",
]

CHECKS = 25
"""Evaluations per run."""

Record = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, eq=False)
class Fitted:
    """The result of a fit.

    Args:
        fc: The FC layer, in eval mode.
        settings: Resolved settings, with the preset that was trained.
        report: Verdict, difference to the reference, the returned candidate, seconds.
        history: One record per evaluation during training: step, validation score and metrics.
        candidates: Each candidate: name, validation score, difference to the reference, seconds.
        codes: (size, bits) to `Code`.
        frontier: Bytes, quality and interval of each size at each precision.
    """

    fc: FCLayer
    settings: AdapterSettings
    report: Report
    history: list[dict[str, Any]] = field(default_factory=list)
    candidates: list[dict[str, Any]] = field(default_factory=list)
    codes: dict[tuple[int, int], Code] = field(default_factory=dict)
    frontier: list[dict[str, Any]] = field(default_factory=list)


class LowRankChange(nn.Module):
    r"""A fixed layer plus a trained change of low rank.

    .. math:: z = \text{norm}(W x + b + U V x)

    Args:
        start: W and b.
        rank: Rank of the change, from 1 to the width. U starts at 0 and V at random orthonormal rows.
        seed: Seed of V.
    """

    def __init__(self, start: Affine, rank: int, *, seed: int) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        dim, width = start.weight.shape
        self.register_buffer("weight", start.weight.float())
        self.register_buffer("bias", start.bias.float())
        self.up = nn.Parameter(torch.zeros(dim, rank))
        self.down = nn.Parameter(orthogonal(min(rank, width), width, seed=seed))

    def forward(self, rows: FrozenRows) -> Rows:
        """Map unit rows [rows, width] to unit rows [rows, dim]."""
        kept = F.linear(rows, self.weight, self.bias)
        return unit_length(kept + F.linear(F.linear(rows, self.down), self.up))

    def affine(self) -> Affine:
        """W + U V and b."""
        return Affine((self.weight + self.up @ self.down).detach().double(), self.bias.double())


def layer_at(start: Affine, settings: AdapterSettings) -> FCLayer:
    """An FC layer that computes a closed form.

    Args:
        start: The closed form.
        settings: Resolved settings; `fc.kind` is the kind of the layer.

    Returns:
        The layer, the same bits on every process.
    """
    assert settings.fc.kind is not None
    fc = FCLayer(start.weight.shape[1], len(start.weight), kind=settings.fc.kind)
    fc.set_affine_(start.weight, start.bias)
    current_process_group().broadcast_(fc.state_dict().values())  # another machine's bits may differ
    return fc


@dataclass(eq=False)
class Training:
    """A training run that can be continued.

    Args:
        fc: The layer, trained in place.
        settings: Resolved settings.
        steps: Planned steps, over which the learning rate falls to 0.
        plan: The steps.
        validate: Scores the layer on held-out queries, [queries, temperatures]; None: nothing is held out.
        selection: Queries that are used for early stopping; the others evaluate the result.
        sample: Frozen unit rows for the metrics.
        record: Called with each record as it is made.
        history: One record per evaluation.
        scores: Step to the scores of all queries at that step.
    """

    fc: nn.Module
    settings: AdapterSettings
    steps: int
    plan: FitPlan
    validate: Callable[[nn.Module], Tensor] | None
    selection: Tensor | None
    sample: FrozenRows
    record: Record | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[int, Tensor] = field(default_factory=dict)
    means: dict[int, float] = field(default_factory=dict)
    """Step to the mean score, filled by `best_step`."""
    states: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    stage_states: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    taken: int = 0
    stage_ends: list[int] = field(default_factory=list)
    """Best step of each stage of a sequential ladder, which a refit repeats."""
    stopped: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._rate = self.settings.learning_rate or 0.0
        self._start = self._row_metrics()
        self._evaluate()

    def run(self, until: int, *, patience: int | None = None, keep: bool = True) -> "Training":
        """Train up to a step, with evaluations in between.

        Args:
            until: Number of steps at the end, at most the planned ones.
            patience: Evaluations without improvement before the run stops; None: no early stopping.
            keep: Whether to keep the best state.

        Returns:
            Itself.
        """
        every = max(1, -(-self.steps // CHECKS))
        while self.taken < min(until, self.steps) and not self.stopped:
            self._change_stage()
            if self.taken >= min(until, self.steps):
                break
            for group in self.plan.learner.optimizer.param_groups:
                group["lr"] = self._rate * warm_up_cosine(
                    self.taken % self._stage_steps, steps=self._stage_steps
                )
            step = self.plan.take(self.taken)
            self.taken += 1
            ends = self.taken % self._stage_steps == 0
            if self.taken % every and self.taken not in (self.steps, until) and not ends:
                continue
            metrics = step_metrics(step, self.fc) | self._row_metrics()
            score = self._evaluate()
            self.history.append({"step": self.taken, "validation": score, **metrics})
            if self.record is not None:
                self.record(self.history[-1])
            if (reason := check_collapse(metrics, self._start)) is not None:
                self.stopped = reason
                warnings.warn(f"training stopped at step {self.taken}: {reason}", UserWarning, stacklevel=2)
            elif patience is not None and not self._staged and self._since_best() >= patience:
                self.stopped = f"no better validation score in {patience} evaluations"
            if not keep:
                self.states.clear()
        return self

    @property
    def _staged(self) -> bool:
        return isinstance(self.fc, SequentialLayer)

    @property
    def _stage_steps(self) -> int:
        """Steps per stage of a sequential ladder; all steps otherwise."""
        return -(-self.steps // len(self.fc.stages)) if isinstance(self.fc, SequentialLayer) else self.steps

    def _change_stage(self) -> None:
        """Start the next stage of a sequential ladder from the best state of this one."""
        if not isinstance(self.fc, SequentialLayer):
            return
        stage, length = int(self.fc.stage), self._stage_steps
        if self.validate is None and stage < len(self.stage_ends) and self.taken >= self.stage_ends[stage]:
            # a refit leaves a stage at the best step of the first fit
            self.taken = min((stage + 1) * length, self.steps)
        if self.taken == (stage + 1) * length < self.steps:
            if self.validate is not None:
                step = max(self.stage_states, key=lambda step: (self._in_stage(step, stage), -step))
                self.fc.load_state_dict(self.stage_states[step])
                self.stage_ends.append(step)
            self.fc.next_stage_()
            self.plan.learner.optimizer.state.clear()
            if self.validate is not None:
                self.stage_states = {self.taken: copy.deepcopy(self.fc.state_dict())}
                self.scores[self.taken] = self.scores[step]
                self.means.pop(self.taken, None)
        self.fc.step, self.fc.progress = self.taken, self.taken % length / length

    def _in_stage(self, step: int, stage: int) -> float:
        """Mean score of the sizes that a stage trains."""
        assert isinstance(self.fc, SequentialLayer)
        scores, stages = self.scores[step], self.fc.stages
        first = sum(map(len, stages[:stage]))
        return self._mean(scores[:, :, first : first + len(stages[stage])])

    @property
    def best_step(self) -> int:
        """The step with the highest mean score over the choosing queries."""
        for step in self.scores.keys() - self.means.keys():
            self.means[step] = self._mean(self.scores[step])
        return max(self.means, key=lambda step: (self.means[step], -step)) if self.means else self.taken

    @property
    def best_score(self) -> float:
        """The score of the best step."""
        return self._mean(self.scores[self.best_step])

    def restore(self, step: int) -> None:
        """Restore the state of an evaluated step."""
        if step in self.states:
            self.fc.load_state_dict(self.states[step])

    @torch.no_grad()
    def _row_metrics(self) -> dict[str, float]:
        """Effective rank of the adapted sample, fill level of the memory, and age of its rows in enqueues."""
        rank = effective_rank(self.fc(self.sample))
        metrics = dictionary_health(self.plan.memory, max(1, self.plan.capacity))
        return metrics if math.isnan(rank) else metrics | {"effective_rank": rank}

    def _evaluate(self) -> float:
        if self.validate is None:
            return math.nan
        with torch.no_grad():
            scores = self.validate(self.fc)
        current_process_group().broadcast_([scores])
        self.scores[self.taken] = scores
        score = self._mean(scores)
        if isinstance(self.fc, SequentialLayer):
            self._keep_of_stage(self.fc)
        if self.taken == self.best_step:
            self.states = {self.taken: copy.deepcopy(self.fc.state_dict())}
        return score

    def _keep_of_stage(self, fc: SequentialLayer) -> None:
        """Keep the best state for the sizes of this stage, from which the next one starts."""
        stage = int(fc.stage)
        best = max((self._in_stage(step, stage) for step in self.stage_states), default=-math.inf)
        if self._in_stage(self.taken, stage) > best:
            self.stage_states = {self.taken: copy.deepcopy(fc.state_dict())}

    def _mean(self, scores: Tensor) -> float:
        """Mean score over the choosing queries, at their best temperature."""
        chosen = scores if self.selection is None else scores[self.selection]
        mean = mean_at_best(chosen)
        return -math.inf if math.isnan(mean) else mean

    def _since_best(self) -> int:
        return sum(step > self.best_step for step in self.scores)


@torch.no_grad()
def step_metrics(step: Step, fc: nn.Module) -> dict[str, float]:
    """Metrics of a step.

    Args:
        step: The last step.
        fc: The FC layer after the step, with its gradients.

    Returns:
        loss; candidates: mean number of positives and negatives per query; positive_score and negative_score:
        means; gradient_norm; and, if there are labels, false_negatives_label: the fraction of the labelled
        negative pairs that are of one class. All over the look-ups of all processes.
    """
    lookup, labels = step.lookup, step.labels
    grads = [p.grad.norm() for p in fc.parameters() if p.grad is not None]
    metrics = {
        "loss": step.loss,
        "candidates": _candidates(lookup),
        "positive_score": _mean_score(lookup, lookup.positive),
        "negative_score": _mean_score(lookup, lookup.negative),
        "gradient_norm": float(torch.stack(grads).norm()) if grads else 0.0,
    }
    is_labelled = [one != IGNORE_LABEL for one in labels]
    if bool(is_labelled[0].any()):
        both = lookup.negative & is_labelled[0][:, None] & is_labelled[1][None, :]
        same_class = both & (labels[0][:, None] == labels[1][None, :])
        counts = torch.stack([same_class.sum(), both.sum()])
        wrong, negatives = lookup.shard_group.sum(counts).tolist()
        metrics["false_negatives_label"] = wrong / max(1, negatives)
    return {name: value for name, value in metrics.items() if not math.isnan(value) or name == "loss"}


def _candidates(lookup: Lookup) -> float:
    """Mean number of positives and negatives per query."""
    counts = torch.stack([mask.sum() for mask in lookup.masks])
    return float(lookup.shard_group.sum(counts).sum()) / max(1, len(lookup))


def _mean_score(lookup: Lookup, mask: PairMask) -> float:
    """Of the pairs of a mask; NaN where there is none."""
    sums = torch.stack([lookup.scores[mask].sum(dtype=torch.float64), mask.sum(dtype=torch.float64)])
    total, count = lookup.shard_group.sum(sums).tolist()
    return total / count if count else math.nan


def describe_fit_memory(settings: AdapterSettings, *, items: int, width: int, processes: int = 1) -> str:
    """Describe the memory that the loss and the cross-batch memory take beside the features.

    Args:
        settings: Resolved settings.
        items: Number of training rows.
        width: Width of the frozen rows.
        processes: Number of processes over which a sharded memory is split.

    Returns:
        A line of at most 78 characters.

    Example:
        >>> from querykey.adapter.settings import resolve
        >>> settings = resolve(AdapterSettings(), task="unlabelled", items=50_000, width=384)
        >>> describe_fit_memory(settings, items=50_000, width=384)
        'memory: loss about 43 MiB (chunked, 128 x 50,000 scores), features 73 MiB'
    """
    queries = settings.batch_size
    stored = 0 if settings.memory.kind == "in_batch" else min(settings.memory.capacity, items)
    is_sharded = settings.memory.sharded and processes > 1
    share = -(-stored // processes) if is_sharded else stored
    if settings.loss.kind == "score_distillation":
        keys = max(queries, share)
    else:
        own = (
            settings.selection.neighbours
            if settings.loss.kind == "score_difference"
            else settings.selection.negatives or 0
        )
        keys = queries + min(
            stored, queries * (own + (settings.selection.positives or 0)) + (settings.selection.sampled or 0)
        )
    given: Form = "dense" if is_sharded else settings.loss.options.get("form", "auto")
    can_stream = settings.loss.kind in ("info_nce", "score_distillation")
    form = chosen_form(given, queries, keys) if can_stream else "dense"
    size = loss_bytes(queries, keys, settings.dim or width, form)
    return (
        f"memory: loss about {max(1, size >> 20):,} MiB ({form}, {queries:,} x {keys:,} scores), "
        f"features {max(1, 4 * share * width >> 20):,} MiB"
    )
