"""What a pretraining run shows of itself."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from querykey.diagnostics import collapse as monitor_module
from querykey.diagnostics.collapse import check_collapse, mean_cosine, monitor, pretext_accuracy
from querykey.errors import DataError, ShapeError
from querykey.evaluation.geometry import alignment, effective_rank, uniformity


def rows(count=40, dim=6, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def pretext_by_hand(z_1, z_2):
    every = z_1.tolist() + z_2.tolist()
    solved = 0
    for i, row in enumerate(every):
        other = (i + len(z_1)) % len(every)
        rest = [cosine(row, every[k]) for k in range(len(every)) if k not in (i, other)]
        solved += cosine(row, every[other]) > max(rest)
    return solved / len(every)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), pairs=st.integers(2, 12), noise=st.sampled_from([0.0, 0.3, 1.0, 3.0]))
def test_pretext_is_that_of_the_loops_in_blocks_of_any_size(seed, pairs, noise):
    z_1 = rows(pairs, 3, seed)
    z_2 = (z_1 + noise * rows(pairs, 3, seed + 1)) * 2
    by_hand = pretext_by_hand(z_1.double(), z_2.double())
    assert pretext_accuracy(z_1, z_2) == pytest.approx(by_hand)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor_module, "SCORE_ELEMENTS", 3 * 2 * pairs)
        assert pretext_accuracy(z_1, z_2) == pytest.approx(by_hand)
    assert pretext_accuracy(z_2, z_1) == pretext_accuracy(z_1, z_2)


def test_collapsed_rows_have_accuracy_0_and_equal_views_1():
    assert pretext_accuracy(torch.ones(8, 4), torch.ones(8, 4)) == 0.0
    assert pretext_accuracy(torch.eye(8), torch.eye(8)) == 1.0
    assert pretext_accuracy(torch.eye(8), torch.eye(8).roll(1, 0)) == 0.0


def test_scores_are_held_a_block_at_a_time(monkeypatch):
    monkeypatch.setattr(monitor_module, "SCORE_ELEMENTS", 1)
    assert pretext_accuracy(torch.eye(5), torch.eye(5)) == 1.0


def test_mean_cosine_is_that_of_all_pairs():
    items = rows(9).tolist()
    pairs = [cosine(items[i], items[j]) for i in range(9) for j in range(9) if i != j]
    assert mean_cosine(rows(9)) == pytest.approx(sum(pairs) / len(pairs))
    assert mean_cosine(torch.ones(5, 3)) == pytest.approx(1)
    assert mean_cosine(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(-1)


def test_monitor_gives_the_figures_of_their_own_functions():
    h, z_1 = rows(), rows(30, 5, 1)
    z_2 = z_1 + 0.3 * rows(30, 5, 2)
    seen = monitor(h, z_1, z_2, loss=2.5)
    assert seen["loss"] == 2.5
    assert seen["effective_rank_h"] == effective_rank(h)
    assert seen["effective_rank_z"] == effective_rank(torch.cat([z_1, z_2]), unit=True)
    assert seen["alignment"] == alignment(z_1, z_2)
    assert seen["uniformity"] == uniformity(z_1)
    assert seen["mean_cosine"] == mean_cosine(z_1)
    assert seen["pretext"] == pretext_accuracy(z_1, z_2)
    assert seen["width_z"] == 5
    assert "knn" not in seen


def test_knn_pins_what_it_depends_on_and_separates_classes():
    labels = torch.arange(80) % 4
    h = 3 * torch.eye(6)[labels] + 0.1 * rows(80)
    seen = monitor(h, h, h, labels=labels, loss=0.0)
    assert seen["knn"] == 1.0
    assert (seen["knn_k"], seen["knn_temperature"]) == (20, 0.1)
    assert (seen["knn_bank"], seen["knn_queries"]) == (60, 20)
    mixed = monitor(rows(80), h, h, labels=labels, loss=0.0)
    assert mixed["knn"] < 0.7
    assert mixed == monitor(rows(80), h, h, labels=labels, loss=0.0)


def test_knn_looks_among_labelled_rows_and_goes_where_there_are_none():
    labels = torch.arange(80) % 4
    h = 3 * torch.eye(6)[labels] + 0.1 * rows(80)
    some = labels.masked_fill(torch.arange(80) < 40, -1)
    seen = monitor(h, h, h, labels=some, loss=0.0)
    assert seen["knn_bank"] + seen["knn_queries"] == 40
    assert "knn" not in monitor(h, h, h, labels=torch.full((80,), -1), loss=0.0)
    assert "knn" not in monitor(h[:4], h, h, labels=labels[:4], loss=0.0)
    tiny = monitor(h[:8], h, h, labels=labels[:8], loss=0.0)
    assert tiny["knn_k"] == tiny["knn_bank"] == 4


def test_query_rows_can_be_selected():
    """Row 0 would find itself in the bank if it stood there too; unlabelled rows neither ask nor vote."""
    labels = torch.tensor([0, 1, 1, 0, -1, -1])
    h = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [1.0, 0.0], [0.0, 1.0]])
    seen = monitor(h, h, h, labels=labels, queries=torch.tensor([0, 2, 4]), loss=0.0)
    assert (seen["knn"], seen["knn_bank"], seen["knn_queries"], seen["knn_k"]) == (0.0, 2, 2, 2)
    swapped = labels[[1, 0, 3, 2, 4, 5]]
    assert monitor(h, h, h, labels=swapped, queries=torch.tensor([0, 2]), loss=0.0)["knn"] == 0.0
    alike = torch.tensor([0, 0, 1, 1, -1, -1])
    assert monitor(h, h, h, labels=alike, queries=torch.tensor([0, 2]), loss=0.0)["knn"] == 1.0
    assert "knn" not in monitor(h, h, h, labels=labels, queries=torch.tensor([4]), loss=0.0)
    assert "knn" not in monitor(h, h, h, labels=labels, queries=torch.arange(6), loss=0.0)


def test_rows_that_are_no_numbers_are_seen_and_not_raised():
    bad = rows().fill_(torch.nan)
    seen = monitor(bad, bad, rows(), labels=torch.arange(40) % 2, loss=1.0)
    assert math.isnan(seen["effective_rank_h"])
    assert math.isnan(seen["pretext"])
    assert "knn" not in seen
    assert "NaN or infinite" in check_collapse(seen)


def test_a_healthy_run_has_no_reason_to_stop():
    assert check_collapse(monitor(rows(), rows(), rows(), loss=1.0)) is None
    assert check_collapse(monitor(rows(), rows(40, 1), rows(40, 1), loss=1.0)) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_a_collapse(loss):
    assert f"the loss is {loss}" in check_collapse(monitor(rows(), rows(), rows(), loss=loss))


def test_rows_with_one_direction_are_a_collapse():
    near = torch.ones(40, 6) + 0.05 * rows()
    seen = monitor(rows(), near, near, loss=1.0)
    assert 0.99 < seen["mean_cosine"] < 0.9999
    assert "mean cosine" in check_collapse(seen)


def test_rows_of_rank_1_are_a_collapse():
    line = rows(40, 1) @ torch.ones(1, 6)
    seen = monitor(rows(), line, line, loss=1.0)
    assert seen["mean_cosine"] < 0.5
    assert "effective rank is 1.00" in check_collapse(seen)


def test_what_was_so_from_the_start_is_no_collapse_short_of_one_point():
    near = torch.ones(40, 6) + 0.05 * rows()
    start = monitor(rows(), near, near, loss=1.0)
    healthy = monitor(rows(), rows(), rows(), loss=1.0)
    assert check_collapse(start, start) is None
    assert check_collapse(start, healthy) is not None
    assert "1.0000" in check_collapse(monitor(rows(), torch.ones(9, 2), torch.ones(9, 2), loss=1.0), start)


def test_bad_input_is_one_message():
    with pytest.raises(ShapeError, match=r"\(3, 6\) and \(4, 6\)"):
        pretext_accuracy(rows(3), rows(4))
    with pytest.raises(DataError, match="at least 2 pairs of views, got 1"):
        monitor(rows(), rows(1), rows(1), loss=1.0)
    with pytest.raises(DataError, match="at least 2 rows, got 1"):
        mean_cosine(rows(1))


def test_rows_of_an_adapter_are_compared_with_those_before_training():
    start = {"effective_rank": 9.0}
    assert check_collapse({"loss": math.nan, "effective_rank": 8.0}, start) == (
        "the loss is nan; lower the learning rate"
    )
    assert "effective rank 1.2, 9.0 before training" in check_collapse(
        {"loss": 1.0, "effective_rank": 1.2}, start
    )
    assert "effective rank 1.9, 20.0" in check_collapse(
        {"loss": 1.0, "effective_rank": 1.9}, {"effective_rank": 20.0}
    )
    assert check_collapse({"loss": 1.0, "effective_rank": 6.0}, start) is None
    assert check_collapse({"loss": 1.0, "effective_rank": 1.2}, {"effective_rank": 2.0}) is None
