"""The training steps of an adapter.

frozen features -> enqueue -> scores -> top-k -> FC -> look up -> pair loss -> step
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from querykey.adapter.batch import Batch, Candidates, SelectedSlots, candidates_of
from querykey.adapter.relevance import Relevance
from querykey.dictionaries.protocol import Dictionary
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.lookup.lookup import DensePairs, Lookup, PairRule, look_up
from querykey.losses.by_name import Objective
from querykey.types import PerQuery, Rows

__all__ = [
    "AdapterLearner",
    "Choose",
    "Step",
    "adapter_step",
    "distillation_step",
    "pairs_step",
    "projections_step",
]

ID_RULE = PairRule(positive="id", same_id="masked")
LABEL_RULE = PairRule(positive="label", same_id="masked")


Choose = Callable[[Batch, Dictionary], SelectedSlots]
"""(batch, memory) to the selected slots, by frozen, gradient-free scores or at random."""


class Step(NamedTuple):
    """The loss and the look-up of a step."""

    loss: float
    lookup: Lookup
    labels: tuple[Tensor, Tensor]
    """Labels of the queries and keys of the look-up, -1 if unlabelled."""


@dataclass
class AdapterLearner:
    """The layer that is trained, its loss, its optimizer and the pair rule.

    Args:
        fc: The FC layer, or the map that a stage of a sequential ladder trains.
        objective: The loss.
        optimizer: Over the FC layer's parameters (and a learned temperature, where there is one).
        rule: Which pairs count.
        both_sides: Whether the gradient goes through the keys too, or through the queries alone.
        moves_documents: False leaves the documents of pairs frozen.
        processes: Each rank computes the loss of its slice of the queries or, with a sharded memory, the loss
            terms of its keys. Batch and selection are the same on all ranks.
            Each projects all keys itself, which costs less than sending them.
        target: Maps frozen rows to the rows whose scores are preserved; None: the identity.
        sizes: Gives (size, loss weight) of the prefixes that the step trains jointly; () for one size.
    """

    fc: Callable[[Tensor], Tensor]
    objective: Objective
    optimizer: torch.optim.Optimizer
    rule: PairRule = LABEL_RULE
    both_sides: bool = True
    moves_documents: bool = True
    processes: ProcessGroup = SINGLE_PROCESS
    target: Callable[[Tensor], Tensor] | None = None
    sizes: Callable[[], Sequence[tuple[int, float]]] = tuple

    def wanted(self, vectors: Rows) -> Tensor:
        """Rows whose scores are preserved: the frozen ones, or their images under the target."""
        return vectors if self.target is None else self.target(vectors)

    def keys(self, vectors: Rows) -> Tensor:
        """Project keys, with gradient if both sides are trained."""
        with torch.set_grad_enabled(self.both_sides):
            out: Tensor = self.fc(vectors)
            return out

    def mean(self, lookup: Lookup, target: Lookup | None = None) -> Tensor:
        """This rank's term of the mean loss over the queries that have a valid term."""
        # a sum, for `any` takes four times as long
        takes_part = (lookup.positive if target is None else target.negative).sum(dim=1) > 0
        looked_up = [lookup] if target is None else [lookup, target]
        if lookup.shard_group.world_size > 1:  # the loss terms of the keys of this rank
            takes_part = lookup.shard_group.sum(takes_part.int()) > 0
        elif self.processes.world_size > 1:
            local = self.processes.local_slice(len(lookup))
            looked_up = [one.rows(local.start, local.stop) for one in looked_up]
        losses = self._losses(*looked_up)
        return losses.sum() / takes_part.sum().clamp(min=1)

    def _losses(self, lookup: Lookup, *target: Lookup) -> PerQuery:
        r"""The loss of each query: :math:`\frac{1}{|D|} \sum_{d \in D} w_d\, l(z_{:d})` over the sizes.

        Source:
            Kusupati et al. 2022, arXiv:2205.13147, eq. 1.
        """
        if not (sizes := self.sizes()):
            losses: PerQuery = self.objective.loss(lookup, *target)
            return losses
        every = [
            weight
            * self.objective.loss(lookup if size == lookup.keys.shape[1] else lookup.prefix(size), *target)
            for size, weight in sizes
        ]
        return torch.stack(every).mean(dim=0)

    def descend(self, *losses: Tensor, lookup: Lookup, labels: tuple[Tensor, Tensor]) -> Step:
        """Backward pass and optimizer step on the mean of losses."""
        mean = torch.stack(losses).mean()
        self.optimizer.zero_grad()
        mean.backward()  # type: ignore[no-untyped-call]
        self.processes.sum_gradients_(self.optimizer)
        self.optimizer.step()
        return Step(float(self.processes.sum(mean)), lookup, labels)


def adapter_step(learner: AdapterLearner, batch: Batch, memory: Dictionary, choose: Choose) -> Step:
    """One step over a memory of frozen features.

    Args:
        learner: FC layer, loss, optimiser and rule.
        batch: Frozen unit rows.
        memory: Of frozen features.
        choose: Selects slots of the memory: top-k by frozen scores, or a sample.

    Returns:
        The loss and the look-up it came from.

    Source:
        Zhang et al. 2025, arXiv:2510.12474 (S-XBM).
    """
    memory.enqueue(batch.vectors, batch.ids, batch.labels)
    candidates = candidates_of(batch, memory, choose(batch, memory))

    labels = batch.labels, candidates.labels
    keys = learner.keys(candidates.vectors)
    queries = keys[: len(batch.ids)] if learner.both_sides else learner.fc(batch.vectors)

    lookup = _look_up_candidates(queries, keys, batch, candidates, learner.rule)
    frozen = None
    if learner.objective.keeps_scores:
        frozen = _look_up_candidates(
            learner.wanted(batch.vectors), learner.wanted(candidates.vectors), batch, candidates, ID_RULE
        )
    return learner.descend(learner.mean(lookup, frozen), lookup=lookup, labels=labels)


def distillation_step(learner: AdapterLearner, batch: Batch, memory: Dictionary) -> Step:
    """One step that preserves the frozen scores between the batch and the memory.

    Args:
        learner: FC layer, a loss that preserves scores, and optimizer.
        batch: Frozen unit rows.
        memory: Of frozen features.

    Returns:
        The loss and the look-up it came from.
    """
    memory.enqueue(batch.vectors, batch.ids, batch.labels)
    stored = memory.read()
    vectors, labels = stored.vectors, (batch.labels, stored.labels)

    lookup, frozen = (
        look_up(
            queries, keys, query_ids=batch.ids, key_ids=stored.ids, rule=ID_RULE, shard_group=memory.processes
        )
        for queries, keys in (
            (learner.fc(batch.vectors), learner.keys(vectors)),
            (learner.wanted(batch.vectors), learner.wanted(vectors)),
        )
    )
    return learner.descend(learner.mean(lookup, frozen), lookup=lookup, labels=labels)


def projections_step(learner: AdapterLearner, batch: Batch, memory: Dictionary, choose: Choose) -> Step:
    """One step over a memory of projections, as in the original cross-batch memory.

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
    candidates = candidates_of(projected, memory, choose(projected, memory))

    labels = batch.labels, candidates.labels
    keys = torch.cat([queries, candidates.vectors[len(batch.ids) :]])  # the batch's own rows with gradient
    lookup = _look_up_candidates(queries, keys, batch, candidates, learner.rule)
    return learner.descend(learner.mean(lookup), lookup=lookup, labels=labels)


def pairs_step(
    learner: AdapterLearner,
    queries: Batch,
    documents: Batch,
    memory: Dictionary,
    choose: Choose,
    relevance: Relevance,
) -> Step:
    """One step on (query, document) pairs in both directions; documents of the memory are extra negatives.

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
        Radford et al. 2021, arXiv:2103.00020, fig. 3 (both directions).
    """
    memory.enqueue(documents.vectors, documents.ids, documents.labels)
    candidates = candidates_of(documents, memory, choose(queries, memory))

    labels = queries.labels, candidates.labels
    keys = learner.keys(candidates.vectors) if learner.moves_documents else candidates.vectors
    projected = learner.fc(queries.vectors)
    relevant = relevance.pairs(queries.ids, candidates.ids).positive
    lookup = Lookup(projected, keys, DensePairs(relevant, ~relevant & candidates.candidate_mask))

    relevant_back = relevant[:, : len(documents.ids)].T
    back = Lookup(keys[: len(documents.ids)], projected, DensePairs(relevant_back, ~relevant_back))
    losses = [learner.mean(side) for side in (lookup, back)]
    return learner.descend(*losses, lookup=lookup, labels=labels)


def _look_up_candidates(
    queries: Tensor, keys: Tensor, batch: Batch, candidates: Candidates, rule: PairRule
) -> Lookup:
    """A look-up among the candidates: all positives, and the negatives among the query's candidates."""
    lookup = look_up(
        queries,
        keys,
        query_ids=batch.ids,
        key_ids=candidates.ids,
        query_labels=batch.labels,
        key_labels=candidates.labels,
        rule=rule,
    )
    mask = candidates.selected if rule is ID_RULE else candidates.candidate_mask
    return lookup.with_pairs(lookup.positive, lookup.negative & mask)
