"""The steps of an adapter: what meets what, in which order, and the same as plain loops."""

import pytest
import torch
from torch.nn import functional as F

from querykey.adapter.batch import Batch, SelectedSlots, candidates_of
from querykey.adapter.closed_forms import principal_components
from querykey.adapter.steps import (
    AdapterLearner,
    adapter_step,
    distillation_step,
    projections_step,
)
from querykey.dictionaries.cross_batch import CrossBatchMemory
from querykey.dictionaries.static import WholeSet
from querykey.encoders.heads import FCLayer
from querykey.evaluation.moments import moments
from querykey.lookup import PairRule, look_up
from querykey.lookup.top_k import top_k
from querykey.losses.by_name import objective

NONE = torch.empty(0, dtype=torch.int64)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(30, 6, generator=generator), dim=1)
    return Batch(rows, torch.arange(30), torch.arange(30) % 5)


def of(data, rows):
    return Batch(*(part[rows] for part in data))


def learner(rows, name="info_nce", dim=3, **options):
    fc = FCLayer(6, dim)
    form = principal_components(moments(rows), dim, centred=False)
    fc.set_affine_(form.weight, form.bias)
    if name in ("info_nce", "score_distillation"):
        options = {"temperature": 0.1}
    return AdapterLearner(fc, objective(name, **options), torch.optim.SGD(fc.parameters(), lr=0.1))


def hardest(k):
    def choose(batch, memory):
        stored = memory.read()
        found = look_up(
            batch.vectors, stored.vectors, query_ids=batch.ids, key_ids=stored.ids,
            query_labels=batch.labels, key_labels=stored.labels, rule=PairRule(positive="label"),
            score="cosine",
        )  # fmt: skip
        return SelectedSlots(top_k(found, k, "hard_negative"), NONE)

    return choose


def test_candidates_hold_each_item_once_with_the_query_that_selected_it(data):
    memory = CrossBatchMemory(capacity=5, dim=6)
    memory.enqueue(*of(data, [7, 8, 7, 9, 1]))
    batch = of(data, [1, 2])
    candidates = candidates_of(
        batch, memory, SelectedSlots(torch.tensor([[0, 1], [2, -1]]), torch.tensor([3, 4]))
    )
    assert candidates.ids.tolist() == [1, 2, 7, 8, 9]
    assert torch.equal(candidates.vectors, data.vectors[candidates.ids])
    assert torch.equal(candidates.labels, data.labels[candidates.ids])
    assert candidates.selected.int().tolist() == [[1, 0, 1, 1, 1], [1, 0, 1, 0, 1]]
    assert candidates.candidate_mask.int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 1]]


def by_hand(fc, data, memory_ids, batch_ids, k):
    """Loops: enqueue, k hardest negatives by frozen score, FC on the candidates, InfoNCE over its pairs."""
    x, y = data.vectors.double(), data.labels
    weight = fc.weight.detach().double().requires_grad_()

    def z(i):
        out = weight @ x[i]
        return out / out.norm()

    total, count = 0.0, 0
    chosen = {}
    for i in batch_ids:
        negatives = [j for j in memory_ids if y[j] != y[i]]
        chosen[i] = sorted(negatives, key=lambda j: -float(x[i] @ x[j]))[:k]
    candidates = set(batch_ids) | {j for i in batch_ids for j in chosen[i]}
    for i in batch_ids:
        positives = [j for j in candidates if y[j] == y[i] and j != i]
        negatives = [j for j in candidates if y[j] != y[i] and (j in chosen[i] or j in batch_ids)]
        if not positives:
            continue
        count += 1
        weights = {j: torch.exp(z(i) @ z(j) / 0.1) for j in positives + negatives}
        total = total - sum(torch.log(weights[j] / sum(weights.values())) for j in positives) / len(positives)
    (total / count).backward()
    return float((total / count).detach()), weight.grad


def test_five_steps_equal_plain_loops_with_batches_that_do_not_divide_the_capacity(data):
    """The paper's order: enqueue, score, top-k, FC, look up, loss, step."""
    taught = learner(data.vectors)
    taught.fc.bias.requires_grad_(False)  # the loops have a weight alone
    memory, fifo = CrossBatchMemory(capacity=10, dim=6), []
    for step in range(5):
        ids = [(4 * step + i) % 30 for i in (0, 5, 1, 10)]
        fifo = (fifo + ids)[-10:]
        before = taught.fc.weight.detach().clone()
        loss, grad = by_hand(taught.fc, data, fifo, ids, k=3)
        taken = adapter_step(taught, of(data, ids), memory, hardest(3))
        assert taken.loss == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(taught.fc.weight, (before - 0.1 * grad).float(), atol=1e-5, rtol=1e-4)


def test_trap_2_1_the_batch_is_enqueued_before_it_is_looked_up(data):
    """Enqueued after the loss, the relations within the batch vanish from a small memory."""
    seen = []

    def choose(batch, memory):
        seen.append(memory.read().ids.tolist())
        return SelectedSlots(torch.empty(len(batch.ids), 0, dtype=torch.int64), NONE)

    adapter_step(learner(data.vectors), of(data, [3, 8, 4]), CrossBatchMemory(capacity=5, dim=6), choose)
    assert seen == [[3, 8, 4]]


def test_gradient_through_the_queries_alone(data):
    """The keys' side is held still: the gradient is that of a step whose keys are constants."""
    taught = learner(data.vectors)
    taught.both_sides = False
    before = taught.fc.weight.detach().clone()
    batch = of(data, list(range(10)))
    whole = WholeSet(data.vectors, data.labels)
    adapter_step(taught, batch, whole, hardest(2))
    moved = taught.fc.weight.detach() - before

    twin = learner(data.vectors)
    candidates = candidates_of(batch, whole, hardest(2)(batch, whole))
    keys = twin.fc(candidates.vectors).detach()
    lookup = look_up(
        twin.fc(batch.vectors), keys, query_ids=batch.ids, key_ids=candidates.ids, query_labels=batch.labels,
        key_labels=candidates.labels, rule=PairRule(positive="label"),
    )  # fmt: skip
    lookup = lookup.with_pairs(lookup.positive, lookup.negative & candidates.candidate_mask)
    (twin.objective.loss(lookup).sum() / lookup.positive.any(1).sum()).backward()
    torch.testing.assert_close(moved, -0.1 * twin.fc.weight.grad, atol=1e-6, rtol=1e-4)


def test_distillation_at_its_optimum_changes_no_weight(data):
    """At full width a rotation keeps every score: loss 0, gradient 0."""
    taught = learner(data.vectors, "score_distillation", dim=6)
    before = taught.fc.weight.detach().clone()
    taken = distillation_step(taught, of(data, [0, 1, 2]), WholeSet(data.vectors))
    assert taken.loss == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(taught.fc.weight, before, atol=1e-4, rtol=0)


def test_the_papers_l1_reads_its_own_top_k_alone(data):
    """Mean of |frozen score - score| over each query's chosen rows, the batch's others left out."""
    taught = learner(data.vectors, "score_difference")
    batch = of(data, [0, 1, 2])
    own = torch.tensor([[5, 1], [6, 7], [8, 0]])
    with torch.no_grad():
        z = taught.fc(data.vectors)
        expected = [
            sum(abs(float(data.vectors[i] @ data.vectors[j] - z[i] @ z[j])) for j in own[i].tolist()) / 2
            for i in range(3)
        ]
    taken = adapter_step(taught, batch, WholeSet(data.vectors), lambda *_: SelectedSlots(own, NONE))
    assert taken.loss == pytest.approx(sum(expected) / 3, rel=1e-4)


def test_a_memory_of_projections_stores_the_output_of_the_layer_at_that_step(data):
    taught, memory = learner(data.vectors), CrossBatchMemory(capacity=8, dim=3)
    first = taught.fc(data.vectors[:4]).detach()
    for ids in ([0, 1, 2, 3], [5, 6, 7, 8]):
        projections_step(taught, of(data, ids), memory, hardest(2))
    assert torch.equal(memory.read().vectors[:4], first)
    assert not torch.equal(taught.fc(data.vectors[:4]), first)
    assert memory.age().tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
