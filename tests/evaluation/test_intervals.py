"""Bootstrap intervals."""

import numpy as np
import pytest
import torch

from querykey.errors import DataError, RangeError, ShapeError
from querykey.evaluation import intervals
from querykey.evaluation.intervals import Interval, bootstrap, bootstrap_columns, paired_difference


def draws(count=400, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def close(ours, theirs):
    assert (ours.mean, ours.low, ours.high) == pytest.approx((theirs.mean, theirs.low, theirs.high))


def test_interval_of_normal_draws_is_two_standard_errors_each_way():
    values = draws(2000) + 3
    found = bootstrap(values, samples=4000)
    error = 1.96 * float(values.std()) / 2000**0.5
    assert found.mean == pytest.approx(float(values.double().mean()))
    assert found.mean - found.low == pytest.approx(error, rel=0.08)
    assert found.high - found.mean == pytest.approx(error, rel=0.08)


def test_interval_is_that_of_resampling_one_by_one():
    values = draws(30).double().numpy()
    generator = np.random.default_rng(5)
    means = [values[row].mean() for row in generator.integers(0, 30, (2000, 30))]
    low, high = np.percentile(means, [2.5, 97.5])
    close(bootstrap(torch.from_numpy(values), seed=5), Interval(float(values.mean()), low, high))


def test_it_covers_the_truth_about_19_times_of_20():
    """500 small samples; the percentile interval is a little short at 40 draws."""
    covered = 0
    for seed in range(500):
        found = bootstrap(draws(40, seed), seed=seed, samples=300)
        covered += found.low <= 0 <= found.high
    assert 0.90 <= covered / 500 <= 0.97


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    assert bootstrap(draws(), seed=1) == bootstrap(draws(), seed=1)
    assert bootstrap(draws(), seed=1) != bootstrap(draws(), seed=2)


def test_queries_without_an_answer_are_left_out():
    values = draws(50)
    holes = torch.cat([torch.tensor([torch.nan]), values, torch.tensor([torch.nan])])
    close(bootstrap(holes), bootstrap(values))


def test_a_paired_interval_finds_what_two_intervals_do_not():
    """The queries differ by far more than the methods do."""
    theirs = draws() * 10
    ours = theirs + 0.1 + draws(seed=1) * 0.1
    assert bootstrap(ours).low < bootstrap(theirs).high
    difference = paired_difference(ours, theirs)
    assert difference.excludes_zero
    assert difference.low < 0.1 < difference.high
    assert paired_difference(theirs, ours).mean == -difference.mean


def test_no_difference_is_not_one():
    same = paired_difference(draws(), draws())
    assert same == Interval(0.0, 0.0, 0.0)
    assert not same.excludes_zero
    assert not paired_difference(draws(seed=1), draws(seed=2)).excludes_zero


def test_a_query_missing_on_either_side_is_left_out_of_the_difference():
    ours, theirs = torch.tensor([1.0, torch.nan, 3.0]), torch.tensor([0.0, 5.0, torch.nan])
    assert paired_difference(ours, theirs) == Interval(1.0, 1.0, 1.0)


@pytest.mark.parametrize("bounds", [(0.1, 0.2), (-0.2, -0.1)])
def test_an_interval_on_one_side_of_zero_excludes_it(bounds):
    assert Interval(sum(bounds) / 2, *bounds).excludes_zero


@pytest.mark.parametrize("bounds", [(-0.1, 0.2), (0.0, 0.2), (-0.2, 0.0)])
def test_an_interval_that_touches_zero_does_not(bounds):
    assert not Interval(sum(bounds) / 2, *bounds).excludes_zero


def test_columns_give_what_each_gives_alone_in_blocks_of_any_size(monkeypatch):
    holes = draws(60, 3).masked_fill(draws(60, 4) > 1, torch.nan)
    columns = [draws(60, 1), draws(60, 2), holes]
    alone = [bootstrap(column) for column in columns]
    for ours, theirs in zip(bootstrap_columns(columns), alone, strict=True):
        close(ours, theirs)
    monkeypatch.setattr(intervals, "DRAWS_AT_ONCE", 61)
    for ours, theirs in zip(bootstrap_columns(columns), alone, strict=True):
        close(ours, theirs)


def test_as_dict_is_what_json_needs():
    assert Interval(0.5, 0.25, 0.75).as_dict() == {"mean": 0.5, "low": 0.25, "high": 0.75}


def test_bad_input_is_one_message():
    with pytest.raises(DataError, match="no query has a value"):
        bootstrap(torch.tensor([torch.nan]))
    with pytest.raises(DataError, match="no query has a value"):
        bootstrap(torch.tensor([]))
    with pytest.raises(RangeError, match="samples=0"):
        bootstrap(draws(), samples=0)
    with pytest.raises(ShapeError, match="3 values against 2"):
        paired_difference(draws(3), draws(2))
    with pytest.raises(ShapeError, match="same queries"):
        bootstrap_columns([draws(3), draws(2)])
