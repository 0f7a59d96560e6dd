"""The momentum encoder: what it averages, what it keeps, and how fast it follows."""

import inspect
import math

import pytest
import torch
from torch import nn

from querykey.encoders.backbones import make_backbone
from querykey.encoders.momentum import MomentumEncoder, half_life, momentum_at
from querykey.encoders.projection import ProjectionHead, ViewEncoder
from querykey.errors import ConfigError, RangeError, ShapeError


def images(seed=0, count=6):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def view_encoder():
    backbone = make_backbone("small_cnn:2", channels=1, image_size=8, seed=0)
    return ViewEncoder(backbone, ProjectionHead(backbone.dim, dim=4, seed=0))


def plain():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))


each = pytest.mark.parametrize("make", [view_encoder, plain])


@torch.no_grad()
def trained(encoder):
    """Other weights and other running statistics, as a step leaves them."""
    encoder.train()(images(1).to(next(encoder.parameters()).dtype))
    for place, weight in enumerate(encoder.parameters()):
        weight.add_(torch.full_like(weight, 0.1 * (place + 1)))
    return encoder


@each
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9, 0.999, 1.0])
def test_each_weight_is_the_moving_average(make, momentum):
    encoder = make().double()
    key_encoder = MomentumEncoder(encoder)
    old = [weight.detach().clone() for weight in encoder.parameters()]
    trained(encoder)
    key_encoder.ema_update_(encoder, momentum)
    weights = zip(old, encoder.parameters(), key_encoder.parameters(), strict=True)
    for before, theirs, own in weights:
        torch.testing.assert_close(own, momentum * before + (1 - momentum) * theirs, rtol=1e-12, atol=1e-12)


@each
def test_momentum_0_is_a_copy_and_momentum_1_stays_bit_by_bit(make):
    encoder = make()
    copied, frozen = MomentumEncoder(encoder), MomentumEncoder(encoder)
    before = [weight.detach().clone() for weight in encoder.parameters()]
    trained(encoder)
    copied.ema_update_(encoder, 0.0)
    frozen.ema_update_(encoder, 1.0)
    assert all(map(torch.equal, copied.parameters(), encoder.parameters()))
    assert all(map(torch.equal, frozen.parameters(), before))


@each
def test_running_statistics_are_its_own(make):
    """Averaged in, or copied, they would belong to images that the key encoder never saw."""
    encoder = make()
    key_encoder = MomentumEncoder(encoder)
    at_start = {name: value.clone() for name, value in key_encoder.encoder.named_buffers()}
    assert at_start
    trained(encoder)
    key_encoder.ema_update_(encoder, 0.5)
    assert all(torch.equal(value, at_start[name]) for name, value in key_encoder.encoder.named_buffers())

    twin = make().train()
    twin.load_state_dict(key_encoder.encoder.state_dict())
    key_encoder(images(2))
    twin(images(2))
    of_twin, of_encoder = dict(twin.named_buffers()), dict(encoder.named_buffers())
    for name, value in key_encoder.encoder.named_buffers():
        torch.testing.assert_close(value, of_twin[name])
        assert not torch.equal(value, at_start[name])
        assert name.endswith("tracked") or not torch.equal(value, of_encoder[name])


def test_it_gives_what_the_encoder_gives_without_gradient():
    encoder = view_encoder()
    key_encoder = MomentumEncoder(encoder)
    for one, other in zip(encoder(images()), key_encoder(images()), strict=True):
        assert torch.equal(one, other)
        assert one.requires_grad
        assert not other.requires_grad
    assert not any(weight.requires_grad for weight in key_encoder.parameters())
    assert all(weight.requires_grad for weight in encoder.parameters())
    own = {weight.data_ptr() for weight in key_encoder.parameters()}
    assert own.isdisjoint(weight.data_ptr() for weight in encoder.parameters())


def test_it_has_a_mode_like_any_module():
    key_encoder = MomentumEncoder(plain().train())
    assert key_encoder.encoder[2].training
    before = key_encoder.encoder[2].running_mean.clone()
    key_encoder.eval()(images())
    assert torch.equal(key_encoder.encoder[2].running_mean, before)
    key_encoder.train()(images())
    assert not torch.equal(key_encoder.encoder[2].running_mean, before)
    assert not MomentumEncoder(plain().eval()).encoder.training


def test_a_saved_one_goes_on():
    encoder = view_encoder()
    key_encoder, twin = MomentumEncoder(encoder), MomentumEncoder(encoder)
    trained(encoder)
    key_encoder.ema_update_(encoder, 0.9)
    key_encoder(images(2))
    twin.load_state_dict(key_encoder.state_dict())
    for one in (key_encoder, twin):
        one.ema_update_(encoder, 0.9)
    assert all(torch.equal(v, twin.state_dict()[name]) for name, v in key_encoder.state_dict().items())


@pytest.mark.parametrize("momentum", [-0.1, 1.1, math.nan])
def test_a_momentum_outside_its_range(momentum):
    encoder = nn.Linear(2, 2)
    key_encoder = MomentumEncoder(encoder)
    for call in (
        lambda: key_encoder.ema_update_(encoder, momentum),
        lambda: half_life(momentum),
        lambda: momentum_at(0, steps=1, momentum=momentum),
    ):
        with pytest.raises(RangeError, match=r"momentum of the key encoder must be from 0 to 1, got"):
            call()


@pytest.mark.parametrize(
    "other", [nn.Linear(2, 3), nn.Linear(2, 2, bias=False), nn.Sequential(nn.Linear(2, 2))]
)
def test_another_encoder_cannot_be_followed(other):
    with pytest.raises(ShapeError, match="cannot follow an encoder with other parameters"):
        MomentumEncoder(nn.Linear(2, 2)).ema_update_(other, 0.5)


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99, 0.999])
def test_half_of_the_difference_is_gone_after_the_half_life(momentum):
    assert momentum ** half_life(momentum) == pytest.approx(0.5)


def test_half_life_at_the_ends():
    assert half_life(0.0) == 0.0
    assert half_life(1.0) == math.inf


def test_the_schedules():
    constant = [momentum_at(t, steps=10, momentum=0.99) for t in range(11)]
    cosine = [momentum_at(t, steps=10, momentum=0.99, schedule="cosine") for t in range(11)]
    assert constant == [0.99] * 11
    assert cosine[0] == pytest.approx(0.99)
    assert cosine[5] == pytest.approx(0.995)
    assert cosine[10] == 1
    assert cosine == sorted(cosine)
    assert [1 - m for m in cosine] == pytest.approx(
        [0.005 * (math.cos(math.pi * t / 10) + 1) for t in range(11)]
    )


def test_unknown_steps_and_schedules_are_refused():
    for step, steps in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(RangeError, match=f"got step {step} of {steps}"):
            momentum_at(step, steps=steps, momentum=0.9)
    with pytest.raises(ConfigError, match="the momentum schedule is constant or cosine; got 'linear'"):
        inspect.unwrap(momentum_at)(0, steps=1, momentum=0.9, schedule="linear")
