"""The exact nearest keys: the same list whatever the block and the ties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from querykey.errors import RangeError
from querykey.lookup import nearest as module
from querykey.lookup.nearest import nearest, rough_cosines


def by_hand(queries, keys, k, query_ids=None, key_ids=None):
    """Every score in float64, sorted by (-score, index)."""
    q, x = (torch.nn.functional.normalize(t.double(), dim=1) for t in (queries, keys))
    lists = []
    for i, row in enumerate((q @ x.T).float().tolist()):
        allowed = [j for j in range(len(row)) if key_ids is None or key_ids[j] != query_ids[i]]
        best = sorted(allowed, key=lambda j: (-row[j], j))[:k]
        lists.append(best + [-1] * (k - len(best)))
    return lists


@pytest.mark.parametrize("key_block", [3, 7, 4096])
def test_equals_the_sorted_list(key_block, monkeypatch):
    monkeypatch.setattr(module, "KEY_BLOCK", key_block)
    monkeypatch.setattr(module, "QUERY_BLOCK", 5)
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(13, 8, generator=generator), torch.randn(101, 8, generator=generator)
    assert nearest(queries, keys, 6)[1].tolist() == by_hand(queries, keys, 6)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 12))
def test_ties_go_to_the_lower_index_even_where_everything_ties(directions, k):
    """Four directions only: nearly every key has many exact copies, more than the slack."""
    keys = torch.eye(4)[torch.tensor(directions)]
    assert nearest(keys[:3], keys, k)[1].tolist() == by_hand(keys[:3], keys, k)


def test_every_copy_of_the_own_item_is_left_out():
    generator = torch.Generator().manual_seed(1)
    keys, ids = torch.randn(30, 4, generator=generator), torch.arange(30) // 3
    found = nearest(keys, keys, 5, query_ids=ids, key_ids=ids)[1]
    assert found.tolist() == by_hand(keys, keys, 5, ids.tolist(), ids.tolist())
    assert not (ids[found] == ids[:, None]).any()


def test_fewer_keys_than_k_are_padded():
    scores, index = nearest(
        torch.ones(1, 2), torch.ones(2, 2), 4, query_ids=torch.tensor([0]), key_ids=torch.tensor([0, 1])
    )
    assert index.tolist() == [[1, -1, -1, -1]]
    assert scores[0, 1:].tolist() == [-torch.inf] * 3


def test_dot_does_not_scale_rows():
    keys = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    assert nearest(torch.tensor([[1.0, 0.0]]), keys, 1, score="dot")[1].item() == 1
    assert nearest(torch.tensor([[1.0, 0.0]]), keys, 1, score="cosine")[1].item() == 0


def test_half_precision_keys_are_scored_in_float32():
    keys = torch.tensor([[0.5, 0.1], [0.5, 0.2]], dtype=torch.float16)
    scores, index = nearest(torch.tensor([[1.0, 0.4]]), keys, 2)
    assert scores.dtype == torch.float32
    assert index.tolist() == [[1, 0]]


def test_k_below_one_is_refused():
    with pytest.raises(RangeError, match="k must be at least 1, got 0"):
        nearest(torch.ones(1, 2), torch.ones(1, 2), 0)


@pytest.mark.parametrize("key_block", [3, 4096])
def test_rough_cosines_are_the_best_ones_within_the_rounding(key_block, monkeypatch):
    monkeypatch.setattr(module, "KEY_BLOCK", key_block)
    monkeypatch.setattr(module, "QUERY_BLOCK", 70)
    generator = torch.Generator().manual_seed(0)
    queries, keys = 9 * torch.randn(13, 8, generator=generator), torch.randn(501, 8, generator=generator)
    scores, index, _error, _floor = rough_cosines(queries, keys, 6)
    assert index.tolist() == by_hand(queries, keys, 6)
    exact = torch.nn.functional.cosine_similarity(queries[:, None].double(), keys[index].double(), dim=2)
    assert (scores - exact).abs().max() < module.TIE
    everything = rough_cosines(queries, keys, 501)[0]
    assert (everything.diff(dim=1) <= 0).all()


def test_rough_cosines_refuse_a_count_above_the_number_of_keys():
    assert [len(part) for part in rough_cosines(torch.empty(0, 2), torch.eye(2), 1)] == [0, 0, 0, 0]
    for count in (0, 3):
        with pytest.raises(RangeError, match=f"from 1 to the 2 keys, got {count}"):
            rough_cosines(torch.ones(1, 2), torch.eye(2), count)


@pytest.fixture
def rounded(monkeypatch):
    """Products that propose are in bfloat16, whatever is faster here, and blocks are small."""
    monkeypatch.setattr(module, "fast_dtype", lambda: torch.bfloat16)
    monkeypatch.setattr(module, "MANY_QUERIES", 1)
    monkeypatch.setattr(module, "SAMPLE", 60)
    monkeypatch.setattr(module, "SAMPLED", 200)
    monkeypatch.setattr(module, "KEY_BLOCK", 64)
    monkeypatch.setattr(module, "QUERY_BLOCK", 5)


@pytest.mark.usefixtures("rounded")
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(1, 40),
    spread=st.sampled_from([1.0, 1e-2, 1e-3, 1e-5, 0.0]),
    score=st.sampled_from(["cosine", "dot"]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_proposals_give_the_exact_list_among_planted_near_ties(seed, k, spread, score, dtype):
    """Keys differ from each other by more, and by less, than bfloat16 and float32 can tell."""
    draw = torch.Generator().manual_seed(seed)
    centre = torch.randn(1, 12, generator=draw)
    keys = centre + spread * torch.randn(300, 12, generator=draw)
    queries = torch.cat([centre + 0.1 * torch.randn(9, 12, generator=draw), torch.zeros(1, 12)])
    # rows of length 1 are rounded to float32, so the truth is the sorted sum of their products
    every = torch.arange(300).expand(10, -1)
    exact = module.exact_scores(queries, keys, every, score).float()
    order = exact.sort(dim=1, descending=True, stable=True).indices[:, :k]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fast_dtype", lambda: dtype)
        assert nearest(queries, keys, k, score=score)[1].tolist() == order.tolist()


@pytest.mark.usefixtures("rounded")
@pytest.mark.parametrize("score", ["cosine", "dot"])
@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e19, 1e25])
def test_rounding_is_bounded_whatever_the_magnitude(magnitude, score):
    generator = torch.Generator().manual_seed(4)
    queries, keys = torch.randn(20, 16, generator=generator), torch.randn(400, 16, generator=generator)
    found = nearest(queries, keys, 7, score=score)[1]
    scaled = keys * magnitude if score == "dot" and magnitude == 1e19 else keys
    # a dot product of rows of 1e25 is beyond float32; their cosine is not
    queries = queries * (magnitude if score == "cosine" else 1.0)
    assert nearest(queries, scaled, 7, score=score)[1].tolist() == found.tolist()


@pytest.mark.parametrize("score", ["cosine", "dot"])
def test_the_bound_holds_for_every_proposal_and_for_all_that_is_left_out(score):
    """Lengths from 1/50 to 50, and rows whose rounding errors all point the same way."""
    draw = torch.Generator().manual_seed(2)
    queries, keys = torch.randn(40, 32, generator=draw), torch.randn(500, 32, generator=draw)
    queries[:20] = 1 + 2**-8 * 0.99  # bfloat16 takes the most from these
    keys[:100] = (1 + 2**-8 * 0.99) * torch.rand(100, 1, generator=draw)
    if score == "dot":
        keys = keys * torch.logspace(-1.7, 1.7, 500)[:, None]
    else:
        queries, keys = (torch.nn.functional.normalize(rows, dim=1) for rows in (queries, keys))
    scores, index, error, floor = module._propose(queries, keys, 30, score, torch.bfloat16)
    truth = queries.double() @ keys.double().T
    assert ((scores - truth.gather(1, index)).abs() <= error[:, None]).all()
    left_out = truth.scatter(1, index, -torch.inf).amax(dim=1)
    assert (left_out <= floor + error).all()
    assert (floor <= scores[:, -1]).all()
    assert (error < 0.02 * keys.norm(dim=1).max() * queries.norm(dim=1)).all()  # and it is of use


@pytest.mark.parametrize(
    ("row", "what"), [([1 + 2**-8 * 0.99] * 32, "the rows"), ([1.0, 2**-8, 1.0, 2**-8], "the score")]
)
def test_the_bound_is_reached_by_what_rounding_takes_from(row, what):
    """Opposite keys have no mean: all coordinates, or the score alone, lose as much as bfloat16 can take."""
    keys = torch.tensor([row, row])
    keys[1] *= -1
    queries = keys[:1] if what == "the rows" else torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    scores, index, error, _floor = module._propose(queries, keys, 1, "dot", torch.bfloat16)
    lost = (scores - (queries.double() @ keys.double().T).gather(1, index)).abs()
    assert index.item() == 0
    assert 0.6 * error < lost[:, 0] <= error


def test_where_rounding_settles_little_float32_proposes(monkeypatch, rounded):
    """Near-equal rows: the first block tells, and the others are not multiplied twice."""
    asked = []
    propose = module._propose
    monkeypatch.setattr(
        module,
        "_propose",
        lambda q, keys, count, score, dtype, own: (
            asked.append((len(q), dtype)) or propose(q, keys, count, score, dtype, own)
        ),
    )
    rows = torch.ones(300, 8) + 1e-4 * torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    nearest(rows[:50], rows, 3)
    assert asked == [(5, torch.bfloat16), (5, torch.float32), (45, torch.float32)]
    asked.clear()
    spread = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    nearest(spread[:50], spread, 3)
    assert [dtype for _, dtype in asked][-1] == torch.bfloat16 or asked[-1][0] < 20
