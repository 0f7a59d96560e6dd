"""The processes of a run: parts of a batch, and what they tell one another."""

import pytest
import torch
from process_toys import ROWS, together

from querykey.errors import RangeError, ShapeError
from querykey.processes import ALONE, Processes, current_processes


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("rows", [0, 1, 5, 8, 21])
def test_parts_are_consecutive_and_differ_by_one_at_the_most(rows, count):
    parts = [Processes(rank, count).part(rows) for rank in range(count)]
    assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
    sizes = [part.stop - part.start for part in parts]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_one_alone_asks_nobody_and_copies_nothing():
    rows = ROWS.clone().requires_grad_()
    assert current_processes() == ALONE
    assert ALONE.gather(rows, 5) is rows
    assert ALONE.sum(rows).data_ptr() == rows.data_ptr()
    assert not ALONE.sum(rows).requires_grad
    value = object()
    assert ALONE.from_first(value) is value


def test_what_does_not_exist():
    for rank, count in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(RangeError, match=f"process {rank} of {count} does not exist"):
            Processes(rank, count)
    with pytest.raises(ShapeError, match="process 1 of 2 has 3 rows of 5, and its part are 2"):
        Processes(1, 2).gather(ROWS[:3], 5)


def test_two_gather_with_gradient_sum_and_follow_the_first(tmp_path):
    found = together("process_toys:exchange", 2, tmp_path)
    for rank, one in enumerate(found):
        assert torch.equal(one["every"], ROWS)
        rows = range(5)[Processes(rank, 2).part(5)]
        assert one["gradient"].tolist() == [[11.0 * (row + 1)] * 2 for row in rows]  # of both processes
        assert one["even"].tolist() == [0, 10, 1, 11]
        assert torch.equal(one["sum"], torch.full((3,), 0.1) + torch.full((3,), 1.1))
        assert torch.equal(one["before"], torch.full((3,), 0.1 + rank))
        assert one["flags"].tolist() == [1, 2]
        assert one["first"].tolist() == [7, 0.1]
        assert one["kind"]
        assert one["none"]
        assert one["empty"].tolist() == [1.0]
