"""Drift: stored rows against what today's encoder makes of the same views."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from querykey.diagnostics.drift import drift, drift_of, stored_ages, undisturbed
from querykey.dictionaries.bank import MemoryBank
from querykey.dictionaries.cross_batch import CrossBatchMemory
from querykey.dictionaries.queue import KeyQueue
from querykey.encoders.norm.split import SplitBatchNorm1d
from querykey.errors import DataError, RangeError, ShapeError

ITEMS, BATCH = 12, 3
BOTH, SECOND = (1, 0), (1,)


class Pair(NamedTuple):
    view_1: Tensor
    view_2: Tensor
    ids: Tensor


class Walk:
    """Views that are a function of the step, each item once an epoch."""

    def walk(self, start, stop):
        for step in range(start, stop):
            epoch, place = divmod(step, ITEMS // BATCH)
            order = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(epoch))
            draw = torch.Generator().manual_seed(1000 + step)
            views = torch.randn(2, BATCH, 1, 2, 2, generator=draw)
            yield Pair(*views, order[place * BATCH : (place + 1) * BATCH])


class Encoder(nn.Module):
    """With everything that a careless measurement would move."""

    def __init__(self, norm=None):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), norm or nn.BatchNorm1d(6), nn.Linear(6, 5))
        self.turn = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        z = F.normalize(self.layers(images), dim=1)
        cos, sin = self.turn.cos(), self.turn.sin()
        return torch.cat(
            [z[:, :1] * cos - z[:, 1:2] * sin, z[:, :1] * sin + z[:, 1:2] * cos, z[:, 2:]], dim=1
        )


def encode_with(encoder):
    return lambda images, step: encoder(images)


def fill(dictionary, encoder, steps, views=SECOND):
    """What the steps of a training put in, without the training."""
    with torch.no_grad():
        for pair in Walk().walk(0, steps):
            rows = torch.cat([encoder((pair.view_1, pair.view_2)[view]) for view in views])
            put = dictionary.write if isinstance(dictionary, MemoryBank) else dictionary.enqueue
            put(rows, pair.ids.repeat(len(views)))
    return dictionary


def measured(dictionary, encoder, steps, ages, views=SECOND):
    return drift_of(
        dictionary, Walk(), encode_with(encoder), module=encoder, step=steps, views=views, ages=ages
    )


@pytest.mark.parametrize("views", [SECOND, BOTH, (0,)])
@pytest.mark.parametrize("capacity", [6, 7, 8, 10, 11, 40])
@pytest.mark.parametrize("kind", [KeyQueue, CrossBatchMemory])
def test_an_encoder_that_has_not_moved_has_not_drifted_wherever_the_ring_has_wrapped(kind, capacity, views):
    encoder = Encoder().train()
    for steps in (1, 2, 5, 7):
        queue = fill(kind(capacity=capacity, dim=5), encoder, steps, views)
        found = measured(queue, encoder, steps, range(1, 9), views)
        held = min(steps, -(-capacity // (BATCH * len(views))))
        assert list(found) == list(range(1, held + 1))
        assert list(found.values()) == [0.0] * held


def test_the_two_views_of_a_symmetric_step_are_not_mixed_up():
    encoder = Encoder().train()
    queue = fill(KeyQueue(capacity=8, dim=5), encoder, 3, BOTH)
    assert measured(queue, encoder, 3, [1, 2], (0, 1))[1] > 0.1
    assert measured(queue, encoder, 3, [1, 2], BOTH) == {1: 0.0, 2: 0.0}


def test_a_known_change_gives_the_distance_by_hand():
    encoder = Encoder().train()
    queue = fill(KeyQueue(capacity=7, dim=5), encoder, 4)
    with torch.no_grad():
        encoder.turn.fill_(0.5)
    found = measured(queue, encoder, 4, [1, 2, 3])
    for age in (1, 2, 3):
        own = [k for k in range(7) if int(queue.age()[k]) == age - 1]
        # a turn by a in the plane of the first two numbers moves a row by 2 (1 - cos a) of their squares
        part = sum(float(queue.vectors[k, :2].double().square().sum()) for k in own) / len(own)
        assert len(own) == (1 if age == 3 else 3)
        assert found[age] == pytest.approx(2 * (1 - torch.tensor(0.5).cos().item()) * part, rel=1e-4)


def test_opposite_rows_are_4_apart_and_unlike_shapes_are_refused():
    rows = torch.eye(3)
    assert drift(rows, rows) == 0.0
    assert drift(rows, -rows) == 4.0
    assert drift(rows, rows.roll(1, 0)) == 2.0
    with pytest.raises(ShapeError, match=r"\[3, 3\] and fresh ones \[2, 3\]"):
        drift(rows, rows[:2])
    with pytest.raises(DataError, match="at least 1 row"):
        drift(rows[:0], rows[:0])


def test_a_bank_is_measured_by_its_slots_from_an_earlier_epoch_too():
    encoder = Encoder().train()
    bank = fill(MemoryBank(items=ITEMS, dim=5, momentum=0.0), encoder, 6, (0,))
    found = measured(bank, encoder, 6, range(1, 9), (0,))
    assert list(found)[:2] == [1, 2]
    assert max(found) > 2
    assert max(found) <= 6
    assert max(found.values()) < 1e-12
    mixed = fill(MemoryBank(items=ITEMS, dim=5, momentum=0.5), encoder, 2, (0,))
    (pair,) = Walk().walk(1, 2)
    with torch.no_grad():
        fresh = encoder(pair.view_1)
    by_hand = sum(
        float((fresh[row] - mixed.vectors[item]).square().sum()) for row, item in enumerate(pair.ids.tolist())
    )
    assert measured(mixed, encoder, 2, [1], (0,))[1] == pytest.approx(by_hand / BATCH, rel=1e-5)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d(6, momentum=None), SplitBatchNorm1d(6, groups=1)])
def test_a_measurement_changes_no_state(norm, mode):
    encoder = Encoder(nn.Sequential(norm, nn.Dropout(0.5))).train()
    queue = fill(KeyQueue(capacity=9, dim=5), encoder, 3)
    encoder.train(mode)
    encoder.layers[0].train(not mode)
    modes = [part.training for part in encoder.modules()]
    before = {name: (value, value.clone()) for name, value in encoder.state_dict(keep_vars=True).items()}
    state, stored = torch.get_rng_state(), queue.vectors.clone()
    found = measured(queue, encoder, 3, [1, 3])
    assert min(found.values()) > 0  # dropout in train mode, whatever the mode was
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in encoder.modules()] == modes
    assert torch.is_grad_enabled()
    for name, value in encoder.state_dict(keep_vars=True).items():
        assert value is before[name][0], name
        assert torch.equal(value, before[name][1]), name
    assert all(p.grad is None for p in encoder.parameters())
    assert torch.equal(queue.vectors, stored)


def test_backward_works_after_a_measurement_between_forward_and_backward():
    encoder, twin = Encoder().train(), Encoder().train()
    (pair,) = Walk().walk(3, 4)
    queue = fill(KeyQueue(capacity=9, dim=5), encoder, 3)
    fill(KeyQueue(capacity=9, dim=5), twin, 3)
    loss, other = encoder(pair.view_1).sum(), twin(pair.view_1).sum()
    measured(queue, encoder, 3, [1])
    loss.backward()
    other.backward()
    for one, two in zip(encoder.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


def test_modes_and_buffers_come_back_when_encoding_fails():
    encoder = Encoder().eval()
    mean = encoder.layers[2].running_mean

    def fail():
        with undisturbed(encoder):
            assert encoder.training
            assert encoder.layers[2].running_mean is not mean
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not encoder.training
    assert encoder.layers[2].running_mean is mean


def test_the_encoder_is_called_with_the_step_of_each_age():
    encoder = Encoder(SplitBatchNorm1d(6, groups=1)).train()
    queue, told = fill(KeyQueue(capacity=9, dim=5), encoder, 5), []
    drift_of(
        queue, Walk(), lambda images, step: told.append(step) or encoder(images), module=encoder, step=5,
        views=SECOND, ages=[3, 1, 1],
    )  # fmt: skip
    assert told == [4, 2]


def test_invalid_ages_and_views_are_refused():
    encoder = Encoder().train()
    queue = fill(KeyQueue(capacity=9, dim=5), encoder, 3)
    with pytest.raises(DataError, match="rows that step 3 should have written show other items"):
        measured(queue, encoder, 4, [1])
    with pytest.raises(RangeError, match="ages at least 1"):
        measured(queue, encoder, 3, [0])
    with pytest.raises(RangeError, match="views must be 0 or 1"):
        measured(queue, encoder, 3, [1], (2,))
    with pytest.raises(RangeError, match="views must be 0 or 1"):
        measured(queue, encoder, 3, [1], ())
    assert measured(KeyQueue(capacity=9, dim=5, start="random"), encoder, 0, [1]) == {}


def test_the_ages_that_are_measured():
    encoder = Encoder().train()
    assert stored_ages(KeyQueue(capacity=9, dim=5), steps=0) == ()
    assert stored_ages(KeyQueue(capacity=9, dim=5, start="random"), steps=0) == ()
    assert stored_ages(fill(KeyQueue(capacity=9, dim=5, start="random"), encoder, 1), steps=1) == (1,)
    assert stored_ages(fill(KeyQueue(capacity=9, dim=5), encoder, 7), steps=7) == (1, 2, 3)
    assert stored_ages(fill(KeyQueue(capacity=10, dim=5), encoder, 7), steps=7) == (1, 2, 3)
    assert stored_ages(fill(KeyQueue(capacity=11, dim=5), encoder, 7), steps=7) == (1, 2, 4)
    assert stored_ages(fill(KeyQueue(capacity=40, dim=5), encoder, 7), steps=3) == (1, 2, 3)
    bank = fill(MemoryBank(items=ITEMS, dim=5), encoder, 4, (0,))
    assert stored_ages(bank, steps=4) == (1, 2, 4)
