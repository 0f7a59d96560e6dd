"""Which rows keep their label."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from querykey.errors import DataError, RangeError
from querykey.evaluation.few_labels import choose_labelled, split_by_class

LABELS = torch.tensor([3] * 50 + [-1] * 20 + [8] * 10 + [5])


def counts(labels):
    return {int(label): int((labels == label).sum()) for label in labels.unique()}


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.001, {3: 1, 5: 1, 8: 1}),
        (0.1, {3: 5, 5: 1, 8: 1}),
        (0.25, {3: 13, 5: 1, 8: 3}),
        (1.0, {3: 50, 5: 1, 8: 10}),
    ],
)
def test_a_fraction_is_taken_of_each_class_and_at_least_one_row(fraction, expected):
    chosen = choose_labelled(LABELS, fraction=fraction, seed=0)
    assert counts(LABELS[chosen]) == expected
    assert torch.equal(chosen, chosen.unique())


def test_so_many_of_each_class():
    assert counts(LABELS[choose_labelled(LABELS[:80], per_class=4, seed=0)]) == {3: 4, 8: 4}


def test_the_seed_decides_and_nothing_else():
    state = torch.get_rng_state()
    first = choose_labelled(LABELS, fraction=0.2, seed=1)
    assert torch.equal(first, choose_labelled(LABELS, fraction=0.2, seed=1))
    assert not torch.equal(first, choose_labelled(LABELS, fraction=0.2, seed=2))
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), small=st.floats(0.01, 1), large=st.floats(0.01, 1))
def test_more_labels_are_the_fewer_and_others(seed, small, large):
    small, large = sorted((small, large))
    few = choose_labelled(LABELS, fraction=small, seed=seed)
    many = choose_labelled(LABELS, fraction=large, seed=seed)
    assert torch.isin(few, many).all()


def test_every_row_has_its_turn():
    seen = torch.cat([choose_labelled(LABELS, fraction=0.1, seed=seed) for seed in range(120)])
    assert counts(LABELS[seen.unique()]) == {3: 50, 5: 1, 8: 10}


def test_impossible_numbers_of_labels_are_refused():
    with pytest.raises(RangeError, match="either fraction or per_class, got None and None"):
        choose_labelled(LABELS, seed=0)
    with pytest.raises(RangeError, match=r"either fraction or per_class, got 0.5 and 3"):
        choose_labelled(LABELS, fraction=0.5, per_class=3, seed=0)
    for fraction in (0.0, -0.1, 1.01, float("nan")):
        with pytest.raises(RangeError, match="fraction must be above 0 and at most 1"):
            choose_labelled(LABELS, fraction=fraction, seed=0)
    with pytest.raises(RangeError, match="per_class must be at least 1, got 0"):
        choose_labelled(LABELS, per_class=0, seed=0)
    with pytest.raises(DataError, match="class 5 has 1 labelled rows, 2 are needed"):
        choose_labelled(LABELS, per_class=2, seed=0)
    with pytest.raises(DataError, match="none of the 2 rows is labelled"):
        choose_labelled(torch.tensor([-1, -1]), fraction=0.5, seed=0)


def test_the_parts_share_nothing_and_leave_nothing_out():
    fitting, held = split_by_class(LABELS, fraction=0.2, seed=4)
    both = torch.cat([fitting, held])
    assert torch.equal(both.sort().values, (LABELS != -1).nonzero()[:, 0])
    assert counts(LABELS[held]) == {3: 10, 8: 2}
    assert counts(LABELS[fitting]) == {3: 40, 5: 1, 8: 8}
    assert not torch.equal(held, split_by_class(LABELS, fraction=0.2, seed=5)[1])


def test_a_class_of_two_holds_one_out_and_single_rows_none():
    fitting, held = split_by_class(torch.tensor([0, 0, 1]), fraction=0.01, seed=0)
    assert len(fitting) == 2
    assert len(held) == 1
    assert not len(split_by_class(torch.tensor([0, 1]), fraction=0.5, seed=0)[1])
    with pytest.raises(RangeError, match="between 0 and 1, got 1"):
        split_by_class(LABELS, fraction=1.0, seed=0)
