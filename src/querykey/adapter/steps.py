"""The steps of training an adapter, each written out where it happens.

frozen features -> enqueue -> scores -> top-k -> FC -> look up -> pair loss -> step
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from querykey.adapter.batch import Batch, Chosen, Union, union_of
from querykey.adapter.relevance import Relevance
from querykey.dictionaries.protocol import Dictionary
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.lookup.lookup import DensePairs, Lookup, PairRule, look_up
from querykey.losses.by_name import Objective
from querykey.types import Rows

__all__ = [
    "Choose",
    "Learner",
    "Step",
    "adapter_step",
    "distillation_step",
    "pairs_step",
    "projections_step",
]

ID_RULE = PairRule(positive="id", same_id="masked")
LABEL_RULE = PairRule(positive="label", same_id="masked")


Choose = Callable[[Batch, Dictionary], Chosen]
"""(batch, memory) to the slots that take part, by frozen, gradient-free scores or by chance."""


class Step(NamedTuple):
    """What a step has seen, for the record."""

    loss: float
    lookup: Lookup
    labels: tuple[Tensor, Tensor]
    """Of the look-up's queries and keys, -1 where not known."""


@dataclass
class Learner:
    """What is trained, by what, and under which rule.

    Args:
        fc: The FC layer.
        objective: The loss.
        optimizer: Over the FC layer's parameters (and a learned temperature, where there is one).
        rule: Which pairs count.
        both_sides: Whether the gradient goes through the keys too, or through the queries alone.
        moves_documents: False leaves (query, document) keys as the frozen model gave them.
        processes: Each computes the loss of its own part of the queries, or of its share of the keys where
            a memory that is sharded is looked up whole. Batch and selection are the same on all, and keys
            are made by each: one layer is cheaper than sending its rows around.
        target: Makes the rows whose scores are kept; None: the frozen rows themselves.
    """

    fc: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    rule: PairRule = LABEL_RULE
    both_sides: bool = True
    moves_documents: bool = True
    processes: ProcessGroup = SINGLE_PROCESS
    target: Callable[[Tensor], Tensor] | None = None

    def wanted(self, vectors: Rows) -> Tensor:
        """Rows whose scores are to be kept: the frozen ones, or what the target makes of them."""
        return vectors if self.target is None else self.target(vectors)

    def keys(self, vectors: Rows) -> Tensor:
        """Keys made of frozen rows, with gradient or without."""
        with torch.set_grad_enabled(self.both_sides):
            out: Tensor = self.fc(vectors)
            return out

    def mean(self, lookup: Lookup, target: Lookup | None = None) -> Tensor:
        """This process's share of the mean loss over the queries that have a valid term."""
        takes_part = (lookup.positive if target is None else target.negative).any(dim=1)
        looked_up = [lookup] if target is None else [lookup, target]
        if lookup.shard_group.world_size > 1:  # of all queries the share of the cost that is in the own keys
            takes_part = lookup.shard_group.sum(takes_part.int()) > 0
        elif self.processes.world_size > 1:
            own = self.processes.local_slice(len(lookup))
            looked_up = [one.rows(own.start, own.stop) for one in looked_up]
        losses = self.objective.loss(*looked_up)
        return losses.sum() / takes_part.sum().clamp(min=1)

    def descend(self, *losses: Tensor, lookup: Lookup, labels: tuple[Tensor, Tensor]) -> Step:
        """Backward and an optimiser step on the average of losses."""
        mean = torch.stack(losses).mean()
        self.optimizer.zero_grad()
        mean.backward()  # type: ignore[no-untyped-call]
        self.processes.sum_gradients_(self.optimizer)
        self.optimizer.step()
        return Step(float(self.processes.sum(mean)), lookup, labels)


def adapter_step(learner: Learner, batch: Batch, memory: Dictionary, choose: Choose) -> Step:
    """One step over a memory of frozen features.

    Args:
        learner: FC layer, loss, optimiser and rule.
        batch: Frozen unit rows.
        memory: Of frozen features.
        choose: What of the memory takes part: top-k over frozen scores, or a sample.

    Returns:
        The loss and the look-up it came from.

    Source:
        Zhang et al. 2025, arXiv:2510.12474 (S-XBM).
    """
    memory.enqueue(batch.vectors, batch.ids, batch.labels)
    union = union_of(batch, memory, choose(batch, memory))

    labels = batch.labels, union.labels
    keys = learner.keys(union.vectors)
    queries = keys[: len(batch.ids)] if learner.both_sides else learner.fc(batch.vectors)

    lookup = _look_up_union(queries, keys, batch, union, learner.rule)
    frozen = None
    if learner.objective.keeps_scores:
        frozen = _look_up_union(
            learner.wanted(batch.vectors), learner.wanted(union.vectors), batch, union, ID_RULE
        )
    return learner.descend(learner.mean(lookup, frozen), lookup=lookup, labels=labels)


def distillation_step(learner: Learner, batch: Batch, memory: Dictionary) -> Step:
    """One step that keeps the frozen scores of the batch with the whole memory.

    Args:
        learner: FC layer, a loss that keeps scores, and optimiser.
        batch: Frozen unit rows.
        memory: Of frozen features.

    Returns:
        The loss and the look-up it came from.
    """
    memory.enqueue(batch.vectors, batch.ids, batch.labels)
    held = memory.read()
    vectors, labels = held.vectors, (batch.labels, held.labels)

    lookup, frozen = (
        look_up(
            queries, keys, query_ids=batch.ids, key_ids=held.ids, rule=ID_RULE, shard_group=memory.processes
        )
        for queries, keys in (
            (learner.fc(batch.vectors), learner.keys(vectors)),
            (learner.wanted(batch.vectors), learner.wanted(vectors)),
        )
    )
    return learner.descend(learner.mean(lookup, frozen), lookup=lookup, labels=labels)


def projections_step(learner: Learner, batch: Batch, memory: Dictionary, choose: Choose) -> Step:
    """One step over a memory of projections, which grow stale: the original cross-batch memory.

    Args:
        learner: FC layer, pair loss, optimiser and rule.
        batch: Frozen unit rows.
        memory: Of projections.
        choose: The top-k over the projections' scores.

    Returns:
        The loss and the look-up it came from.

    Source:
        Wang et al. 2020, arXiv:1912.06798, algorithm 1, with the selection of `adapter_step`.
    """
    queries = learner.fc(batch.vectors)
    projected = Batch(queries.detach(), batch.ids, batch.labels)
    memory.enqueue(*projected)
    union = union_of(projected, memory, choose(projected, memory))

    labels = batch.labels, union.labels
    keys = torch.cat([queries, union.vectors[len(batch.ids) :]])  # the batch's own rows with gradient
    lookup = _look_up_union(queries, keys, batch, union, learner.rule)
    return learner.descend(learner.mean(lookup), lookup=lookup, labels=labels)


def pairs_step(
    learner: Learner,
    queries: Batch,
    documents: Batch,
    memory: Dictionary,
    choose: Choose,
    relevance: Relevance,
) -> Step:
    """One step on (query, document) pairs, both ways; documents of the memory are extra negatives.

    Args:
        learner: FC layer, pair loss and optimiser.
        queries: Frozen unit rows of queries.
        documents: Frozen unit rows of their documents, each once.
        memory: Of frozen documents.
        choose: The top-k documents of each query that are not relevant to it.
        relevance: Which documents belong to which query.

    Returns:
        The loss and the look-up of the queries among the documents.

    Source:
        Radford et al. 2021, arXiv:2103.00020, fig. 3 (both ways).
    """
    memory.enqueue(documents.vectors, documents.ids, documents.labels)
    union = union_of(documents, memory, choose(queries, memory))

    labels = queries.labels, union.labels
    keys = learner.keys(union.vectors) if learner.moves_documents else union.vectors
    asked = learner.fc(queries.vectors)
    relevant = relevance.pairs(queries.ids, union.ids).positive
    lookup = Lookup(asked, keys, DensePairs(relevant, ~relevant & union.mine))

    own = relevant[:, : len(documents.ids)].T
    back = Lookup(keys[: len(documents.ids)], asked, DensePairs(own, ~own))
    losses = [learner.mean(side) for side in (lookup, back)]
    return learner.descend(*losses, lookup=lookup, labels=labels)


def _look_up_union(queries: Tensor, keys: Tensor, batch: Batch, union: Union, rule: PairRule) -> Lookup:
    """A look-up in the union: all positives, and of the negatives those that are the query's own."""
    lookup = look_up(
        queries,
        keys,
        query_ids=batch.ids,
        key_ids=union.ids,
        query_labels=batch.labels,
        key_labels=union.labels,
        rule=rule,
    )
    mine = union.chosen if rule is ID_RULE else union.mine
    return lookup.with_pairs(lookup.positive, lookup.negative & mine)
