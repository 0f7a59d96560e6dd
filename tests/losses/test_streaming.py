"""Losses in blocks: value, gradients and memory, beside the dense form."""

import inspect

import pytest
import torch
from streaming_toys import Held, rows
from torch.nn import functional as F

from querykey.errors import ConfigError
from querykey.lookup import DensePairs, Lookup, PairRule, look_up
from querykey.losses import (
    decoupled,
    info_nce,
    is_chunked,
    score_distillation,
    streaming,
    streaming_blocks,
)
from querykey.losses.streaming import takes_chunked


@pytest.fixture(
    params=[(1, 1, 50), (3, 4, 0), (3, 4, 50), (100, 100, 50)], ids="{0[0]} x {0[1]}, {0[2]}".format
)
def _blocks(request, monkeypatch):
    *size, few = request.param
    of(monkeypatch, *size)
    monkeypatch.setattr(streaming_blocks, "FEW", few)  # 0: positives are always taken one by one


def of(monkeypatch, rows, keys):
    monkeypatch.setattr(streaming_blocks, "ROWS", rows)
    monkeypatch.setattr(streaming_blocks, "KEYS", keys)


def masks(queries, keys, *, seed=0):
    """Any pairs; query 0 has no pair, query 1 no positive, query 2 no negative."""
    kinds = torch.randint(3, (queries, keys), generator=torch.Generator().manual_seed(seed))
    kinds[0] = 0
    kinds[1].clamp_(max=1)
    kinds[2][kinds[2] == 1] = 0
    return DensePairs(kinds == 2, kinds == 1)


def distilled(lookup, **options):
    """Of other scores, of rows that are wider."""
    queries, keys = rows(len(lookup), seed=8, dim=6), rows(len(lookup.keys), seed=9, dim=6)
    target = Lookup(queries * 2, keys, lookup.pairs, lookup.score)
    return score_distillation(lookup, target, target_temperature=0.15, **options)


def weighted(lookup, **options):
    return decoupled(lookup, sigma=0.5, **options)


LOSSES = pytest.mark.parametrize("loss", [info_nce, decoupled, weighted, distilled])


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("score", ["dot", "cosine"])
@LOSSES
def test_gives_the_value_and_the_gradients_of_the_plain_form(loss, score):
    """Of queries, of keys and of a learned temperature, in float64, each query weighed differently."""
    pairs, out = masks(8, 11), []
    for form in ("dense", "chunked"):
        leaves = rows(8) * 1.5, rows(11, seed=1) * 0.7, torch.tensor(0.2, dtype=torch.float64)
        queries, keys, temperature = (leaf.requires_grad_() for leaf in leaves)
        value = loss(Lookup(queries, keys, pairs, score), temperature=temperature, form=form)
        (value * torch.arange(1, 9)).sum().backward()
        out.append([value.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(out[1], out[0], rtol=1e-12, atol=1e-12)
    assert out[1][0][0] == 0.0
    assert not out[1][1][0].any()


@pytest.mark.parametrize("loss", [info_nce, decoupled, distilled])
def test_gradient_is_the_derivative(loss, monkeypatch):
    """The weights of the weighted form carry none; it is held to its dense form alone."""
    of(monkeypatch, 3, 2)
    pairs, temperature = masks(5, 7, seed=1), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    leaves = rows(5).requires_grad_(), rows(7, seed=1).requires_grad_(), temperature
    assert torch.autograd.gradcheck(
        lambda q, k, t: loss(Lookup(q, k, pairs, "cosine"), temperature=t, form="chunked"), leaves
    )


@pytest.mark.parametrize("moves", [(True, False), (False, True), (False, False)])
@LOSSES
def test_tensors_that_require_no_gradient_get_none(loss, moves, monkeypatch):
    of(monkeypatch, 3, 4)
    queries, keys = rows(8).requires_grad_(moves[0]), rows(11, seed=1).requires_grad_(moves[1])
    lookup = Lookup(queries, keys, masks(8, 11))
    chunked, dense = (loss(lookup, temperature=0.1, form=form) for form in ("chunked", "dense"))
    assert chunked.requires_grad == any(moves)
    torch.testing.assert_close(chunked, dense)
    for leaf, does_move in zip((queries, keys), moves, strict=True):
        if does_move:
            ours, theirs = (torch.autograd.grad(cost.sum(), leaf)[0] for cost in (chunked, dense))
            torch.testing.assert_close(ours, theirs)


def a_bank_of(items, queries, dtype, dim=32):
    """Queries near their own item in a bank, some of them very near."""
    keys = rows(items, seed=3, dim=dim)
    near = F.normalize(
        keys[:queries] + torch.linspace(0, 0.4, queries)[:, None] * rows(queries, seed=4, dim=dim)
    )
    return look_up(
        near.to(dtype).requires_grad_(), keys.to(dtype), query_ids=torch.arange(queries),
        key_ids=torch.arange(items), rule=PairRule(same_id="positive"),
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("loss", [info_nce, decoupled, distilled])
def test_float32_is_no_further_from_float64_than_the_plain_form(loss, temperature, monkeypatch):
    """Root mean square over the queries; twice, for the order of a sum is a matter of luck."""
    of(monkeypatch, 40, 256)
    found = []
    for form, dtype in (("dense", torch.float64), ("dense", torch.float32), ("chunked", torch.float32)):
        lookup = a_bank_of(4000, 64, dtype)
        value = loss(lookup, temperature=temperature, form=form)
        value.sum().backward()
        found.append((value.detach().double(), lookup.queries.grad.double()))
    exact, dense, chunked = found
    for right, theirs, ours in zip(exact, dense, chunked, strict=True):
        faults = [(one - right).square().mean().sqrt() for one in (ours, theirs)]
        assert faults[0] <= 2 * faults[1] + 1e-9


def test_a_loss_near_0_keeps_its_digits(monkeypatch):
    of(monkeypatch, 1, 1)
    keys = torch.eye(4)
    lookup = look_up(
        keys[:2], keys, query_ids=torch.arange(2), key_ids=torch.arange(4), rule=PairRule(same_id="positive")
    )
    cost = info_nce(lookup, temperature=0.07, form="chunked")
    assert cost[0].item() == pytest.approx(3 * 2.718281828 ** (-1 / 0.07), rel=0.1)


def test_a_higher_score_in_a_later_block_becomes_the_maximum(monkeypatch):
    """100 nats above all before: what was summed is nothing beside it."""
    of(monkeypatch, 1, 1)
    scores = torch.tensor([[-1.0, -1.0, -1.0, 1.0]], requires_grad=True)
    positive = torch.tensor([[True, False, False, False]])
    cost = info_nce(Lookup.from_scores(scores, positive, ~positive), temperature=0.02, form="chunked")
    assert cost.tolist() == [100.0]
    cost.sum().backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[-50.0, 0.0, 0.0, 50.0]]))


def test_a_higher_target_in_a_later_block_becomes_the_maximum(monkeypatch):
    """The same on the other side: what was pulled at before is nothing beside it."""
    of(monkeypatch, 1, 1)
    everything = torch.ones(1, 3, dtype=torch.bool)
    scores = torch.zeros(1, 3, requires_grad=True)
    target = Lookup.from_scores(torch.tensor([[-1.0, -0.9, 1.0]]), everything, ~everything)
    lookup = Lookup.from_scores(scores, everything, ~everything)
    cost = score_distillation(lookup, target, temperature=0.02, form="chunked")
    torch.testing.assert_close(cost, torch.tensor([3.0]).log())
    cost.sum().backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[1 / 3, 1 / 3, -2 / 3]]) / 0.02)


@LOSSES
def test_rows_in_half_precision_are_scored_in_float32(loss):
    """And keys of another dtype than the queries are taken as they are."""
    queries, keys = rows(8, dtype=torch.bfloat16), rows(11, seed=1, dtype=torch.bfloat16)
    pairs = masks(8, 11)
    exact = loss(Lookup(queries.double(), keys.double(), pairs), temperature=0.1, form="dense")
    for kept in (keys.requires_grad_(), keys.detach().float().requires_grad_()):
        leaf = queries.clone().requires_grad_()
        cost = loss(Lookup(leaf, kept, pairs), temperature=0.1, form="chunked")
        assert cost.dtype == torch.float32
        torch.testing.assert_close(cost.double(), exact, rtol=1e-5, atol=1e-5)
        cost.sum().backward()
        assert (leaf.grad.dtype, kept.grad.dtype) == (torch.bfloat16, kept.dtype)


def test_float32_keys_of_float64_queries_get_their_gradient():
    queries, keys = rows(8).requires_grad_(), rows(11, seed=1, dtype=torch.float32).requires_grad_()
    ours, theirs = (
        torch.autograd.grad(info_nce(lookup, temperature=0.1, form=form).sum(), keys)[0]
        for form in ("chunked", "dense")
        for lookup in [Lookup(queries, keys, masks(8, 11))]
    )
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs)


def test_autocast_does_not_reach_it():
    lookup = a_bank_of(50, 8, torch.float32)
    outside = info_nce(lookup, temperature=0.1, form="chunked")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce(lookup, temperature=0.1, form="chunked")
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("moves_keys", [False, True])
@LOSSES
def test_no_matrix_of_queries_by_keys_exists(loss, moves_keys, monkeypatch):
    """Neither of scores nor of masks, forward or backward, however many of either there are."""
    of(monkeypatch, 32, 100)
    found = a_bank_of(2000, 64, torch.float32, dim=4)
    lookup = Lookup(found.queries, found.keys.requires_grad_(moves_keys), found.pairs)
    with Held() as held:
        loss(lookup, temperature=0.1, form="chunked").sum().backward()
    of_keys, of_a_block = 2000 * 6 * 8, 32 * 100 * 8
    assert held.largest <= max(of_keys, of_a_block) < 64 * 2000


def test_keys_that_changed_before_backward_are_refused():
    """They are scored again backward, and must be what they were."""
    queries, keys = rows(8).requires_grad_(), rows(11, seed=1).requires_grad_()
    changing = keys * 1.0
    cost = info_nce(Lookup(queries, changing, masks(8, 11)), temperature=0.1, form="chunked")
    changing.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        cost.sum().backward()


def test_the_size_of_a_look_up_chooses_the_form(monkeypatch):
    """By itself it is dense where scores fit the cache, and never holds them where they do not."""
    monkeypatch.setattr(streaming, "CHUNKED_FROM", 100 * 100)
    for side in (99, 100):
        of(monkeypatch, 16, 16)
        lookup = a_bank_of(side, side, torch.float32, dim=2)
        with Held() as held:
            info_nce(lookup, temperature=0.1)
        assert (held.largest < 4 * side * side) == is_chunked(side, side) == (side == 100)


def test_a_form_that_is_not_known_is_refused():
    with pytest.raises(ConfigError) as error:
        # Unwrapped: the type checks that the test-suite turns on would speak first.
        inspect.unwrap(takes_chunked)(Lookup(rows(3), rows(4), masks(3, 4)), "tiled")
    assert str(error.value) == "form must be one of auto, dense, chunked; got 'tiled'"


@pytest.mark.parametrize(("old", "is_chunked"), [("plain", False), ("streamed", True)])
def test_the_names_of_version_0_1_warn_and_mean_the_same(old, is_chunked):
    lookup = Lookup(rows(3), rows(4), masks(3, 4))
    with pytest.warns(FutureWarning, match=f"form='{old}' is named '(dense|chunked)' now"):
        assert inspect.unwrap(takes_chunked)(lookup, old) == is_chunked
