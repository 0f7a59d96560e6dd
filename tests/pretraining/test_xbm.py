"""One step with a cross-batch memory of projections, prefilling, and the alignment of old rows."""

import math
from functools import partial

import oracles
import pytest
import torch
from dictionary_toys import LinearEncoder, images_of, plain
from step_toys import xbm
from torch.nn import functional as F

from querykey.dictionaries.alignment import MomentAlignment
from querykey.dictionaries.cross_batch import CrossBatchMemory
from querykey.errors import CollapseError, RangeError, ShapeError
from querykey.losses import info_nce
from querykey.pretraining.methods.step import StepContext
from querykey.pretraining.methods.xbm import prefill

SIZES = [3, 4, 3, 4, 3]
LABELS = [torch.tensor(labels) for labels in ([0, 1, 0], [1, 1, 0, 2], [0, 0, 2], [2, 1, 2, 0], [1, 0, 1])]
IDS = [torch.tensor(ids) for ids in ([0, 1, 2], [3, 1, 4, 5], [0, 2, 6], [5, 7, 6, 4], [3, 2, 7])]
"""Items come back while an older row of them is in the memory, and none twice in a batch."""
loss = partial(info_nce, temperature=0.3)


def made(*, capacity=10, norm=False):
    encoder = LinearEncoder(norm=norm).double()
    memory = CrossBatchMemory(capacity=capacity, dim=3).double()
    return encoder, torch.optim.SGD(encoder.parameters(), lr=0.2), memory


def steps(*, warm_up=1, capacity=10, **options):
    encoder, optimizer, memory = made(capacity=capacity)
    output = [
        xbm(
            encoder, optimizer, memory, images, ids=ids, labels=labels, loss=loss, is_warm=step >= warm_up,
            **options,
        )
        for step, (images, ids, labels) in enumerate(zip(images_of(SIZES), IDS, LABELS, strict=True))
    ]  # fmt: skip
    return output, encoder, memory


@pytest.mark.parametrize(("warm_up", "weight"), [(0, 1.0), (2, 0.5)])
def test_five_steps_are_the_papers(warm_up, weight):
    """Beside plain loops; batches of 3 and 4 do not divide the capacity of 10, and it wraps."""
    encoder, _, _ = made()
    costs, weights, held = oracles.xbm_steps(
        encoder.weight.tolist(),
        [
            (plain(x), ids.tolist(), labels.tolist())
            for x, ids, labels in zip(images_of(SIZES), IDS, LABELS, strict=True)
        ],
        capacity=10, warm_up=warm_up, weight=weight, temperature=0.3, lr=0.2,
    )  # fmt: skip
    output, encoder, memory = steps(warm_up=warm_up, weight=weight)
    assert [step.loss for step in output] == pytest.approx(costs, rel=1e-7)
    torch.testing.assert_close(encoder.weight.data, torch.tensor(weights).double(), rtol=1e-6, atol=1e-7)
    newest_last = memory.age().sort(descending=True, stable=True).indices
    assert sorted(memory.read().labels.tolist()) == sorted(label for _, label, _ in held)
    kept = memory.read().vectors[newest_last]
    expected = torch.tensor([row for row, _, _ in held]).double()
    torch.testing.assert_close(kept.sum(dim=0), expected.sum(dim=0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(kept.T @ kept, expected.T @ expected, rtol=1e-6, atol=1e-7)


def test_in_chunks_it_is_the_same_step():
    whole, chunked = steps(), steps(chunks=2)
    torch.testing.assert_close(chunked[1].weight, whole[1].weight)
    torch.testing.assert_close(chunked[2].vectors, whole[2].vectors)


def test_the_batch_is_in_the_memory_before_the_loss():
    """And its pairs count there: rows of its class in the batch are found in the memory as well."""
    encoder, optimizer, memory = made()
    shown = []
    xbm(
        encoder, optimizer, memory, images_of([3])[0], ids=torch.arange(3), labels=torch.tensor([0, 1, 0]),
        loss=loss, is_warm=True, on_lookup=shown.append,
    )  # fmt: skip
    assert shown[0].positive.int().tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert shown[0].negative.int().tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert not memory.vectors.requires_grad


def test_an_older_row_of_its_own_item_is_positive_and_its_row_of_this_step_neither():
    encoder, optimizer, memory = made()
    memory.enqueue(torch.eye(3).double(), torch.tensor([5, 6, 8]), torch.tensor([0, 1, -1]))
    shown = []
    xbm(
        encoder, optimizer, memory, images_of([3])[0], ids=torch.tensor([5, 6, 8]),
        labels=torch.tensor([0, 1, -1]), loss=loss, is_warm=True, on_lookup=shown.append,
    )  # fmt: skip
    assert shown[0].positive.int().tolist() == [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0] * 6]
    assert shown[0].negative.int().tolist() == [[0, 1, 0, 0, 1, 0], [1, 0, 0, 1, 0, 0], [0] * 6]


def test_while_it_is_not_warm_the_memory_stays_empty():
    encoder, optimizer, memory = made()
    shown = []
    step = xbm(
        encoder, optimizer, memory, images_of([3])[0], ids=torch.arange(3), labels=torch.tensor([0, 1, 0]),
        loss=loss, is_warm=False, on_lookup=shown.append,
    )  # fmt: skip
    assert len(memory) == 0
    assert len(shown[0].keys) == 3
    assert step.loss == pytest.approx(float(loss(shown[0]).mean()))


def test_shows_each_rows_partner():
    encoder, optimizer, memory = made()
    step = xbm(
        encoder, optimizer, memory, images_of([5])[0], ids=torch.arange(5),
        labels=torch.tensor([0, -1, 2, 0, -1]), loss=loss, is_warm=False,
    )  # fmt: skip
    assert torch.equal(step.view_2, step.view_1[[3, 1, 2, 0, 4]])


def test_a_batch_larger_than_the_memory_is_refused_even_before_it_is_warm():
    encoder, optimizer, memory = made(capacity=2)
    with pytest.raises(ShapeError) as error:
        xbm(
            encoder, optimizer, memory, images_of([3])[0], ids=torch.arange(3),
            labels=torch.tensor([0, 1, 0]), loss=loss, is_warm=False,
        )  # fmt: skip
    assert str(error.value) == (
        "a batch of 3 does not fit a memory of 2; raise the capacity or lower the batch size"
    )


def test_a_batch_of_the_memorys_size_fits():
    *_, memory = steps(capacity=4)
    assert len(memory) == 4


@pytest.mark.parametrize("weight", [-1.0, math.nan])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(RangeError) as error:
        steps(weight=weight)
    assert (
        str(error.value) == f"weight of the memory's loss must be >= 0 and finite, got {weight}; 1 is usual"
    )


def test_a_loss_that_is_not_finite_changes_no_weight():
    encoder, optimizer, memory = made()
    before = encoder.weight.detach().clone()
    with pytest.raises(CollapseError):
        xbm(
            encoder, optimizer, memory, images_of([3])[0] * math.nan, ids=torch.arange(3),
            labels=torch.tensor([0, 1, 0]), loss=loss, is_warm=True,
        )  # fmt: skip
    assert torch.equal(encoder.weight, before)


def batches(sizes):
    ids = torch.arange(sum(sizes)).split(sizes)
    return iter([(images, of, of % 2) for images, of in zip(images_of(sizes), ids, strict=True)])


def test_prefill_puts_in_what_the_encoder_makes_and_leaves_it_as_it_was():
    """By batch statistics, as rows of later steps are made; the running ones do not move."""
    encoder, _, memory = made(norm=True)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert prefill(encoder, memory, batches([3, 4, 2]), StepContext(loss=loss)) == 9
    held = memory.read()
    assert (held.ids.tolist(), held.labels.tolist()) == (list(range(9)), [i % 2 for i in range(9)])
    for (images, ids, _), start in zip(batches([3, 4, 2]), (0, 3, 7), strict=True):
        z = images.flatten(1) @ encoder.weight.T
        expected = F.normalize((z - z.mean(0)) / (z.var(0, correction=0) + encoder.norm.eps).sqrt(), dim=1)
        torch.testing.assert_close(held.vectors[start : start + len(ids)], expected.detach())
    after = encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert encoder.training
    assert encoder.weight.grad is None


def test_prefill_stops_when_the_memory_is_full():
    encoder, _, memory = made(capacity=5)
    given = batches([3, 3, 3])
    assert prefill(encoder, memory, given, StepContext(loss=loss)) == 6
    assert sorted(memory.read().ids.tolist()) == [1, 2, 3, 4, 5]
    assert len(list(given)) == 1


def unit_rows(count, seed, dim=3):
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=random, dtype=torch.float64) + 1.0, dim=1)


def test_aligned_rows_have_the_batchs_moments_before_they_are_scaled():
    held, batch = unit_rows(40, 0), -unit_rows(9, 1) * torch.tensor([1.0, 0.5, 2.0])
    moved = held.clone()
    MomentAlignment(dim=3).double().align_(moved, batch)
    expected = (held - held.mean(0)) / held.std(0) * batch.std(0) + batch.mean(0)
    torch.testing.assert_close(moved, F.normalize(expected, dim=1))


def test_a_memory_of_the_batch_itself_stays():
    batch = unit_rows(20, 0)
    held = batch.clone()
    MomentAlignment(dim=3).double().align_(held, batch)
    torch.testing.assert_close(held, batch)


def test_a_shift_and_stretch_of_the_encoder_is_undone():
    """But for what scaling to length 1 takes: the encoder turned one dimension over."""
    held = unit_rows(500, 0)
    flipped = held * torch.tensor([1.0, -1.0, 1.0])
    moved = held.clone()
    MomentAlignment(dim=3).double().align_(moved, flipped)
    assert (moved.mean(0) - flipped.mean(0)).abs().max() < 0.1
    assert (held.mean(0) - flipped.mean(0)).abs().max() > 0.5


def test_the_filter_is_kalmans():
    """Mean and variance of one dimension in plain numbers: predict, then correct."""
    align = MomentAlignment(dim=1, drift=0.2).double()
    random = torch.Generator().manual_seed(0)
    given = [torch.randn(n, 1, dtype=torch.float64, generator=random) for n in (5, 9, 3)]
    believed = None
    for batch in given:
        align.align_(batch[:0].clone(), batch)
        measured, n = (float(batch.mean()), float(batch.var())), len(batch)
        spread = measured[1] if believed is None else believed[1]
        noises = spread / n, 2 * spread**2 / (n - 1)
        if believed is None:
            believed, doubts = measured, noises
            continue
        doubts = doubts[0] + 0.04 * spread, doubts[1] + (0.4 * spread) ** 2
        gains = [doubt / (doubt + noise) for doubt, noise in zip(doubts, noises, strict=True)]
        believed = [b + g * (m - b) for b, g, m in zip(believed, gains, measured, strict=True)]
        doubts = [(1 - gain) * doubt for gain, doubt in zip(gains, doubts, strict=True)]
    assert (float(align.mean), float(align.variance)) == pytest.approx(tuple(believed))


def test_the_filter_is_nearer_the_truth_than_the_last_small_batch():
    steady, alone = MomentAlignment(dim=3, drift=0.01).double(), MomentAlignment(dim=3).double()
    truth = unit_rows(40_000, 7)
    exact = {"mean": truth.mean(0), "variance": truth.var(0)}
    faults = {"mean": [], "variance": []}
    for step, batch in enumerate(truth[:8000].split(8)):
        for one in (steady, alone):
            one.align_(truth[:0].clone(), batch)
        if step > 50:
            for moment, error in faults.items():
                error.append([getattr(one, moment) - exact[moment] for one in (steady, alone)])
    for error in faults.values():
        filtered, last = (torch.stack(side) for side in zip(*error, strict=True))
        assert filtered.square().mean() < 0.05 * last.square().mean()
        assert (filtered.mean(0).abs() < 0.01).all()


def test_a_large_drift_is_no_filter():
    filtered, alone = MomentAlignment(dim=3, drift=1e4).double(), MomentAlignment(dim=3).double()
    for seed in range(3):
        for one in (filtered, alone):
            one.align_(unit_rows(5, 0), unit_rows(8, seed))
    torch.testing.assert_close(filtered.mean, alone.mean)
    torch.testing.assert_close(filtered.variance, alone.variance)


def test_the_state_of_the_filter_is_saved():
    one, other = MomentAlignment(dim=3, drift=0.1).double(), MomentAlignment(dim=3, drift=0.1).double()
    one.align_(unit_rows(5, 0), unit_rows(8, 1))
    other.load_state_dict(one.state_dict())
    held = [unit_rows(5, 0), unit_rows(5, 0)]
    for align, rows in zip((one, other), held, strict=True):
        align.align_(rows, unit_rows(8, 2))
    assert torch.equal(*held)


def test_dimensions_without_spread_are_moved_and_nothing_is_nan():
    held = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    align = MomentAlignment(dim=2, drift=0.1)
    for _ in range(3):
        align.align_(held, torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    torch.testing.assert_close(held, torch.tensor([[0.0, 1.0]]).expand(3, 2))


def test_a_step_aligns_what_is_held_and_enqueues_the_batch_as_it_is():
    encoder, optimizer, memory = made()
    held = unit_rows(5, 3)
    memory.enqueue(held, torch.arange(10, 15), torch.zeros(5, dtype=torch.int64))
    align, twin = MomentAlignment(dim=3).double(), MomentAlignment(dim=3).double()
    step = xbm(
        encoder, optimizer, memory, images_of([4])[0], ids=torch.arange(4),
        labels=torch.tensor([0, 1, 0, 1]), loss=loss, is_warm=True, align=align,
    )  # fmt: skip
    twin.align_(held, step.view_1)
    torch.testing.assert_close(memory.vectors[:5], held)
    torch.testing.assert_close(memory.vectors[5:9], step.view_1)


@pytest.mark.parametrize("rows", [(1, 3), (4, 2)])
def test_a_batch_without_moments_is_refused(rows):
    with pytest.raises(ShapeError) as error:
        MomentAlignment(dim=3).align_(torch.ones(4, rows[1]), torch.ones(rows))
    assert str(error.value) == (
        f"a batch of {list(rows)} has no moments of 3 dimensions; at least two rows of this width are needed"
    )


@pytest.mark.parametrize("drift", [0.0, -0.1, math.inf])
def test_a_drift_out_of_range_is_refused(drift):
    with pytest.raises(RangeError) as error:
        MomentAlignment(dim=3, drift=drift)
    assert str(error.value) == (
        f"drift must be > 0 and finite, or None to use the moments of each batch, got {drift}; "
        "0.01 to 0.1 is usual"
    )
