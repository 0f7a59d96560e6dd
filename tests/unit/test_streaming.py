"""The streamed InfoNCE: value, gradients and memory, beside the plain form."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from querykey.errors import RangeError, ShapeError
from querykey.lookup import DensePairs, Lookup, PairRule, look_up
from querykey.losses import info_nce, streamed_info_nce, streaming
from querykey.two_views import look_up_views


@pytest.fixture(params=["one part", "three parts"])
def _parts(request, monkeypatch):
    if request.param == "three parts":
        monkeypatch.setattr(streaming, "ROWS", 3)


def rows(count, *, seed=0, dtype=torch.float64, dim=4):
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=random, dtype=torch.float64), dim=1).to(dtype)


def masks(queries, keys, *, seed=0):
    """Any pairs; query 0 has no pair, query 1 no positive, query 2 no negative."""
    kinds = torch.randint(3, (queries, keys), generator=torch.Generator().manual_seed(seed))
    kinds[0] = 0
    kinds[1].clamp_(max=1)
    kinds[2][kinds[2] == 1] = 0
    return DensePairs(kinds == 2, kinds == 1)


def both(lookup_of, leaves, *, block, temperature=0.1):
    """Value and gradients of the plain form, then of the streamed one, each query weighed differently."""
    out = []
    for loss, options in ((info_nce, {}), (streamed_info_nce, {"block": block})):
        copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        value = loss(
            lookup_of(*copies[:2]), temperature=copies[2] if len(copies) > 2 else temperature, **options
        )
        (value * torch.arange(1, 1 + len(value), dtype=value.dtype)).sum().backward()
        out.append([value.detach(), *(copy.grad for copy in copies)])
    return out


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize("block", [1, 4, 11, 100])
@pytest.mark.parametrize("score", ["dot", "cosine"])
def test_gives_the_value_and_the_gradients_of_the_plain_form(block, score):
    """Of queries, of keys and of a learned temperature, in float64."""
    pairs = masks(8, 11)
    leaves = rows(8) * 1.5, rows(11, seed=1) * 0.7, torch.tensor(0.2, dtype=torch.float64)
    plain, streamed = both(lambda q, k: Lookup(q, k, pairs, score), leaves, block=block)
    torch.testing.assert_close(streamed, plain, rtol=1e-12, atol=1e-12)
    assert streamed[0][:2].tolist() == [0.0, 0.0]
    assert not streamed[1][:2].any()


@pytest.mark.usefixtures("_parts")
def test_gradient_is_the_derivative():
    pairs = masks(5, 7, seed=1)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda q, k, t: streamed_info_nce(Lookup(q, k, pairs, "cosine"), temperature=t, block=3),
        (rows(5).requires_grad_(), rows(7, seed=1).requires_grad_(), temperature),
    )


@pytest.mark.usefixtures("_parts")
def test_two_views_are_queries_and_keys_at_once():
    """The gradient of NT-Xent reaches each row from both sides."""
    view_1, view_2 = (rows(6, seed=seed).requires_grad_() for seed in (0, 1))
    plain = info_nce(look_up_views(view_1, view_2), temperature=0.5)
    streamed = streamed_info_nce(look_up_views(view_1, view_2), temperature=0.5, block=5)
    torch.testing.assert_close(streamed, plain)
    for view in (view_1, view_2):
        ours, theirs = (
            torch.autograd.grad(cost.mean(), view, retain_graph=True)[0] for cost in (streamed, plain)
        )
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("moves", [(True, False), (False, True), (False, False)])
def test_what_carries_no_gradient_gets_none(moves):
    queries, keys = rows(8).requires_grad_(moves[0]), rows(11, seed=1).requires_grad_(moves[1])
    lookup = Lookup(queries, keys, masks(8, 11))
    streamed = streamed_info_nce(lookup, temperature=0.1, block=4)
    assert streamed.requires_grad == any(moves)
    torch.testing.assert_close(streamed, info_nce(lookup, temperature=0.1))
    for leaf, does_move in zip((queries, keys), moves, strict=True):
        if does_move:
            ours, theirs = (
                torch.autograd.grad(loss.sum(), leaf)[0]
                for loss in (
                    streamed_info_nce(lookup, temperature=0.1, block=4),
                    info_nce(Lookup(queries, keys, masks(8, 11)), temperature=0.1),
                )
            )
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
def test_float32_is_no_further_from_float64_than_the_plain_form(temperature):
    """Root mean square over the queries; twice, for the order of a sum is a matter of luck."""
    exact = info_nce(a_bank_of(4000, 64, torch.float64), temperature=temperature)
    found = a_bank_of(4000, 64, torch.float64)
    info_nce(found, temperature=temperature).sum().backward()
    faults = []
    for loss, options in ((info_nce, {}), (streamed_info_nce, {"block": 256})):
        lookup = a_bank_of(4000, 64, torch.float32)
        value = loss(lookup, temperature=temperature, **options)
        value.sum().backward()
        faults.append(
            [
                (value.double() - exact).square().mean().sqrt(),
                (lookup.queries.grad.double() - found.queries.grad).square().mean().sqrt(),
            ]
        )
    (value, slope), (streamed_value, streamed_slope) = faults
    assert streamed_value <= 2 * value + 1e-9
    assert streamed_slope <= 2 * slope + 1e-9


def test_a_loss_near_0_keeps_its_digits():
    keys = torch.eye(4)
    lookup = look_up(
        keys[:2], keys, query_ids=torch.arange(2), key_ids=torch.arange(4), rule=PairRule(same_id="positive")
    )
    cost = streamed_info_nce(lookup, temperature=0.07, block=1)
    assert cost[0].item() == pytest.approx(3 * 2.718281828 ** (-1 / 0.07), rel=0.1)


def test_a_higher_score_far_down_the_walk_takes_over():
    """100 nats above all before: what was summed is nothing beside it."""
    scores = torch.tensor([[-1.0, -1.0, -1.0, 1.0]], requires_grad=True)
    positive = torch.tensor([[True, False, False, False]])
    cost = streamed_info_nce(Lookup.from_scores(scores, positive, ~positive), temperature=0.02, block=1)
    assert cost.tolist() == [100.0]
    cost.sum().backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[-50.0, 0.0, 0.0, 50.0]]))


def test_rows_in_half_precision_are_scored_in_float32():
    """And keys of another dtype than the queries are taken as they are."""
    queries, keys = rows(8, dtype=torch.bfloat16), rows(11, seed=1, dtype=torch.bfloat16)
    pairs = masks(8, 11)
    exact = info_nce(Lookup(queries.double(), keys.double(), pairs), temperature=0.1)
    for kept in (keys.requires_grad_(), keys.detach().float().requires_grad_()):
        leaf = queries.clone().requires_grad_()
        cost = streamed_info_nce(Lookup(leaf, kept, pairs), temperature=0.1, block=4)
        assert cost.dtype == torch.float32
        torch.testing.assert_close(cost.double(), exact, rtol=1e-5, atol=1e-5)
        cost.sum().backward()
        assert (leaf.grad.dtype, kept.grad.dtype) == (torch.bfloat16, kept.dtype)


def test_float32_keys_of_float64_queries_get_their_gradient():
    queries, keys = rows(8).requires_grad_(), rows(11, seed=1, dtype=torch.float32).requires_grad_()
    streamed_info_nce(Lookup(queries, keys, masks(8, 11)), temperature=0.1, block=4).sum().backward()
    ours, keys.grad = keys.grad, None
    info_nce(Lookup(queries, keys, masks(8, 11)), temperature=0.1).sum().backward()
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, keys.grad)


def test_autocast_does_not_reach_it():
    lookup = a_bank_of(50, 8, torch.float32)
    outside = streamed_info_nce(lookup, temperature=0.1, block=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = streamed_info_nce(lookup, temperature=0.1, block=16)
    assert torch.equal(inside, outside)


class Held(TorchDispatchMode):
    """The bytes of the largest tensor that any operation gave."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel() * tensor.element_size())
        return out


@pytest.mark.parametrize("moves_keys", [False, True])
def test_no_matrix_of_queries_by_keys_exists(moves_keys, monkeypatch):
    """Neither of scores nor of masks, forward or backward, however many of either there are."""
    monkeypatch.setattr(streaming, "ROWS", 32)
    largest = []
    for items in (1000, 2000):
        found = a_bank_of(items, 64, torch.float32, dim=4)
        lookup = Lookup(found.queries, found.keys.requires_grad_(moves_keys), found.pairs)
        with Held() as held:
            streamed_info_nce(lookup, temperature=0.1, block=100).sum().backward()
        largest.append(held.largest)
    of_keys, of_a_block = 2000 * 4 * 4, 32 * 100 * 8
    assert largest[1] <= max(of_keys, of_a_block)
    assert largest[1] < 64 * 2000


def test_keys_that_changed_before_backward_are_refused():
    """They are scored again backward, and must be what they were."""
    queries, keys = rows(8).requires_grad_(), rows(11, seed=1).requires_grad_()
    changing = keys * 1.0
    cost = streamed_info_nce(Lookup(queries, changing, masks(8, 11)), temperature=0.1, block=4)
    changing.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        cost.sum().backward()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"block": 0}, RangeError, "a block needs at least 1 key, got block=0"),
        (
            {"temperature": 0.0},
            RangeError,
            "temperature must be > 0 and finite, got 0.0; 0.05 to 0.5 is usual",
        ),
        (
            {"temperature": torch.ones(2)},
            ShapeError,
            "temperature has shape [2]; a learned one is a tensor of one number",
        ),
    ],
)
def test_refuses_settings_out_of_range(options, error, message):
    with pytest.raises(error) as fault:
        streamed_info_nce(
            Lookup(rows(3), rows(4), masks(3, 4)), **({"temperature": 0.1, "block": 2} | options)
        )
    assert str(fault.value) == message
