"""The steps of MoCo: against plain loops, and the order in which they do what they do."""

import copy
from functools import partial

import oracles
import pytest
import torch
from step_toys import moco, moco_v3
from torch import nn
from torch.nn import functional as F

from querykey.dictionaries.queue import KeyQueue
from querykey.encoders.backbones import make_backbone
from querykey.encoders.momentum import MomentumEncoder
from querykey.encoders.norm.batchnorm import convert_batch_norm
from querykey.encoders.projection import ProjectionHead, ViewEncoder
from querykey.errors import CollapseError, RangeError
from querykey.losses.info_nce import info_nce
from querykey.losses.temperature import LearnedTemperature

DIM, PIXELS, BATCH, CAPACITY = 3, 4, 3, 7
LOSS = partial(info_nce, temperature=0.2)
close = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-12)


class Linear(nn.Module):
    """Images to (h, z): h is the pixels."""

    def __init__(self, seed=0):
        super().__init__()
        self.weight = nn.Parameter(draw(DIM, PIXELS, seed=seed))

    def forward(self, images):
        h = images.flatten(1)
        return h, h @ self.weight.T


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(seed, count=BATCH):
    """Two views of some images, the second near the first; ids from so few that the queue has them too."""
    view_1 = draw(count, 1, 2, 2, seed=10 + seed)
    generator = torch.Generator().manual_seed(seed)
    return (view_1, view_1 + 0.3 * draw(count, 1, 2, 2, seed=50 + seed)), torch.randperm(
        5, generator=generator
    )[:count]


def as_lists(views, ids):
    return *(view.flatten(1).tolist() for view in views), ids.tolist()


def oldest_first(queue):
    held, cursor = queue.read(), queue._cursor if len(queue) == queue.capacity else 0
    return [torch.cat([part[cursor:], part[:cursor]]) for part in (held.vectors, held.ids)]


def parts(encoder, *, rate=0.3, capacity=CAPACITY, start="empty", dim=DIM, more=()):
    """Key encoder, optimiser, queue."""
    dtype = next(encoder.parameters()).dtype
    optimizer = torch.optim.SGD([*encoder.parameters(), *more], lr=rate)
    return MomentumEncoder(encoder), optimizer, KeyQueue(capacity=capacity, dim=dim, start=start).to(dtype)


@pytest.mark.parametrize("same_id", ["negative", "masked", "positive"])
@pytest.mark.parametrize("start", ["empty", "random"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("capacity", [CAPACITY, 2])
def test_five_steps_are_algorithm_1_in_plain_loops(same_id, start, symmetric, capacity):
    """Batches of 3, or 6 where it is symmetric, do not divide a queue of 7, or fit one of 2."""
    encoder = Linear()
    key_encoder, optimizer, queue = parts(encoder, start=start, capacity=capacity)
    batches = [batch(seed) for seed in range(5)]
    held = list(zip(*(part.tolist() for part in queue.read()[:2]), strict=True))
    wanted = oracles.moco(
        encoder.weight.tolist(), [as_lists(*one) for one in batches], held=held, capacity=capacity, rate=0.3,
        momentum=0.6, temperature=0.2, same_id=same_id, symmetric=symmetric,
    )  # fmt: skip
    queued = [{whose for _, whose in held_after} for *_, held_after in wanted]
    again = any(whose & set(ids.tolist()) for whose, (_, ids) in zip(queued, batches[1:], strict=False))
    assert again or capacity < BATCH
    for (views, ids), (loss, weights, key_weights, held_after) in zip(batches, wanted, strict=True):
        output = moco(
            encoder, key_encoder, optimizer, queue, views, ids=ids, loss=LOSS, momentum=0.6, same_id=same_id,
            symmetric=symmetric,
        )  # fmt: skip
        assert output.loss == pytest.approx(loss, rel=1e-11, abs=1e-12)
        close(encoder.weight.detach(), torch.tensor(weights, dtype=torch.float64))
        close(key_encoder.encoder.weight, torch.tensor(key_weights, dtype=torch.float64))
        vectors, whose = oldest_first(queue)
        close(vectors, torch.tensor([key for key, _ in held_after], dtype=torch.float64))
        assert whose.tolist() == [item for _, item in held_after]


def test_three_steps_of_v3_are_algorithm_1_in_plain_loops():
    encoder, predictor = Linear(), nn.Linear(DIM, DIM, bias=False).double()
    with torch.no_grad():
        predictor.weight.copy_(draw(DIM, DIM, seed=4))
    key_encoder, optimizer, _ = parts(encoder, more=predictor.parameters())
    batches = [
        (views, torch.tensor([3, 8, 3, 5])) for views, _ in (batch(seed, count=4) for seed in range(3))
    ]
    wanted = oracles.moco_v3(
        encoder.weight.tolist(), predictor.weight.tolist(), [as_lists(*one) for one in batches], rate=0.3,
        momentum=0.6, temperature=0.2,
    )  # fmt: skip
    for (views, ids), (loss, weights, predicting, key_weights) in zip(batches, wanted, strict=True):
        output = moco_v3(
            encoder,
            key_encoder,
            predictor,
            optimizer,
            views,
            ids=ids,
            loss=LOSS,
            momentum=0.6,
            temperature=0.2,
        )
        assert output.loss == pytest.approx(loss, rel=1e-11)
        close(encoder.weight.detach(), torch.tensor(weights, dtype=torch.float64))
        close(predictor.weight.detach(), torch.tensor(predicting, dtype=torch.float64))
        close(key_encoder.encoder.weight, torch.tensor(key_weights, dtype=torch.float64))


def test_the_first_step_from_an_empty_queue_changes_no_weight_and_fills_it():
    encoder = Linear()
    key_encoder, optimizer, queue = parts(encoder)
    before, (views, ids) = encoder.weight.detach().clone(), batch(0)
    output = moco(encoder, key_encoder, optimizer, queue, views, ids=ids, loss=LOSS, momentum=0.9)
    assert output.loss == 0
    assert torch.equal(encoder.weight, before)
    assert queue.read().ids.tolist() == ids.tolist()


@pytest.mark.parametrize("symmetric", [False, True])
def test_what_is_looked_up_is_the_old_queue(symmetric):
    """Shown once a direction, without gradient, before this step's keys are in."""
    encoder = Linear()
    key_encoder, optimizer, queue = parts(encoder)
    shown = []
    for seed in range(2):
        views, ids = batch(seed)
        before = queue.read().vectors.clone()
        rows = len(queue)
        output = moco(
            encoder, key_encoder, optimizer, queue, views, ids=ids, loss=LOSS, momentum=0.9,
            symmetric=symmetric, on_lookup=lambda lookup: shown.append((lookup, len(queue))),
        )  # fmt: skip
        assert len(shown) == 1 + symmetric
        for lookup, length in shown:
            assert length == rows
            assert not lookup.queries.requires_grad
            assert torch.equal(lookup.keys[BATCH:], before)
        assert torch.equal(shown[0][0].queries, output.view_1)
        assert torch.equal(shown[0][0].keys[:BATCH], output.view_2)
        shown.clear()
    assert len(queue) == min(CAPACITY, 2 * BATCH * (1 + symmetric))


def test_v3_shows_both_look_ups():
    encoder, shown = Linear(), []
    key_encoder, optimizer, _ = parts(encoder)
    views, ids = batch(0)
    predictor = nn.Identity()
    output = moco_v3(
        encoder, key_encoder, predictor, optimizer, views, ids=ids, loss=LOSS, momentum=1.0, temperature=0.2,
        on_lookup=shown.append,
    )  # fmt: skip
    weight = key_encoder.encoder.weight
    unit = [F.normalize(view.flatten(1) @ weight.T, dim=1) for view in views]
    close(output.view_1, unit[0])
    close(output.view_2, unit[1])
    close(shown[0].queries, unit[0])
    close(shown[0].keys, unit[1])
    close(shown[1].queries, unit[1])
    close(shown[1].keys, unit[0])
    assert all(torch.equal(one.positive, torch.eye(BATCH, dtype=torch.bool)) for one in shown)
    assert all(torch.equal(one.negative, ~one.positive) for one in shown)


def step(kind, encoder, key_encoder, predictor, optimizer, queue, views, ids, **options):
    given = {"ids": ids, "loss": LOSS, "momentum": 0.9} | options
    if kind == "v3":
        return moco_v3(encoder, key_encoder, predictor, optimizer, views, temperature=0.2, **given)
    if kind == "symmetric":
        given["symmetric"] = True
    return moco(encoder, key_encoder, optimizer, queue, views, **given)


each = pytest.mark.parametrize("kind", ["plain", "symmetric", "v3"])


@each
@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_the_key_encoder_follows_before_it_encodes(kind, momentum):
    """The weights that it follows are those from before the step."""
    encoder = Linear()
    key_encoder, optimizer, queue = parts(Linear(seed=1), start="random")
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.3)
    before, own = encoder.weight.detach().clone(), key_encoder.encoder.weight.clone()
    views, ids = batch(0)
    output = step(kind, encoder, key_encoder, nn.Identity(), optimizer, queue, views, ids, momentum=momentum)
    assert not torch.equal(encoder.weight, before)
    followed = momentum * own + (1 - momentum) * before
    close(key_encoder.encoder.weight, followed)
    if momentum in (0.0, 1.0):
        assert torch.equal(key_encoder.encoder.weight, own if momentum else before)
    close(output.view_2, F.normalize(views[1].flatten(1) @ followed.T, dim=1))


def split_encoder(kind="split", groups=4):
    backbone = make_backbone("small_cnn:2", channels=1, image_size=8, seed=0)
    encoder = ViewEncoder(backbone, ProjectionHead(backbone.dim, dim=DIM, batch_norm=kind != "none", seed=0))
    return convert_batch_norm(
        encoder, "split" if kind == "split" else "device", groups=groups if kind == "split" else None
    )


def pictures(count=8):
    return draw(count, 1, 8, 8, seed=1).float(), draw(count, 1, 8, 8, seed=2).float()


@each
def test_keys_are_encoded_in_the_order_of_the_permutation_and_put_back(kind):
    order = torch.tensor([5, 0, 3, 7, 1, 6, 2, 4])
    encoder, views, ids = split_encoder(), pictures(), torch.arange(8)
    other = copy.deepcopy(encoder)
    key_encoder, optimizer, queue = parts(encoder, capacity=16)
    output = step(kind, encoder, key_encoder, nn.Identity(), optimizer, queue, views, ids, permutation=order)
    wanted = torch.empty(8, DIM)
    wanted[order] = F.normalize(other(views[1][order])[1].detach(), dim=1)
    torch.testing.assert_close(output.view_2, wanted)
    assert not torch.allclose(wanted, F.normalize(other(views[1])[1], dim=1), atol=1e-2)
    if kind != "v3":
        torch.testing.assert_close(queue.read().vectors[:8], wanted)


@each
def test_running_statistics_are_those_of_what_each_encoder_saw(kind):
    encoder, views, ids = split_encoder("device"), pictures(), torch.arange(8)
    twins = [copy.deepcopy(encoder) for _ in range(2)]
    key_encoder, optimizer, queue = parts(encoder, capacity=16)
    step(kind, encoder, key_encoder, nn.Identity(), optimizer, queue, views, ids)
    for order, twin, found in zip((views, views[::-1]), twins, (encoder, key_encoder.encoder), strict=True):
        for view in order[: 1 if kind == "plain" else 2]:
            twin(view)
        wanted = dict(twin.named_buffers())
        for name, value in found.named_buffers():
            torch.testing.assert_close(value, wanted[name])


@each
@pytest.mark.parametrize("norm", ["device", "none"])
def test_in_chunks_and_with_checkpoints_it_is_the_same_step(kind, norm):
    ways = [{}, {"chunks": 3}] + ([{"checkpointing": True}] if norm == "none" else [])
    after = []
    for way in ways:
        encoder, predictor = (
            split_encoder(norm),
            ProjectionHead(DIM, hidden=5, dim=DIM, batch_norm=False, seed=1),
        )
        encoder, predictor = encoder.double(), predictor.double()
        key_encoder, optimizer, queue = parts(
            encoder, capacity=20, start="random", more=predictor.parameters()
        )
        views = tuple(view.double() for view in pictures())
        output = step(
            kind,
            encoder,
            key_encoder,
            predictor,
            optimizer,
            queue,
            views,
            torch.arange(8),
            **way,
        )
        modules = (encoder, key_encoder, predictor, queue)
        after.append(
            [torch.tensor(output.loss), *(v for m in modules for v in (*m.parameters(), *m.buffers()))]
        )
    for other in after[1:]:
        for one, two in zip(after[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-9)


@each
def test_half_precision_is_the_encoders_alone(kind):
    encoder, views, ids, shown = split_encoder("device"), pictures(), torch.arange(8), []
    key_encoder, optimizer, queue = parts(encoder, capacity=16, start="random")
    exact = step(
        kind, copy.deepcopy(encoder), copy.deepcopy(key_encoder), nn.Identity(),
        torch.optim.SGD([nn.Parameter()]), copy.deepcopy(queue), views, ids,
    )  # fmt: skip
    output = step(
        kind, encoder, key_encoder, nn.Identity(), optimizer, queue, views, ids,
        precision=torch.bfloat16, on_lookup=shown.append,
    )  # fmt: skip
    assert {lookup.scores.dtype for lookup in shown} == {output.view_2.dtype} == {torch.float32}
    assert output.loss == pytest.approx(exact.loss, rel=0.05)
    torch.testing.assert_close(output.view_2, exact.view_2, rtol=0, atol=0.1)
    assert not torch.equal(output.view_2, exact.view_2)


def test_v3_is_the_plain_losses_times_twice_the_temperature_added():
    encoder, (views, ids) = Linear(), batch(0)
    key_encoder, optimizer, _ = parts(encoder)
    shown = []
    output = moco_v3(
        encoder, key_encoder, nn.Identity(), optimizer, views, ids=ids, loss=LOSS, momentum=0.9,
        temperature=0.2, on_lookup=shown.append,
    )  # fmt: skip
    assert output.loss == pytest.approx(0.4 * sum(float(LOSS(one).mean()) for one in shown))


def test_a_learned_temperature_learns():
    temperature, encoder = LearnedTemperature(initial=0.2), Linear()
    key_encoder, optimizer, queue = parts(encoder, start="random", more=temperature.parameters())
    before, (views, ids) = float(temperature().detach()), batch(0)
    moco(
        encoder, key_encoder, optimizer, queue, views, ids=ids, momentum=0.9,
        loss=partial(info_nce, temperature=temperature()),
    )  # fmt: skip
    assert float(temperature().detach()) != before


def test_rows_are_as_long_as_they_come_where_they_are_not_normalised():
    encoder, (views, ids) = Linear(), batch(0)
    key_encoder, optimizer, queue = parts(encoder)
    output = moco(
        encoder, key_encoder, optimizer, queue, views, ids=ids, loss=LOSS, momentum=1.0,
        normalised=False,
    )  # fmt: skip
    close(output.view_2, views[1].flatten(1) @ key_encoder.encoder.weight.T)


@each
def test_a_loss_that_is_not_finite_changes_no_weight_and_no_queue(kind):
    encoder, (views, ids) = Linear(), batch(0)
    key_encoder, optimizer, queue = parts(encoder, start="random")
    before, held, seen = encoder.weight.detach().clone(), queue.read().vectors.clone(), []

    def loss(lookup):
        """Not finite the second time it is asked, where there is one."""
        seen.append(lookup)
        broken = len(seen) == (1 if kind == "plain" else 2)
        return LOSS(lookup) * (float("nan") if broken else 1.0)

    with pytest.raises(CollapseError, match="the loss is nan"):
        step(kind, encoder, key_encoder, nn.Identity(), optimizer, queue, views, ids, loss=loss)
    assert torch.equal(encoder.weight, before)
    assert torch.equal(queue.read().vectors, held)


def test_impossible_steps_are_refused_before_any_change():
    encoder, (views, ids) = Linear(), batch(0)
    key_encoder, optimizer, queue = parts(Linear(seed=1))
    before = [weight.clone() for weight in (encoder.weight, key_encoder.encoder.weight)]
    for kind in ("plain", "v3"):
        with pytest.raises(RangeError, match=r"momentum of the key encoder must be from 0 to 1, got 1\.5"):
            step(kind, encoder, key_encoder, nn.Identity(), optimizer, queue, views, ids, momentum=1.5)
    with pytest.raises(RangeError, match="temperature must be > 0, got 0"):
        moco_v3(
            encoder,
            key_encoder,
            nn.Identity(),
            optimizer,
            views,
            ids=ids,
            loss=LOSS,
            momentum=0.9,
            temperature=0.0,
        )
    assert torch.equal(encoder.weight, before[0])
    assert torch.equal(key_encoder.encoder.weight, before[1])
    assert len(queue) == 0
