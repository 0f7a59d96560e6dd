"""The weighted kNN vote."""

import evaluation_oracles as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from querykey.errors import DataError, RangeError, ShapeError
from querykey.evaluation import knn as knn_module
from querykey.evaluation.knn import knn_correct, knn_predict


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 20), k=st.integers(1, 25))
def test_vote_is_that_of_the_loops(seed, count, k):
    generator = torch.Generator().manual_seed(seed)
    bank, queries = torch.randn(count, 3, generator=generator), torch.randn(4, 3, generator=generator)
    labels = torch.randint(-1, 4, (count,), generator=generator)
    labels[0] = 2
    ours = knn_predict(bank, labels, queries, k=k, temperature=0.2)
    theirs = [oracle.knn(q, bank.tolist(), labels.tolist(), k, 0.2) for q in queries.tolist()]
    assert ours.tolist() == theirs


def test_nearer_neighbours_have_larger_weights():
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    query = torch.tensor([[0.9, 0.1]])
    assert knn_predict(bank, torch.tensor([0, 1, 1]), query, k=3, temperature=0.1).tolist() == [0]
    assert knn_predict(bank, torch.tensor([0, 1, 1]), query, k=3, temperature=100.0).tolist() == [1]


def test_a_small_temperature_does_not_overflow():
    bank = torch.eye(2)
    assert knn_predict(bank, torch.tensor([3, 4]), bank, k=2, temperature=1e-3).tolist() == [3, 4]


def test_equal_votes_go_to_the_nearer_row_and_then_the_lower():
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert knn_predict(bank, torch.tensor([9, 2]), bank[:1], k=2).tolist() == [9]


def test_k_above_the_bank_is_clipped():
    bank = torch.eye(3)
    assert knn_predict(bank, torch.tensor([0, 1, -1]), bank[:2], k=10**6).tolist() == [0, 1]


def test_trap_5_6_classes_come_from_the_bank_and_not_from_the_test_labels():
    """The bank's class 7 is above every test label, and no test item is of class 0."""
    bank = torch.eye(3)
    labels = torch.tensor([0, 7, 2])
    assert knn_correct(bank, labels, bank, torch.tensor([2, 2, 2]), k=1).tolist() == [0.0, 0.0, 1.0]


def test_trap_5_6_a_test_class_that_the_bank_lacks_counts_as_wrong():
    bank = torch.eye(2)
    right = knn_correct(bank, torch.tensor([0, 1]), bank, torch.tensor([0, 900]), k=1)
    assert right.tolist() == [1.0, 0.0]


def test_trap_5_6_memory_is_bounded_by_k_and_not_by_classes_or_the_bank(monkeypatch):
    """With labels up to 2**40 a one-hot matrix couldn't exist; and blocks give the same votes."""
    generator = torch.Generator().manual_seed(0)
    bank, labels = (
        torch.randn(300, 4, generator=generator),
        torch.randint(0, 2**40, (300,), generator=generator),
    )
    labels[100:] = labels[torch.randint(0, 100, (200,), generator=generator)]
    queries = torch.randn(50, 4, generator=generator)
    whole = knn_predict(bank, labels, queries, k=20)
    monkeypatch.setattr(knn_module, "VOTE_ELEMENTS", 3 * 30)
    assert torch.equal(knn_predict(bank, labels, queries, k=20), whole)
    largest = []
    votes_of = knn_module._votes

    def watched(scores, members, temperature, *counted):
        found = votes_of(scores, members, temperature, *counted)
        largest.append((scores.numel(), found[1].numel()))
        return found

    monkeypatch.setattr(knn_module, "_votes", watched)
    knn_predict(bank, labels, queries, k=20)
    assert len(largest) >= 17
    assert max(max(pair) for pair in largest) == 3 * 30


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(1, 30),
    classes=st.sampled_from([2, 5, 60]),
    temperature=st.sampled_from([1e-7, 1e-4, 0.1, 10.0]),
    steps=st.sampled_from([1, 3, 10**6]),
)
def test_rough_scores_give_the_votes_of_exact_ones(seed, k, classes, temperature, steps):
    """Rows on a coarse grid have many copies and ties, also at rank k; labels differ between copies."""
    draw = torch.Generator().manual_seed(seed)
    bank = (torch.randn(60, 3, generator=draw) * steps).round() + 0.01
    queries = (torch.randn(12, 3, generator=draw) * steps).round() + 0.01
    labels = torch.randint(0, classes, (60,), generator=draw)
    scores, index = knn_module.nearest(queries, bank, k)
    exact = knn_module._elect(scores, labels[index], temperature)
    assert torch.equal(knn_predict(bank, labels, queries, k=k, temperature=temperature), exact)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(1, 40),
    classes=st.sampled_from([2, 5, 60]),
    temperature=st.sampled_from([1e-4, 0.1, 10.0]),
    spread=st.sampled_from([1.0, 1e-2, 1e-4]),
)
def test_rounded_scores_give_the_votes_of_exact_ones(seed, k, classes, temperature, spread):
    """bfloat16 proposes and float32 settles; rows closer than either tells."""
    draw = torch.Generator().manual_seed(seed)
    centre = torch.randn(1, 6, generator=draw)
    bank = centre + spread * torch.randn(200, 6, generator=draw)
    queries = centre + spread * torch.randn(15, 6, generator=draw)
    labels = torch.randint(0, classes, (200,), generator=draw)
    scores, index = knn_module.nearest(queries, bank, k)
    exact = knn_module._elect(scores, labels[index], temperature)
    found, settled = knn_module._elected(queries, bank, labels, k, temperature, torch.bfloat16)
    assert torch.equal(found, exact)
    assert 0.0 <= settled <= 1.0


@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e20])
def test_votes_left_open_are_counted_by_float32_scores_of_the_same_rows(magnitude, monkeypatch):
    """Without a product in float32; rows that differ by less than bfloat16 tells, and a sample of them."""
    monkeypatch.setattr("querykey.lookup.nearest.SAMPLED", 512)
    monkeypatch.setattr("querykey.lookup.nearest.SAMPLE", 128)
    draw = torch.Generator().manual_seed(0)
    bank = 3 * torch.randn(1, 16, generator=draw) + torch.randn(2000, 16, generator=draw)
    labels = torch.randint(0, 3, (2000,), generator=draw)
    queries = bank[:300] + 0.3 * torch.randn(300, 16, generator=draw)
    scores, index = knn_module.nearest(queries, bank, 50)
    exact = knn_module._elect(scores, labels[index], 0.1)
    found, settled = knn_module._elected(queries, magnitude * bank, labels, 50, 0.1, torch.bfloat16)
    assert torch.equal(found, exact)
    assert settled > 0.9
    monkeypatch.setattr(knn_module, "_scored_again", lambda _queries, _bank, scores, index: (scores, index))
    _, by_rounded = knn_module._elected(queries, magnitude * bank, labels, 50, 0.1, torch.bfloat16)
    assert by_rounded < settled


def test_a_row_that_is_not_listed_leaves_the_vote_open():
    """Its score may be above the last place, where the floor is."""
    scores, members = torch.tensor([[1.0, 0.9, 0.8]]), torch.tensor([[0, 0, 1]])
    error = torch.tensor([1e-6])
    for floor, want in ((0.7, True), (0.95, False)):
        _, is_sure = knn_module._elect_roughly(scores, members, 2, 0.1, error, torch.tensor([floor]))
        assert bool(is_sure) == want
    scores[0, 1:] = -torch.inf  # only one was found
    _, is_sure = knn_module._elect_roughly(scores, members, 2, 0.1, error, torch.tensor([-torch.inf]))
    assert not is_sure


def test_rounded_scores_settle_clear_votes():
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 32, generator=draw)
    labels = torch.randint(0, 4, (600,), generator=draw)
    rows = centres[labels] + 0.5 * torch.randn(600, 32, generator=draw)
    found, settled = knn_module._elected(rows[:300], rows[300:], labels[300:], 30, 0.1, torch.bfloat16)
    assert settled > 0.9
    assert torch.equal(found, labels[:300])


def test_only_uncertain_votes_are_scored_again(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(500, 8, generator=draw), torch.randn(100, 8, generator=draw)
    labels = (bank[:, 0] > 0).long()
    settled = []
    exact = knn_module.nearest
    monkeypatch.setattr(knn_module, "nearest", lambda q, *rest: settled.append(len(q)) or exact(q, *rest))
    knn_predict(bank, labels, queries, k=20)
    assert sum(settled) < 10
    settled.clear()
    knn_predict(torch.ones(500, 8), labels, queries, k=20)  # every row ties with every other
    assert sum(settled) == 100


@pytest.mark.parametrize("share", [0.0, 0.9, 1.1])
def test_a_vote_is_uncertain_if_rounding_could_change_it(share):
    """Two classes whose votes differ by a little more, or less, than two scores' rounding."""
    error = torch.tensor([4e-6])
    scores = torch.tensor([[1.0, 1.0 - share * 2 * 4e-6, 0.5]])
    members = torch.tensor([[0, 1, 1]])
    _, is_sure = knn_module._elect_roughly(scores, members, 2, 0.01, error, scores[:, -1])
    assert bool(is_sure) == (share > 1)
    _, is_sure = knn_module._elect_roughly(scores, members * 0, 1, 0.01, error, scores[:, -1])
    assert bool(is_sure) == (share > 1)


def test_a_query_of_unknown_class_is_nan():
    bank = torch.eye(2)
    right = knn_correct(bank, torch.tensor([0, 1]), bank, torch.tensor([-1, 1]), k=1)
    assert right.isnan().tolist() == [True, False]


def test_no_queries_give_no_predictions():
    assert knn_predict(torch.eye(2), torch.tensor([0, 1]), torch.empty(0, 2)).tolist() == []


def test_bad_input_is_one_message():
    bank, labels = torch.eye(2), torch.tensor([0, 1])
    with pytest.raises(RangeError, match="got 0 and"):
        knn_predict(bank, labels, bank, k=0)
    with pytest.raises(RangeError, match="got 10 and 0"):
        knn_predict(bank, labels, bank, temperature=0.0)
    with pytest.raises(DataError, match="no row of the bank is labelled"):
        knn_predict(bank, torch.tensor([-1, -1]), bank)
    with pytest.raises(ShapeError, match="2 rows and 3 labels"):
        knn_predict(bank, torch.tensor([0, 1, 2]), bank)
    with pytest.raises(ShapeError, match="2 queries and 1 labels"):
        knn_correct(bank, labels, bank, torch.tensor([0]))
