"""What the dictionaries promise, asked of each of them."""

import pytest
import torch

from querykey.dictionaries.cross_batch import CrossBatchMemory
from querykey.dictionaries.protocol import Dictionary
from querykey.dictionaries.queue import KeyQueue
from querykey.dictionaries.static import InBatch, WholeSet
from querykey.errors import RangeError, ShapeError

FIFO = [
    pytest.param(lambda: CrossBatchMemory(capacity=10, dim=2), id="cross_batch"),
    pytest.param(lambda: KeyQueue(capacity=10, dim=2), id="queue"),
]
ALL = [
    *FIFO,
    pytest.param(InBatch, id="in_batch"),
    pytest.param(lambda: WholeSet(torch.zeros(50, 2)), id="whole"),
]


def rows(first, n=3):
    ids = torch.arange(first, first + n)
    return ids[:, None].float().expand(n, 2).clone(), ids, ids % 2


@pytest.fixture(params=ALL)
def dictionary(request):
    return request.param()


@pytest.fixture(params=FIFO)
def fifo(request):
    return request.param()


def test_vectors_ids_and_labels_belong_together(dictionary):
    dictionary.enqueue(*rows(4))
    held = dictionary.read()
    assert len(dictionary) == len(held.vectors) == len(held.ids) == len(held.labels) == len(dictionary.age())
    assert {4, 5, 6} <= set(held.ids.tolist())


def test_slots_are_read_by_their_numbers(dictionary):
    dictionary.enqueue(*rows(4))
    held, slots = dictionary.read(), torch.tensor([2, 0])
    assert isinstance(dictionary, Dictionary)
    assert torch.equal(dictionary.rows(slots), held.vectors[slots])
    assert torch.equal(dictionary.ids[slots], held.ids[slots])
    assert torch.equal(dictionary.labels[slots], held.labels[slots])


def test_stored_rows_have_no_gradient(dictionary):
    vectors, ids, labels = rows(1)
    dictionary.enqueue(vectors.requires_grad_(), ids, labels)
    assert not dictionary.read().vectors.requires_grad


def test_without_labels_every_row_is_unlabelled(dictionary):
    dictionary.enqueue(*rows(1)[:2])
    assert set(dictionary.read().labels.tolist()) == {-1}


def test_in_batch_holds_the_last_batch_only():
    dictionary = InBatch()
    dictionary.enqueue(*rows(1))
    dictionary.enqueue(*rows(8, n=2))
    assert dictionary.read().vectors.tolist() == [[8, 8], [9, 9]]
    assert dictionary.age().tolist() == [0, 0]


def test_the_whole_set_is_not_copied_and_not_written():
    vectors = torch.zeros(50, 2)
    dictionary = WholeSet(vectors)
    dictionary.enqueue(*rows(1))
    assert dictionary.read().vectors.data_ptr() == vectors.data_ptr()
    assert not vectors.any()


def test_starts_empty_and_returns_only_written_rows(fifo):
    assert len(fifo) == 0
    fifo.enqueue(*rows(1))
    held = fifo.read()
    assert held.vectors.tolist() == [[1, 1], [2, 2], [3, 3]]
    assert (held.ids.tolist(), held.labels.tolist()) == ([1, 2, 3], [1, 0, 1])


def test_trap_5_2_keeps_exactly_the_newest_when_batches_do_not_divide_capacity(fifo):
    """Three does not divide ten: published queues drop rows here, overwrite the newest, or refuse."""
    for first in range(1, 31, 3):
        fifo.enqueue(*rows(first))
    assert sorted(fifo.read().ids.tolist()) == list(range(21, 31))


def test_trap_5_3_label_zero_in_the_last_slot_is_a_row_like_any_other(fifo):
    """One reference decides "full" by the last label not being 0."""
    fifo.enqueue(torch.ones(10, 2), torch.arange(10), torch.zeros(10, dtype=torch.int64))
    assert len(fifo.read().ids) == len(fifo) == 10


def test_trap_5_1_a_restored_dictionary_goes_on_where_it_was(fifo):
    """Contents and place: one library saves neither, another the contents alone."""
    twin = type(fifo)(capacity=10, dim=2)
    for first in (1, 4, 7, 10):
        fifo.enqueue(*rows(first))
    twin.load_state_dict(fifo.state_dict())
    for d in (fifo, twin):
        d.enqueue(*rows(13))
    assert twin.read().ids.tolist() == fifo.read().ids.tolist()
    assert twin.age().tolist() == fifo.age().tolist()
    assert len(twin) == len(fifo) == 10


def test_age_counts_the_enqueues_since(fifo):
    fifo.enqueue(*rows(1))
    fifo.enqueue(*rows(4))
    assert fifo.age().tolist() == [1, 1, 1, 0, 0, 0]


def test_reading_copies_nothing_and_a_late_backward_is_refused(fifo):
    """A view that was overwritten must never give a wrong gradient in silence."""
    fifo.enqueue(*rows(1, n=10))
    assert fifo.read().vectors.data_ptr() == fifo.vectors.data_ptr()
    queries = torch.ones(1, 2, requires_grad=True)
    loss = (queries @ fifo.read().vectors.T).sum()
    fifo.enqueue(*rows(11))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_more_rows_than_capacity_are_refused_and_nothing_is_written():
    """Of a memory, which is looked up after its own batch is in; a queue is looked up before."""
    memory = CrossBatchMemory(capacity=10, dim=2)
    with pytest.raises(ShapeError, match="11 rows do not fit a memory of 10; raise the capacity"):
        memory.enqueue(*rows(1, n=11))
    assert len(memory) == 0


def test_a_capacity_below_one_is_refused():
    with pytest.raises(RangeError, match="capacity and dim must be at least 1, got 0 and 2"):
        CrossBatchMemory(capacity=0, dim=2)
