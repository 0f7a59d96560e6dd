"""Batch norm that gives pairs away, shown on noise."""

import pytest
import torch
from torch import nn

from querykey.errors import ConfigError, RangeError
from querykey.pretraining.batchnorm_leak import Leakage, _interval, _pairs, probe_leakage

FEW = {"groups": 8, "steps": 60, "tests": 30}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("method", ["moco", "end-to-end"])
def test_the_pretext_task_is_solved_in_order_and_not_when_keys_are_shuffled(method):
    in_order = probe_leakage(method, **FEW)
    shuffled = probe_leakage(method, shuffle=True, **FEW)
    assert in_order.low > 2 * in_order.chance
    assert shuffled.low < shuffled.chance < shuffled.high
    assert in_order.queries == shuffled.queries == 240


def test_layer_norm_does_not_leak_and_an_encoder_may_be_ones_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(
                nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 8)
            )

        def forward(self, images):
            return images, self.inner(images)

    found = probe_leakage("moco", kind="layer", make_encoder=Own, **FEW)
    assert not found.is_found
    assert found.chance == pytest.approx(1 / 33)


def test_the_same_seed_gives_the_same_and_the_callers_generator_does_not_move():
    few = {"groups": 2, "steps": 3, "tests": 20}
    state = torch.get_rng_state()
    one, again, other = (probe_leakage("end-to-end", seed=seed, shuffle=True, **few) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert one == again != other


def test_context_is_the_same_on_both_sides_and_what_is_asked_is_nowhere_else():
    queries, keys = _pairs(0, 5, 3, 4)
    asks = torch.arange(12) % 4 == 0
    assert torch.equal(queries[~asks], keys[~asks])
    both = torch.cat([queries, keys[asks]]).flatten(1)
    assert len(both.unique(dim=0)) == 15
    products = (queries[asks] * keys[asks]).mean(dim=(1, 2, 3))
    assert products.abs().max() < 4 / (3 * 64) ** 0.5
    assert not torch.equal(_pairs(0, 6, 3, 4)[0], queries)


def test_the_interval_is_the_exact_one():
    """Clopper and Pearson 1934: with none found of n the upper end is 1 - 0.025 ** (1 / n)."""
    assert _interval(0, 10) == (0.0, pytest.approx(1 - 0.025**0.1))
    assert _interval(10, 10) == (pytest.approx(0.025**0.1), 1.0)
    assert _interval(1, 1000) == pytest.approx((2.53e-5, 5.56e-3), rel=0.01)
    assert Leakage(0.5, 0.4, 0.6, 0.3, 100).is_found
    assert not Leakage(0.5, 0.4, 0.6, 0.45, 100).is_found


def test_what_is_refused():
    with pytest.raises(
        RangeError, match="at least 2 groups of at least 2 rows, 1 step and 1 test; got 1 of 4"
    ):
        probe_leakage("moco", groups=1)
    with pytest.raises(RangeError, match="got 2 of 4, 0 and 100"):
        probe_leakage("moco", groups=2, steps=0)
    with pytest.raises(ConfigError, match="batch norm is probed in moco, end-to-end; got 'simclr'"):
        probe_leakage.__wrapped__("simclr")
