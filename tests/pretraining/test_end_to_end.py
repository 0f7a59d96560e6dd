"""Gradient into the encoder of the queries and into that of the keys."""

import copy

import pytest
import torch
from oracles import end_to_end_steps
from step_toys import end_to_end
from torch import nn

from querykey.encoders.norm.batchnorm import convert_batch_norm
from querykey.errors import CollapseError, ConfigError, ShapeError
from querykey.losses import LearnedTemperature, info_nce

TEMPERATURE, RATE = 0.3, 0.5
IDS = torch.tensor([[4, 7, 2, 4, 9]]).repeat(5, 1) + torch.arange(5)[:, None]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss(lookup):
    return info_nce(lookup, temperature=TEMPERATURE)


def linear(weight):
    layer = nn.Linear(*reversed(weight.shape), bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def stepped(query_encoder, key_encoder, views, *, lr=RATE, ids=None, **options):
    both = {id(weight): weight for one in (query_encoder, key_encoder) for weight in one.parameters()}
    optimizer = torch.optim.SGD(both.values(), lr=lr)
    ids = torch.arange(len(views[0])) if ids is None else ids
    return end_to_end(query_encoder, key_encoder, optimizer, views, ids=ids, **{"loss": loss} | options)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("is_shared", [False, True])
def test_five_steps_are_those_of_plain_loops(symmetric, is_shared):
    width = 3 if is_shared else 2
    weights = drawn(4, 3 if is_shared else 5)
    queries, keys = drawn(5, 5, 3, seed=1), drawn(5, 5, width, seed=2)
    query_encoder = linear(weights[:, :3])
    key_encoder = query_encoder if is_shared else linear(weights[:, 3:])
    batches = [(x.tolist(), y.tolist(), i.tolist()) for x, y, i in zip(queries, keys, IDS, strict=True)]
    costs, expected = end_to_end_steps(
        weights.tolist(), batches, symmetric=symmetric, temperature=TEMPERATURE, lr=RATE
    )
    steps = [
        stepped(query_encoder, key_encoder, (x, y), ids=i, symmetric=symmetric)
        for x, y, i in zip(queries, keys, IDS, strict=True)
    ]
    assert [step.loss for step in steps] == pytest.approx(costs, rel=1e-6)
    found = (
        query_encoder.weight if is_shared else torch.cat([query_encoder.weight, key_encoder.weight], dim=1)
    )
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def test_a_repeated_item_is_no_negative_of_itself():
    shown = []
    stepped(
        linear(torch.eye(3)), linear(torch.eye(3)), (drawn(3, 3), drawn(3, 3, seed=1)),
        ids=torch.tensor([5, 6, 5]), symmetric=True, on_lookup=shown.append,
    )  # fmt: skip
    assert len(shown) == 2
    for lookup in shown:
        assert lookup.positive.int().tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
        assert torch.equal(lookup.negative, ~lookup.positive)
        assert not lookup.queries.requires_grad
    assert torch.equal(shown[0].queries, shown[1].keys)


def test_what_is_shown_is_from_before_the_step_and_what_is_left_is_what_was_looked_up():
    query_encoder, key_encoder, views = (
        linear(drawn(2, 3)),
        linear(drawn(2, 3, seed=1)),
        (drawn(4, 3), drawn(4, 3, seed=2)),
    )
    q, k = (
        nn.functional.normalize(one(view).detach(), dim=1)
        for one, view in zip((query_encoder, key_encoder), views, strict=True)
    )
    step = stepped(query_encoder, key_encoder, views)
    assert torch.equal(step.view_1, q)
    assert torch.equal(step.view_2, k)


def convolved(norm="device", **options):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    return convert_batch_norm(nn.Sequential(inner, nn.Flatten()), norm, **options).double()


def gradients(encoder):
    return [weight.grad.clone() for weight in encoder.parameters()]


def test_a_permutation_changes_nothing_over_the_whole_batch_and_the_groups_of_split():
    views = tuple(drawn(2, 8, 1, 5, 5, seed=3))
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    plain, shuffled = convolved(), convolved()
    one = stepped(plain, plain, views, lr=0.0)
    other = stepped(shuffled, shuffled, views, lr=0.0, permutation=order)
    torch.testing.assert_close(gradients(plain), gradients(shuffled))
    assert one.loss == pytest.approx(other.loss)
    split = convolved("split", groups=2)
    found = stepped(split, split, views, lr=0.0, permutation=order).view_2
    halves = [convolved()(views[1][[0, 4, 1, 5]]), convolved()(views[1][[2, 6, 3, 7]])]
    expected = nn.functional.normalize(torch.cat(halves)[order.argsort()], dim=1)
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize("is_shared", [False, True])
def test_checkpointing_gives_the_same_gradients_and_buffers(is_shared):
    views = tuple(drawn(2, 6, 1, 5, 5, seed=3))
    kept = []
    for checkpointing in (False, True):
        query_encoder = convolved()
        key_encoder = query_encoder if is_shared else convolved()
        stepped(query_encoder, key_encoder, views, lr=0.0, checkpointing=checkpointing)
        kept.append((gradients(query_encoder), gradients(key_encoder), dict(query_encoder.named_buffers())))
    torch.testing.assert_close(kept[0], kept[1])
    assert kept[0][2]["0.1.num_batches_tracked"] == 1 + is_shared


class WithEmbedding(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, rows):
        return torch.full((len(rows), 7), torch.nan), self.inner(rows)


def test_an_encoder_may_give_its_embedding_too_and_take_what_it_likes():
    words = {"tokens": torch.tensor([[0, 1], [2, 3], [4, 0]])}

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = nn.EmbeddingBag(5, 2).double()

        def forward(self, rows):
            return self.bag(rows["tokens"])

    image, text = linear(drawn(2, 3)), Bag()
    alone = stepped(copy.deepcopy(image), copy.deepcopy(text), (drawn(3, 3), words), symmetric=True)
    both = stepped(WithEmbedding(image), text, (drawn(3, 3), words), symmetric=True)
    assert alone.loss == both.loss
    assert text.bag.weight.grad.abs().sum() > 0


def test_a_learned_temperature_is_learned():
    temperature = LearnedTemperature(initial=0.5)
    encoder, keys = linear(drawn(2, 3)), linear(drawn(2, 3, seed=1))
    weights = [*encoder.parameters(), *keys.parameters(), *temperature.parameters()]
    end_to_end(
        encoder, keys, torch.optim.SGD(weights, lr=0.1), (drawn(4, 3), drawn(4, 3, seed=2)),
        ids=torch.arange(4), loss=lambda lookup: info_nce(lookup, temperature=temperature()), symmetric=True,
    )  # fmt: skip
    assert float(temperature().detach()) != pytest.approx(0.5, rel=1e-4)


def test_what_is_refused_leaves_the_weights():
    encoder = linear(drawn(2, 3))
    before = encoder.weight.detach().clone()
    views = (drawn(4, 3), drawn(4, 3, seed=1))
    with pytest.raises(ConfigError, match="a step with two encoders takes its batch whole, got chunks=2"):
        stepped(encoder, encoder, views, chunks=2)
    with pytest.raises(ShapeError, match=r"queries are \[4, 2\], keys \[4, 3\] and ids \[4\]; row i of all"):
        stepped(encoder, linear(torch.eye(3)), views)
    with pytest.raises(ShapeError, match=r"ids \[3\]"):
        stepped(encoder, encoder, views, ids=torch.arange(3))
    with pytest.raises(CollapseError, match="the loss is nan"):
        stepped(encoder, encoder, (views[0] * torch.nan, views[1]))
    assert torch.equal(encoder.weight, before)
