"""The memory bank: where rows go, what they become, and what is saved."""

import math

import pytest
import torch
from torch.nn import functional as F

from querykey.dictionaries.bank import MemoryBank
from querykey.errors import RangeError, ShapeError


def a_bank(**options):
    return MemoryBank(**({"items": 5, "dim": 3} | options))


def test_starts_full_with_rows_about_as_long_as_1():
    """Uniform from -1 / sqrt(d / 3) to its opposite: the squares sum to 1 on average."""
    bank = MemoryBank(items=2000, dim=48)
    assert bank.vectors.abs().max() <= 1 / math.sqrt(48 / 3)
    assert bank.vectors.abs().max() > 0.99 / math.sqrt(48 / 3)
    assert abs(bank.vectors.mean()) < 1e-3
    assert abs(bank.vectors.square().sum(dim=1).mean() - 1) < 0.01
    held = bank.read()
    assert len(bank) == len(held.vectors) == 2000
    assert torch.equal(held.ids, torch.arange(2000))
    assert set(held.labels.tolist()) == {-1}


def test_the_start_is_the_seeds_and_moves_no_other_generator():
    state = torch.get_rng_state()
    one, same, other = a_bank(seed=1), a_bank(seed=1), a_bank(seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.vectors, same.vectors)
    assert not torch.equal(one.vectors, other.vectors)


def test_a_slot_mixes_the_old_and_the_new_row_at_length_1():
    bank = a_bank(momentum=0.8)
    before = bank.vectors.clone()
    rows = F.normalize(torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 0.5]]), dim=1)
    bank.write(rows.requires_grad_(), torch.tensor([3, 0]))
    expected = before.clone()
    expected[3] = F.normalize(0.8 * before[3] + 0.2 * rows[0].detach(), dim=0)
    expected[0] = F.normalize(0.8 * before[0] + 0.2 * rows[1].detach(), dim=0)
    torch.testing.assert_close(bank.vectors, expected)
    assert torch.equal(bank.vectors[[1, 2, 4]], before[[1, 2, 4]])
    assert not bank.vectors.requires_grad


def test_says_when_each_slot_was_written():
    bank = a_bank()
    assert bank.age().tolist() == bank.written.tolist() == [0] * 5
    for ids in ([0, 1], [1, 2], [4]):
        bank.write(torch.ones(len(ids), 3), torch.tensor(ids))
    assert bank.written.tolist() == [1, 2, 2, 0, 3]
    assert bank.age().tolist() == [2, 1, 1, 3, 0]


def test_of_an_item_that_is_there_twice_the_last_row_counts():
    twice, once = a_bank(), a_bank()
    rows = torch.eye(3).repeat(2, 1)[:4]
    twice.write(rows, torch.tensor([2, 4, 2, 2]))
    once.write(rows[[1, 3]], torch.tensor([4, 2]))
    assert torch.equal(twice.vectors, once.vectors)
    assert twice.written.tolist() == [0, 0, 1, 0, 1]


@pytest.mark.parametrize("item", [-1, 5])
def test_an_item_without_a_slot_is_refused_and_nothing_is_written(item):
    bank = a_bank()
    before = bank.vectors.clone()
    message = (
        f"the memory bank has slots for items 0 to 4 and was given item {item}; "
        "give it as many slots as the data has items, and ids counted from 0"
    )
    for call in (lambda ids: bank.write(torch.ones(2, 3), ids), bank.rows):
        with pytest.raises(RangeError) as error:
            call(torch.tensor([0, item]))
        assert str(error.value) == message
    assert torch.equal(bank.vectors, before)
    assert not bank.written.any()


def test_rows_of_another_width_are_refused():
    with pytest.raises(ShapeError) as error:
        a_bank().write(torch.ones(2, 4), torch.tensor([0, 1]))
    assert str(error.value) == (
        "[2, 4] rows with 2 ids do not fit a memory bank of rows 3 wide; one id for each row is needed"
    )


def test_own_rows_are_a_copy():
    bank = a_bank()
    own = bank.rows(torch.tensor([2]))
    before = own.clone()
    bank.write(torch.ones(1, 3), torch.tensor([2]))
    assert torch.equal(own, before)


def test_a_sample_is_uniform_and_its_generators():
    bank = a_bank()
    first, again = (bank.sample(4000, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    counts = first.bincount(minlength=5)
    assert len(counts) == 5
    assert (counts - 800).abs().max() < 4 * math.sqrt(4000 * 0.2 * 0.8)


def test_a_late_backward_is_refused():
    """A row that was overwritten must never give a wrong gradient in silence."""
    bank = a_bank()
    queries = torch.ones(1, 3, requires_grad=True)
    loss = (queries @ bank.read().vectors.T).sum()
    bank.write(torch.ones(1, 3), torch.tensor([0]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_trap_5_1_a_restored_bank_goes_on_where_it_was():
    bank, twin = a_bank(seed=1), a_bank(seed=2)
    bank.write(torch.ones(2, 3), torch.tensor([0, 3]))
    bank.normaliser.fill_(7.0)
    twin.load_state_dict(bank.state_dict())
    for one in (bank, twin):
        one.write(torch.eye(3)[:2], torch.tensor([3, 4]))
    assert torch.equal(twin.vectors, bank.vectors)
    assert twin.age().tolist() == bank.age().tolist() == [1, 2, 2, 0, 0]
    assert float(twin.normaliser) == 7.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 0}, "items and dim must be at least 1, got 0 and 3"),
        ({"dim": 0}, "items and dim must be at least 1, got 5 and 0"),
        ({"momentum": 1.0}, "momentum of the memory bank must be from 0 to below 1, got 1.0; 0.5 is usual"),
        ({"momentum": -0.1}, "momentum of the memory bank must be from 0 to below 1, got -0.1; 0.5 is usual"),
        (
            {"momentum": math.nan},
            "momentum of the memory bank must be from 0 to below 1, got nan; 0.5 is usual",
        ),
    ],
)
def test_refuses_invalid_sizes(options, message):
    with pytest.raises(RangeError) as error:
        a_bank(**options)
    assert str(error.value) == message


def test_refuses_an_empty_sample():
    with pytest.raises(RangeError) as error:
        a_bank().sample(0, torch.Generator())
    assert str(error.value) == "a sample of the memory bank needs at least 1 item, got 0"


def test_prefilled_rows_replace_the_random_ones_and_count_as_no_write():
    bank = MemoryBank(items=4, dim=2, seed=0)
    before = bank.vectors.clone()
    rows = torch.tensor([[0.6, 0.8], [1.0, 0.0]], requires_grad=True)
    bank.put(rows, torch.tensor([3, 1]))
    assert bank.vectors[[3, 1]].equal(rows.detach())
    assert bank.vectors[[0, 2]].equal(before[[0, 2]])
    assert bank.written.tolist() == [0] * 4
    assert not bank.vectors.requires_grad
    with pytest.raises(RangeError):
        bank.put(rows, torch.tensor([0, 4]))
    assert bank.vectors[0].equal(before[0])
