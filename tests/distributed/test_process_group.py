"""The processes of a run: parts of a batch, and what they tell one another."""

import pytest
import torch
from process_toys import NORMS, ROWS, normed, rows_of, together

from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup, current_process_group
from querykey.errors import RangeError, ShapeError
from querykey.pretraining.learner import Learner
from querykey.pretraining.methods.modules import make_encoder
from querykey.pretraining.settings.methods import given_settings
from querykey.pretraining.settings.resolve import resolve_settings

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("rows", [0, 1, 5, 8, 21])
def test_parts_are_consecutive_and_differ_by_one_at_the_most(rows, count):
    parts = [ProcessGroup(rank, count).local_slice(rows) for rank in range(count)]
    assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
    sizes = [part.stop - part.start for part in parts]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_a_single_process_communicates_and_copies_nothing():
    rows = ROWS.clone().requires_grad_()
    assert current_process_group() == SINGLE_PROCESS
    assert SINGLE_PROCESS.all_gather_with_grad(rows, 5) is rows
    assert SINGLE_PROCESS.sum(rows).data_ptr() == rows.data_ptr()
    assert not SINGLE_PROCESS.sum(rows).requires_grad
    value = object()
    assert SINGLE_PROCESS.broadcast_object(value) is value


def test_what_does_not_exist():
    for rank, count in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(RangeError, match=f"process {rank} of {count} does not exist"):
            ProcessGroup(rank, count)
    with pytest.raises(ShapeError, match="process 1 of 2 has 3 rows of 5, and needs 2"):
        ProcessGroup(1, 2).all_gather_with_grad(ROWS[:3], 5)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return together("process_toys:norms", 2, tmp_path_factory.mktemp("two"))


def test_two_processes_gather_sum_and_broadcast_with_gradients(two):
    for rank, one in enumerate(two):
        assert torch.equal(one["every"], ROWS)
        rows = range(5)[ProcessGroup(rank, 2).local_slice(5)]
        assert one["gradient"].tolist() == [[11.0 * (row + 1)] * 2 for row in rows]  # of both processes
        assert one["even"].tolist() == [0, 10, 1, 11]
        assert torch.equal(one["sum"], torch.full((3,), 0.1) + torch.full((3,), 1.1))
        assert torch.equal(one["before"], torch.full((3,), 0.1 + rank))
        assert one["flags"].tolist() == [1, 2]
        assert one["first"].tolist() == [7, 0.1]
        assert one["kind"]
        assert one["none"]
        assert one["empty"].tolist() == [1.0]


@pytest.mark.parametrize("name", NORMS)
def test_global_batch_norm_is_that_of_all_rows_with_its_gradient(name, two):
    options = NORMS[name][1]
    kind = torch.nn.BatchNorm2d if name == "maps" else torch.nn.BatchNorm1d
    norm = kind(2, **options).double()
    for place, weight in enumerate(norm.parameters()):
        torch.nn.init.constant_(weight, 0.5 + place)
    wanted = normed(norm, rows_of(name))
    for key, value in wanted.items():
        parts = [one[f"{name}: {key}"] for one in two]
        if key.startswith(("rows", "gradient")):
            found = torch.cat(parts)
        elif key.startswith("weight"):  # each has that of its own rows
            found = sum(parts)
        else:
            assert torch.equal(*parts)
            found = parts[0]
        torch.testing.assert_close(found, value, rtol=1e-7, atol=1e-8)


def test_what_is_drawn_is_keyed_by_step_and_process():
    settings = resolve_settings(given_settings("simclr", steps=3), images=9, channels=1, side=8)

    def drawn(step, processes):
        learner = Learner(make_encoder(settings, channels=1), settings, CPU, items=9, processes=processes)
        with learner._seeded(step):
            return torch.rand(3).tolist()

    all_of_them = [drawn(step, ProcessGroup(rank, 3)) for step in (0, 1) for rank in range(3)]
    assert drawn(1, SINGLE_PROCESS) == all_of_them[3]
    assert len({tuple(one) for one in all_of_them}) == 6
