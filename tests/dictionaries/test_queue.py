"""The queue of keys: the traps that published queues fell into, and the warning of one too large."""

import inspect

import pytest
import torch

from querykey.data.batches import UniformBatches
from querykey.dictionaries.queue import KeyQueue, stale_copies
from querykey.errors import ConfigError, RangeError
from querykey.lookup.lookup import look_up_own_key
from querykey.losses.info_nce import info_nce


def rows(first, n=3):
    ids = torch.arange(first, first + n)
    return ids[:, None].float().expand(n, 2).clone(), ids


def in_order(queue):
    """The ids held, oldest first."""
    held, cursor = queue.read().ids, queue.get_extra_state().tolist()[0] % len(queue)
    return torch.cat([held[cursor:], held[:cursor]]).tolist()


def test_the_random_start_is_full_of_unit_rows_without_an_item():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    queue, same, other = (KeyQueue(capacity=200, dim=3, start="random", seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    held = queue.read()
    assert len(queue) == len(held.vectors) == 200
    torch.testing.assert_close(held.vectors.norm(dim=1), torch.ones(200))
    assert set(held.ids.tolist()) == set(held.labels.tolist()) == {-1}
    assert float(held.vectors.mean(dim=0).abs().max()) < 0.2
    assert torch.equal(held.vectors, same.read().vectors)
    assert not torch.equal(held.vectors, other.read().vectors)


def test_random_rows_are_overwritten_oldest_first_and_age():
    queue = KeyQueue(capacity=5, dim=2, start="random")
    queue.enqueue(*rows(10))
    assert in_order(queue) == [-1, -1, 10, 11, 12]
    assert queue.age().tolist() == [0, 0, 0, 1, 1]
    queue.enqueue(*rows(20))
    assert in_order(queue) == [11, 12, 20, 21, 22]


def test_trap_5_2_a_queue_of_10_fed_by_threes_holds_the_last_10_in_order():
    queue = KeyQueue(capacity=10, dim=2)
    for first in range(1, 31, 3):
        queue.enqueue(*rows(first))
        assert in_order(queue) == list(range(1, first + 3))[-10:]
    held = queue.read()
    assert torch.equal(held.vectors[:, 0], held.ids.float())


@pytest.mark.parametrize("start", ["empty", "random"])
def test_trap_5_1_a_saved_queue_goes_on_as_if_never_stopped(start):
    queue = KeyQueue(capacity=10, dim=2, start=start)
    for first in (1, 4, 7, 10):
        queue.enqueue(*rows(first))
    twin = KeyQueue(capacity=10, dim=2, start="empty", seed=9)
    twin.load_state_dict(queue.state_dict())
    for first in (13, 16, 19):
        for one in (queue, twin):
            one.enqueue(*rows(first))
        assert all(torch.equal(*pair) for pair in zip(queue.read(), twin.read(), strict=True))
        assert queue.age().tolist() == twin.age().tolist()
        assert in_order(queue) == in_order(twin)


def test_trap_5_1_a_saved_queue_that_is_not_full_stays_so():
    queue, twin = KeyQueue(capacity=10, dim=2), KeyQueue(capacity=10, dim=2, start="random")
    queue.enqueue(*rows(1))
    twin.load_state_dict(queue.state_dict())
    assert len(twin) == 3
    assert twin.read().ids.tolist() == [1, 2, 3]


def test_trap_5_3_no_row_is_taken_for_an_empty_slot():
    """Neither id 0, nor label 0, nor a row of zeros, nor -1."""
    queue = KeyQueue(capacity=4, dim=2)
    queue.enqueue(torch.zeros(3, 2), torch.tensor([0, -1, 0]), torch.zeros(3, dtype=torch.int64))
    assert len(queue) == 3
    queue.enqueue(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0]))
    assert len(queue) == 4
    assert queue.read().ids.tolist() == [0, -1, 0, 0]


def test_trap_5_4_a_perfect_encoder_has_loss_0():
    """Read before it is written: a queue that holds this step's keys as well costs log 2 at best."""
    queue, items = KeyQueue(capacity=8, dim=8), torch.eye(8)
    queue.enqueue(items[4:], torch.arange(4, 8))
    ids = torch.arange(4)

    def loss():
        held = queue.read()
        found = look_up_own_key(
            items[:4],
            items[:4],
            ids=ids,
            stored_vectors=held.vectors,
            stored_ids=held.ids,
            same_id="negative",
        )
        return info_nce(found, temperature=0.05)

    assert float(loss().max()) < 1e-6
    queue.enqueue(items[:4], ids)
    torch.testing.assert_close(loss(), torch.full((4,), 2.0).log())


@pytest.mark.parametrize("start", ["empty", "random"])
def test_of_more_keys_than_the_queue_holds_the_last_stay(start):
    queue = KeyQueue(capacity=4, dim=2, start=start)
    for first, count in ((0, 3), (10, 9), (20, 2), (30, 4)):
        vectors, ids = rows(first, count)
        queue.enqueue(vectors, ids, labels=ids + 5)
        held = queue.read()
        assert torch.equal(held.vectors[held.ids >= 0][:, 0], held.ids[held.ids >= 0].float())
        assert torch.equal(held.labels[held.ids >= 0], held.ids[held.ids >= 0] + 5)
        if first == 10:
            assert in_order(queue) == [15, 16, 17, 18]
        elif first == 20:
            assert in_order(queue) == [17, 18, 20, 21]
    assert in_order(queue) == [30, 31, 32, 33]
    assert queue.age().tolist() == [0] * 4


def test_what_is_refused():
    with pytest.raises(ConfigError, match="a queue starts empty or random; got 'zeros'"):
        inspect.unwrap(KeyQueue.__init__)(KeyQueue(capacity=1, dim=1), capacity=2, dim=2, start="zeros")
    with pytest.raises(RangeError, match="capacity and dim must be at least 1, got 4 and 0"):
        KeyQueue(capacity=4, dim=0, start="random")


def test_a_warning_begins_where_the_other_items_of_an_epoch_end():
    assert stale_copies(90, 100, 10) is None
    assert stale_copies(91, 100, 10) == (
        "a queue of 91 keys reaches back over 0.91 epochs of 100 items, and holds about 0.4 older keys of "
        "each query's own item; take a capacity of at most 90, and leave them masked (same_id)"
    )
    assert stale_copies(180, 100, 10, keys_an_item=2) is None
    assert "0.91 epochs of 100 items, and holds about 0.8 older" in stale_copies(181, 100, 10, keys_an_item=2)
    assert "take a smaller batch and a smaller queue" in stale_copies(1, 10, 10)


@pytest.mark.parametrize("keys_an_item", [1, 2])
@pytest.mark.parametrize("epochs", [0.98, 1.3, 2.5])
def test_older_keys_of_the_warning_exist(epochs, keys_an_item):
    """Counted in a queue that is fed as training feeds it."""
    items, batch_size = 400, 10
    capacity = int(epochs * items) * keys_an_item
    queue, batches = KeyQueue(capacity=capacity, dim=1), UniformBatches(items, batch_size=batch_size, seed=0)
    counts = []
    for step in range(300):
        ids = batches(step)
        if step >= 120:
            counts.append((queue.read().ids[None, :] == ids[:, None]).sum() / batch_size)
        many = ids.repeat(keys_an_item)
        queue.enqueue(torch.zeros(len(many), 1), many)
    said = stale_copies(capacity, items, batch_size, keys_an_item=keys_an_item)
    wanted = float(said.partition("about ")[2].split()[0])
    assert sum(counts) / len(counts) == pytest.approx(wanted, abs=0.1 * keys_an_item)


@pytest.mark.parametrize("given", [(0, 5, 1), (4, 5, 0), (4, 5, 6)])
def test_invalid_numbers_are_refused(given):
    with pytest.raises(RangeError, match=r"must be >= 1 and the batch no larger than the items"):
        stale_copies(*given)
