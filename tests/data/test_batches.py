"""Samplers: functions of seed and step."""

import pytest
import torch

from querykey.data.batches import ClassBatches, UniformBatches
from querykey.errors import DataError, RangeError


def test_an_epoch_holds_every_item_once_and_the_next_another_order():
    batches = UniformBatches(12, batch_size=4, seed=0)
    epochs = [torch.cat([batches(3 * epoch + i) for i in range(3)]).tolist() for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]


def test_a_step_is_the_same_for_any_caller_in_any_order():
    there = UniformBatches(100, batch_size=7, seed=3)
    forwards = [there(step).tolist() for step in range(40)]
    back = UniformBatches(100, batch_size=7, seed=3)
    assert [back(step).tolist() for step in reversed(range(40))][::-1] == forwards
    assert UniformBatches(100, batch_size=7, seed=4)(0).tolist() != forwards[0]


def test_trap_5_8_no_item_twice_in_a_batch_and_batches_change_between_epochs():
    """In one adapter trainer the in-batch negatives are the same in every epoch."""
    batches = UniformBatches(10, batch_size=3, seed=0)
    seen = [frozenset(batches(step).tolist()) for step in range(30)]
    assert all(len(batch) == 3 for batch in seen)
    assert len(set(seen)) > 20


def test_classes_by_items():
    labels = torch.tensor([0] * 5 + [1] * 5 + [2] + [-1] * 5 + [3] * 5)
    batch = ClassBatches(labels, classes=2, items=3, seed=0)(5)
    classes, counts = labels[batch].unique(return_counts=True)
    assert counts.tolist() == [3, 3]
    assert not {2, -1} & set(classes.tolist())


def test_faults():
    with pytest.raises(RangeError, match="batch_size must be from 1 to the 3 items, got 4"):
        UniformBatches(3, batch_size=4, seed=0)
    with pytest.raises(DataError, match="no class has two items"):
        ClassBatches(torch.arange(5), classes=2, items=2, seed=0)
    with pytest.raises(RangeError, match="at least 1 class of 2 items"):
        ClassBatches(torch.zeros(5, dtype=torch.int64), classes=2, items=1, seed=0)
