"""Shuffling batch norm on one device and over processes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from querykey.encoders.norm.split import SplitBatchNorm1d, encode_shuffled, spread_order
from querykey.errors import ConfigError, RangeError, ShapeError

ROWS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ORDER = torch.tensor([5, 0, 3, 7, 1, 6, 2, 4])


def by_groups(rows, order, groups):
    """Each row less its group's mean, over its deviation; groups are cut from the order, row by row."""
    out, size = torch.zeros_like(rows), len(rows) // groups
    for first in range(0, len(rows), size):
        members = order[first : first + size].tolist()
        mean = sum(rows[i] for i in members) / size
        variance = sum((rows[i] - mean) ** 2 for i in members) / size
        for i in members:
            out[i] = (rows[i] - mean) / (variance + 1e-5).sqrt()
    return out


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_split_batch_norm_groups_by_the_permutation(groups):
    norm = SplitBatchNorm1d(3, groups=groups).double()
    found = encode_shuffled(norm, ROWS, permutation=ORDER)
    torch.testing.assert_close(found, by_groups(ROWS, ORDER, groups), rtol=1e-12, atol=1e-12)
    in_order = norm(ROWS)
    assert torch.allclose(found, in_order) == (groups == 1)


def test_over_a_whole_batch_norm_it_changes_nothing_but_rounding():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)).double()
    torch.testing.assert_close(
        encode_shuffled(network, ROWS, permutation=ORDER), network(ROWS), rtol=1e-12, atol=1e-12
    )


def test_the_encoder_sees_the_images_in_that_order_once():
    seen = []
    found = encode_shuffled(lambda some: seen.append(some) or some * 2, ROWS, permutation=ORDER)
    assert len(seen) == 1
    assert torch.equal(seen[0], ROWS[ORDER])
    assert torch.equal(found, ROWS * 2)


def test_a_generator_draws_the_permutation():
    def order(seed):
        seen = []
        generator = torch.Generator().manual_seed(seed)
        encode_shuffled(lambda some: seen.append(some) or some, ROWS, generator=generator)
        return seen[0]

    assert torch.equal(order(3), order(3))
    assert torch.equal(order(3), ROWS[torch.randperm(8, generator=torch.Generator().manual_seed(3))])
    assert not torch.equal(order(3), order(4))


def test_gradient_flows_through_on_one_process():
    rows = ROWS.clone().requires_grad_()
    weights = torch.arange(8.0)[:, None]
    (encode_shuffled(lambda some: some * 3, rows, permutation=ORDER) * weights).sum().backward()
    assert torch.equal(rows.grad, (3 * weights).expand(8, 3).double())


def test_what_is_refused():
    def call(**given):
        return encode_shuffled(lambda some: some, ROWS, **given)

    for given in ({}, {"permutation": ORDER, "generator": torch.Generator()}):
        with pytest.raises(ConfigError, match="need a permutation or a generator to draw one from, not both"):
            call(**given)
    with pytest.raises(ShapeError, match=r"the permutation has shape \[7\] for 8 images"):
        call(permutation=ORDER[:7])
    with pytest.raises(RangeError, match="does not have each of 0 to 7 once"):
        call(permutation=torch.tensor([5, 0, 3, 7, 1, 6, 2, 2]))


PROCESS = """
import json, sys
import torch
from torch import distributed
from querykey.encoders.norm.split import encode_shuffled
from querykey.errors import ShapeError
from querykey.distributed.process_group import current_process_group

rank, place = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
every = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
processes = current_process_group()
images = every[rank * 4 : rank * 4 + 4].requires_grad_()
norm = torch.nn.BatchNorm1d(3, affine=False, track_running_stats=False).double()
order = torch.tensor([5, 0, 3, 7, 1, 6, 2, 4])
keys = encode_shuffled(norm, images, permutation=order, processes=processes)
drawn = encode_shuffled(norm, images, generator=torch.Generator().manual_seed(3), processes=processes)
said = {"keys": keys.tolist(), "drawn": drawn.tolist()}
# each process has a part of the sum of all keys, weighed by place
(keys ** 2 * torch.arange(8.0)[:, None] * [0.25, 0.75][rank]).sum().backward()
said["gradient"] = images.grad.tolist()
try:
    encode_shuffled(norm, images[:3], permutation=order, processes=processes)
except ShapeError as fault:
    said["sizes"] = str(fault)
distributed.destroy_process_group()
print(json.dumps(said))
"""


def test_two_processes_exchange_their_images(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(tmp_path / "meeting")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        outcomes = [child.communicate(timeout=300) for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], [errors[-2000:] for _, errors in outcomes]
    said = [json.loads(out.splitlines()[-1]) for out, _ in outcomes]
    drawn = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    for rank, one in enumerate(said):
        for name, order in (("keys", ORDER), ("drawn", drawn)):
            found = torch.tensor(one[name], dtype=torch.float64)
            torch.testing.assert_close(found, by_groups(ROWS, order, 2), rtol=1e-12, atol=1e-12)
        assert one["sizes"].startswith(f"process {rank} of 2 has 3 rows of 8, and needs 4")
    rows = ROWS.clone().requires_grad_()
    norm = SplitBatchNorm1d(3, groups=2, affine=False).double()
    keys = encode_shuffled(norm, rows, permutation=ORDER)
    (keys**2 * torch.arange(8.0)[:, None]).sum().backward()
    gradient = torch.tensor(said[0]["gradient"] + said[1]["gradient"], dtype=torch.float64)
    torch.testing.assert_close(gradient, rows.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("rows", "groups"), [(64, 16), (32, 8), (24, 4), (30, 5), (6, 6), (5, 1), (256, 8)])
def test_a_spread_order_meets_no_group_again_more_than_it_must(rows, groups):
    size = rows // groups
    order = spread_order(rows, groups=groups, generator=torch.Generator().manual_seed(rows))
    assert order.sort().values.equal(torch.arange(rows))
    for new in order.view(groups, size):
        counts = torch.bincount(new // size, minlength=groups)
        assert counts.max() <= -(-size // groups)
        assert counts.min() >= size // groups


def test_a_spread_order_is_random_and_keyed():
    one, again, other = (
        spread_order(32, groups=8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert one.equal(again)
    assert not one.equal(other)
    with pytest.raises(ShapeError, match="10 rows do not make 4 groups of one size"):
        spread_order(10, groups=4, generator=torch.Generator())
