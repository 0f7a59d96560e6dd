"""Build the training steps from the settings: memory, batches and selection."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from querykey.adapter.batch import Batch, Pool, SelectedSlots
from querykey.adapter.relevance import Relevance, RelevantPairs
from querykey.adapter.sequential import SequentialLayer
from querykey.adapter.settings import AdapterSettings
from querykey.adapter.split import TrainingPairs
from querykey.adapter.steps import (
    ID_RULE,
    LABEL_RULE,
    AdapterLearner,
    Choose,
    Step,
    adapter_step,
    distillation_step,
    pairs_step,
    projections_step,
)
from querykey.adapter.validation import in_blocks
from querykey.data.batches import UniformBatches
from querykey.dictionaries.cross_batch import CrossBatchMemory
from querykey.dictionaries.protocol import Dictionary
from querykey.dictionaries.static import InBatch, WholeSet
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.lookup.lookup import Lookup, PairRule, Score, look_up
from querykey.lookup.top_k import Mode, top_k
from querykey.losses.by_name import objective
from querykey.types import FrozenRows, Labels, Numbers

__all__ = ["FitPlan", "plan_of_items", "plan_of_pairs"]


@dataclass(frozen=True, eq=False)
class FitPlan:
    """The training steps of a fit.

    Args:
        take: Runs step i.
        memory: The dictionary of keys.
        capacity: Capacity of the memory in rows.
        learner: Layer, loss and optimizer.
    """

    take: Callable[[int], Step]
    memory: Dictionary
    capacity: int
    learner: AdapterLearner


def plan_of_items(
    fc: nn.Module,
    settings: AdapterSettings,
    vectors: FrozenRows,
    train: Numbers,
    labels: Labels | None,
    *,
    target: Callable[[Tensor], Tensor] | None = None,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> FitPlan:
    """Steps over items, with labels or without.

    Args:
        fc: The layer.
        settings: Resolved settings.
        vectors: Frozen rows of all items.
        train: Indices of the training items.
        labels: Class of each item, or None.
        target: Maps frozen rows to the rows whose scores are preserved; None: the identity.
        processes: Each rank selects for its slice of the queries and computes their loss; with a sharded
            memory it stores and scores a shard.

    Returns:
        The `FitPlan`.
    """
    learner = _learner(fc, settings, LABEL_RULE if labels is not None else ID_RULE, processes)
    learner.target = target
    holds_projections = settings.memory.holds == "projections"
    whole = (
        settings.memory.kind == "cross_batch"
        and settings.memory.capacity >= len(train)
        and not holds_projections
    )
    shard_group = processes if settings.memory.sharded else SINGLE_PROCESS
    pool = Pool(
        vectors, train, labels, keep=len(train) <= settings.memory.capacity and shard_group.world_size == 1
    )
    size = min(settings.batch_size, len(pool))  # a fold has fewer rows than the whole
    batches = UniformBatches(len(pool), batch_size=size, seed=settings.seed)
    memory = _memory(
        pool, settings, shard_group, whole=whole, project=learner.fc if holds_projections else None
    )
    capacity = _capacity(settings, pool)
    if whole and target is not None:
        learner.target = _cached_target(target, memory.read().vectors)

    if settings.loss.kind == "score_distillation" and not settings.selection.sampled:
        return FitPlan(
            lambda i: distillation_step(learner, pool.batch(batches(i)), memory), memory, capacity, learner
        )
    counts = _selected_rows(settings, keeps_scores=learner.objective.keeps_scores)
    top = _distributed(
        _select_each_step(counts, learner.rule, score="dot" if holds_projections else "cosine"), processes
    )
    if whole:
        top = _select_once(top, pool, memory)
    draws = settings.memory.kind == "cross_batch" and settings.loss.kind != "score_difference"
    sampled = settings.selection.sampled or 0 if draws else 0
    take = projections_step if holds_projections else adapter_step
    return FitPlan(
        lambda i: take(
            learner, pool.batch(batches(i)), memory, _with_sample(top, sampled, (settings.seed, i))
        ),
        memory,
        capacity,
        learner,
    )


def _selected_rows(settings: AdapterSettings, *, keeps_scores: bool) -> dict[Mode, int]:
    """How many rows of the memory are selected per query, by mode."""
    selection = settings.selection
    if keeps_scores:
        is_difference = settings.loss.kind == "score_difference"
        return {"similar": selection.neighbours if is_difference else selection.negatives or 0}
    if settings.memory.kind == "in_batch":
        return {}
    return {"hard_negative": selection.negatives or 0, "hard_positive": selection.positives or 0}


def plan_of_pairs(
    fc: nn.Module,
    settings: AdapterSettings,
    documents: FrozenRows,
    train: Numbers,
    pairs: TrainingPairs,
    *,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> FitPlan:
    """Steps over (query, document) pairs; documents without a pair are negatives.

    Args:
        fc: The layer.
        settings: Resolved settings.
        documents: Frozen rows of the documents.
        train: Indices of the training pairs.
        pairs: All pairs.
        processes: As in `plan_of_items`.

    Returns:
        The `FitPlan`.
    """
    learner = _learner(fc, settings, ID_RULE, processes)
    learner.moves_documents = settings.side == "both"
    relevance = Relevance(pairs.query_ids, pairs.document_ids, queries=len(pairs.queries))
    whole = settings.memory.kind == "cross_batch" and settings.memory.capacity >= len(documents)
    shard_group = processes if settings.memory.sharded else SINGLE_PROCESS
    pool = Pool(documents, None, None, keep=whole and shard_group.world_size == 1)
    query_pool = Pool(pairs.queries, None, None, keep=len(pairs.queries) <= settings.memory.capacity)
    size = min(settings.batch_size, len(train))  # a fold has fewer pairs than the whole
    batches = UniformBatches(len(train), batch_size=size, seed=settings.seed)
    memory = _memory(pool, settings, shard_group, whole=whole, project=None)

    def select(batch: Batch, memory: Dictionary) -> Tensor:
        stored = memory.read()
        found = Lookup(
            batch.vectors,
            stored.vectors,
            RelevantPairs(relevance, batch.ids, stored.ids),
            "cosine",
            shard_group=memory.processes,
        )
        return top_k(found, settings.selection.negatives or 0, "hard_negative")

    top = _distributed(select, processes)
    if settings.memory.kind == "in_batch" or not settings.selection.negatives:
        top = _select_nothing
    elif whole:
        top = _select_once(top, query_pool, memory)
    sampled = 0 if settings.memory.kind == "in_batch" else settings.selection.sampled or 0

    def take(step: int) -> Step:
        numbers = train[batches(step)]
        queries = query_pool.batch(torch.unique(pairs.query_ids[numbers]))
        answers = pool.batch(torch.unique(pairs.document_ids[numbers]))
        chosen = _with_sample(top, sampled, (settings.seed, step))
        return pairs_step(learner, queries, answers, memory, chosen, relevance)

    return FitPlan(take, memory, _capacity(settings, pool), learner)


def _cached_target(target: Callable[[Tensor], Tensor], stored: Tensor) -> Callable[[Tensor], Tensor]:
    """The target, with the rows of a constant memory computed once."""
    kept = in_blocks(target, stored)
    return lambda rows: kept if rows is stored else target(rows)


def _learner(
    fc: nn.Module, settings: AdapterSettings, rule: PairRule, processes: ProcessGroup
) -> AdapterLearner:
    assert settings.loss.kind is not None
    assert settings.learning_rate is not None
    # a sequential layer changes which parameters are trained from stage to stage
    staged = isinstance(fc, SequentialLayer)
    trained = [parameter for parameter in fc.parameters() if staged or parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0, fused=True)
    starts = [parameter.detach().clone() for parameter in trained]

    def decay(optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Weight decay, decoupled as AdamW's, but towards the start, which is already a good solution."""
        rate = optimizer.param_groups[0]["lr"] * settings.weight_decay
        with torch.no_grad():
            for parameter, start in zip(trained, starts, strict=True):
                if parameter.grad is not None:  # parameters of other stages are frozen
                    parameter.lerp_(start, min(1.0, rate))

    if settings.weight_decay:
        optimizer.register_step_pre_hook(decay)
    forward: Callable[[Tensor], Tensor] = fc.stage_rows if isinstance(fc, SequentialLayer) else fc
    if settings.precision == "bfloat16" and not staged:
        forward = partial(_in_bfloat16, fc)
    return AdapterLearner(
        forward,
        objective(settings.loss.kind, **settings.loss.options),
        optimizer,
        rule,
        both_sides=settings.both_sides,
        processes=processes,
        sizes=partial(_weighted_sizes, fc, settings),
    )


def _weighted_sizes(fc: nn.Module, settings: AdapterSettings) -> Sequence[tuple[int, float]]:
    """(size, loss weight) of the prefixes that are trained now; () for one size."""
    sizes = fc.stages[int(fc.stage)] if isinstance(fc, SequentialLayer) else settings.sizes
    return list(zip(sizes, settings.weights(sizes), strict=True)) if len(sizes) > 1 else ()


def _in_bfloat16(fc: nn.Module, rows: Tensor) -> Tensor:
    """The layer with its products in bfloat16; weights, their gradients and unit rows are float32."""
    with torch.autocast(rows.device.type, torch.bfloat16):
        out: Tensor = fc(rows)
        return out


def _memory(
    pool: Pool,
    settings: AdapterSettings,
    shard_group: ProcessGroup,
    *,
    whole: bool,
    project: Callable[[Tensor], Tensor] | None,
) -> Dictionary:
    """The dictionary, filled before step 0 if the settings say so."""
    if settings.memory.kind == "in_batch":
        return InBatch()
    if whole:
        return WholeSet(pool.share(shard_group), pool.labels, processes=shard_group)
    width = pool.vectors.shape[1] if project is None else int(settings.dim or 0)
    memory = CrossBatchMemory(capacity=_capacity(settings, pool), dim=width, processes=shard_group)
    if settings.memory.prefill:
        first = UniformBatches(len(pool), batch_size=memory.capacity, seed=settings.seed + 1)(0)
        for batch in pool.walk(first):
            with torch.no_grad():
                rows = batch.vectors if project is None else project(batch.vectors)
                memory.enqueue(rows, batch.ids, batch.labels)
    return memory


def _capacity(settings: AdapterSettings, pool: Pool) -> int:
    return (
        settings.batch_size
        if settings.memory.kind == "in_batch"
        else min(settings.memory.capacity, len(pool))
    )


_Select = Callable[[Batch, Dictionary], Tensor]
"""(batch, memory) to the slots selected by each query [batch, k]."""


def _with_sample(select_top: _Select, sampled: int, key: tuple[int, int]) -> Choose:
    """The top-k of each query, and a random sample for all queries, seeded with (seed, step)."""

    def select(batch: Batch, memory: Dictionary) -> SelectedSlots:
        rows = len(memory)
        draw = np.random.default_rng([2, *key])
        drawn = draw.choice(rows, min(sampled, rows), replace=False, shuffle=False)
        return SelectedSlots(select_top(batch, memory), torch.from_numpy(drawn.astype(np.int64)))

    return select


def _select_each_step(counts: dict[Mode, int], rule: PairRule, *, score: Score) -> _Select:
    """Select from the current memory at each step."""
    modes = [(mode, k) for mode, k in counts.items() if k > 0]

    def select(batch: Batch, memory: Dictionary) -> Tensor:
        stored = memory.read()
        found = look_up(
            batch.vectors,
            stored.vectors,
            query_ids=batch.ids,
            key_ids=stored.ids,
            query_labels=batch.labels,
            key_labels=stored.labels,
            rule=rule,
            score=score,
            shard_group=memory.processes,
        )
        if not modes:
            return _select_nothing(batch, memory)
        return torch.cat([top_k(found, k, mode) for mode, k in modes], dim=1)

    return select


def _distributed(select_top: _Select, processes: ProcessGroup) -> _Select:
    """Each process selects for its slice of the queries, unless the memory is sharded."""
    if processes.world_size == 1:
        return select_top

    def select(batch: Batch, memory: Dictionary) -> Tensor:
        if memory.processes.world_size > 1:
            return select_top(batch, memory)
        rows = len(batch.ids)
        return processes.all_gather_with_grad(
            select_top(Batch(*(part[processes.local_slice(rows)] for part in batch)), memory), rows
        )

    return select


def _select_once(select_top: _Select, pool: Pool, memory: Dictionary) -> _Select:
    """Select from lists that are computed once, since frozen scores never change."""
    table = torch.cat([select_top(batch, memory) for batch in pool.walk(torch.arange(len(pool)))])

    def select(batch: Batch, memory: Dictionary) -> Tensor:  # noqa: ARG001 - the lists know the memory
        return table[batch.ids]

    return select


def _select_nothing(batch: Batch, memory: Dictionary) -> Tensor:  # noqa: ARG001 - a selection of none
    return torch.empty(len(batch.ids), 0, dtype=torch.int64)
