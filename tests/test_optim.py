"""LARS against plain loops, groups without decay, scaled rates."""

import math

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from querykey.errors import RangeError
from querykey.optim import LARS, parameter_groups, scaled_learning_rate, warm_up_cosine

FORMS = pytest.mark.parametrize("form", ["simclr", "moco_v3"])
SHAPES = {"matrix": (3, 4), "kernel": (2, 3, 2, 2), "bias": (4,), "scalar": ()}
RATES = [0.1, 0.5, 2.0, 1.0, 0.25]


def make_weights(seed=0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(torch.randn(shape, generator=random, dtype=torch.float64).to(dtype))
        for name, shape in SHAPES.items()
    }


def gradients_at(weights, step):
    random = torch.Generator().manual_seed(1000 + step)
    return {
        name: torch.randn(weight.shape, generator=random, dtype=torch.float64).to(weight.dtype)
        for name, weight in weights.items()
    }


def train(optimiser, weights, rates, first=0):
    for step, rate in enumerate(rates, start=first):
        for group in optimiser.param_groups:
            group["lr"] = rate
        for name, gradient in gradients_at(weights, step).items():
            weights[name].grad = gradient
        optimiser.step()


@FORMS
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**20), decay=st.sampled_from([0.0, 0.01, 1.0]), momentum=st.sampled_from([0.0, 0.9]),
    trust=st.sampled_from([None, 0.001, 0.02]), rates=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=5),
)  # fmt: skip
def test_is_the_equation_while_the_rate_changes(form, seed, decay, momentum, trust, rates):
    weights = make_weights(seed)
    options = {"sgd_momentum": momentum, "weight_decay": decay, "trust_coefficient": trust}
    expected = {name: weight.detach().flatten().tolist() for name, weight in weights.items()}
    velocity = {name: [0.0] * len(values) for name, values in expected.items()}
    for step, rate in enumerate(rates):
        for name, gradient in gradients_at(weights, step).items():
            expected[name], velocity[name] = oracles.lars(
                expected[name], gradient.flatten().tolist(), velocity[name],
                lr=rate, form=form, adapts=weights[name].ndim > 1, **options,
            )  # fmt: skip
    train(LARS(weights.values(), lr=1.0, momentum_form=form, **options), weights, rates)
    for name, weight in weights.items():
        found = torch.tensor(expected[name], dtype=torch.float64)
        torch.testing.assert_close(weight.detach().flatten(), found, rtol=1e-9, atol=1e-12)


def trained(form, rates, **options):
    weights = make_weights()
    train(LARS(weights.values(), lr=1.0, momentum_form=form, **options), weights, rates)
    return weights


def test_the_forms_agree_at_a_constant_rate_and_part_when_it_changes():
    """A biased direction, so that momentum builds up: in warm-up MoCo v3's form steps further."""
    constant = [trained(form, [0.3] * 5)["matrix"] for form in ("simclr", "moco_v3")]
    torch.testing.assert_close(*constant)
    travelled = {}
    for form in ("simclr", "moco_v3"):
        weight = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
        optimiser = LARS([weight], lr=1.0, momentum_form=form, trust_coefficient=None)
        for step in range(10):
            optimiser.param_groups[0]["lr"] = 0.01 * warm_up_cosine(step, steps=20, warm_up=10)
            weight.grad = torch.ones_like(weight)
            optimiser.step()
        travelled[form] = 1.0 - weight[0, 0].item()
    assert travelled["moco_v3"] > 1.2 * travelled["simclr"]


@pytest.mark.parametrize("name", ["bias", "scalar"])
def test_vectors_step_as_sgd_does(name):
    """Neither decayed nor adapted; PyTorch's SGD has the rate outside."""
    for form, rates in (("moco_v3", RATES), ("simclr", [0.3] * 5)):
        mine = trained(form, rates, weight_decay=0.5)[name]
        theirs = make_weights()
        train(torch.optim.SGD(theirs.values(), lr=1.0, momentum=0.9), theirs, rates)
        torch.testing.assert_close(mine, theirs[name])


def test_without_trust_everything_steps_as_sgd_with_decay_of_matrices():
    mine = trained("moco_v3", RATES, weight_decay=0.1, trust_coefficient=None)
    theirs = make_weights()
    groups = parameter_groups(nn.ParameterDict(theirs), weight_decay=0.1)
    train(torch.optim.SGD(groups, lr=1.0, momentum=0.9), theirs, RATES)
    for name, weight in mine.items():
        torch.testing.assert_close(weight, theirs[name])


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_the_norm_of_the_gradient_does_not_matter(factor):
    weights = make_weights()
    before = weights["matrix"].detach().clone()
    weights["matrix"].grad = factor * gradients_at(weights, 0)["matrix"]
    LARS(weights.values(), lr=2.0, trust_coefficient=0.05).step()
    moved = (weights["matrix"].detach() - before).norm()
    torch.testing.assert_close(moved, 0.1 * before.norm())


@FORMS
def test_a_length_of_0_has_trust_1(form):
    weight, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    weight.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    LARS([weight, still], lr=0.5, trust_coefficient=0.001, momentum_form=form).step()
    assert torch.equal(weight.data, torch.full((2, 2), -0.5))
    assert torch.equal(still.data, torch.ones(2, 2))


@FORMS
def test_a_resumed_optimizer_equals_one_that_never_stopped(form):
    options = {"weight_decay": 0.01, "sgd_momentum": 0.8, "trust_coefficient": 0.02}
    whole = trained(form, RATES, **options)
    weights = make_weights()
    first = LARS(weights.values(), lr=1.0, momentum_form=form, **options)
    train(first, weights, RATES[:2])
    saved = first.state_dict()
    copies = {name: nn.Parameter(weight.detach().clone()) for name, weight in weights.items()}
    second = LARS(copies.values(), lr=9.0)
    second.load_state_dict(saved)
    assert second.state_dict()["param_groups"] == saved["param_groups"]
    train(second, copies, RATES[2:], first=2)
    for name, weight in whole.items():
        assert torch.equal(copies[name], weight)


@FORMS
def test_gradients_and_parameters_without_one_are_left_alone(form):
    weights = make_weights()
    kept = weights["kernel"].detach().clone()
    gradients = gradients_at(weights, 0)
    for name in ("matrix", "bias"):
        weights[name].grad = gradients[name].clone()
    optimiser = LARS(weights.values(), lr=0.1, weight_decay=0.1, momentum_form=form)
    optimiser.step()
    optimiser.step()
    assert torch.equal(weights["kernel"], kept)
    for name in ("matrix", "bias"):
        assert torch.equal(weights[name].grad, gradients[name])
    assert len(optimiser.state) == 2
    optimiser.zero_grad()
    optimiser.step()


def test_dtypes_may_be_mixed():
    double, single = nn.Parameter(torch.ones(2, 2).double()), nn.Parameter(torch.ones(2, 2))
    vector = nn.Parameter(torch.ones(2))
    for weight in (double, single, vector):
        weight.grad = torch.ones_like(weight)
    LARS([double, single, vector], lr=0.5, trust_coefficient=0.1).step()
    for weight in (double, single):
        torch.testing.assert_close(weight.data, torch.full_like(weight, 0.95))
    assert vector.data.tolist() == [0.5, 0.5]


def test_a_group_has_options_of_its_own():
    body, head = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    body.grad, head.grad = torch.ones(2, 2), torch.ones(2, 2)
    groups = [{"params": [body]}, {"params": [head], "trust_coefficient": None, "lr": 0.25}]
    LARS(groups, lr=1.0, trust_coefficient=0.5).step()
    torch.testing.assert_close(body.data, torch.full((2, 2), 0.5))
    torch.testing.assert_close(head.data, torch.full((2, 2), 0.75))


def test_a_closure_computes_the_loss():
    weight = nn.Parameter(torch.ones(2, 2))
    optimiser = LARS([weight], lr=1.0, trust_coefficient=0.5)

    def closure():
        optimiser.zero_grad()
        loss = weight.sum()
        loss.backward()
        return loss

    assert optimiser.step(closure).item() == 4.0
    torch.testing.assert_close(weight.data, torch.full((2, 2), 0.5))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": -1.0}, "lr must be >= 0 and finite, got -1.0; SimCLR uses 0.3 * batch / 256"),
        ({"lr": math.nan}, "lr must be >= 0 and finite, got nan; SimCLR uses 0.3 * batch / 256"),
        ({"sgd_momentum": 1.0}, "sgd_momentum must be from 0 to below 1, got 1.0; 0.9 is usual"),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0 and finite, got -0.1; 1e-6 to 1e-4 is usual"),
        (
            {"trust_coefficient": 0.0},
            "trust_coefficient must be > 0 and finite, or None for plain SGD, got 0.0; 0.001 is usual",
        ),
        ({"momentum_form": "tf"}, 'momentum_form must be "simclr" or "moco_v3", got \'tf\''),
    ],
)
def test_refuses_numbers_outside_their_range(changed, message):
    with pytest.raises(RangeError) as error:
        LARS([{"params": [nn.Parameter(torch.ones(1))], **changed}], lr=0.1)
    assert str(error.value) == message


def test_groups_separate_matrices_from_vectors_without_frozen_parameters():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2), nn.LayerNorm(2))
    module[0].bias.requires_grad_(False)
    module.append(module[2])  # shared: once
    decayed, plain = parameter_groups(module, weight_decay=0.1)
    assert [tuple(weight.shape) for weight in decayed["params"]] == [(4, 3, 3, 3), (2, 4)]
    assert decayed["weight_decay"] == 0.1
    assert [tuple(weight.shape) for weight in plain["params"]] == [(4,), (4,), (2,), (2,), (2,)]
    assert plain["weight_decay"] == 0.0
    assert len(parameter_groups(nn.BatchNorm1d(3), weight_decay=0.1)) == 1
    assert parameter_groups(nn.ReLU(), weight_decay=0.1) == []
    for optimiser in (torch.optim.SGD, torch.optim.AdamW, LARS):
        optimiser(parameter_groups(module, weight_decay=0.1), lr=0.1)
    with pytest.raises(RangeError, match="got -1"):
        parameter_groups(module, weight_decay=-1.0)


@pytest.mark.parametrize("batch_size", [32, 256, 512, 4096, 8192])
def test_rates_follow_their_rules(batch_size):
    linear = scaled_learning_rate(batch_size, rule="linear")
    root = scaled_learning_rate(batch_size, rule="square_root")
    assert linear == pytest.approx(0.3 * batch_size / 256)
    assert root == pytest.approx(0.075 * math.sqrt(batch_size))
    assert (linear < root) == (batch_size < 4096)
    assert (linear > root) == (batch_size > 4096)
    assert scaled_learning_rate(batch_size, rule="none", base=0.7) == 0.7
    assert scaled_learning_rate(batch_size, rule="linear", base=0.6) == pytest.approx(2 * linear)
    assert scaled_learning_rate(batch_size, rule="square_root", base=0.15) == pytest.approx(2 * root)


def test_refuses_a_rate_without_what_it_needs():
    with pytest.raises(RangeError) as error:
        scaled_learning_rate(256, rule="none")
    assert str(error.value) == 'rule "none" takes the learning rate as it is; give it as base'
    with pytest.raises(RangeError, match="batch_size must be at least 1, got 0"):
        scaled_learning_rate(0, rule="linear")
    with pytest.raises(RangeError, match="base must be > 0 and finite, got -1"):
        scaled_learning_rate(256, rule="linear", base=-1.0)


@FORMS
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_many_tensors_at_once_step_as_one_by_one(form, decay):
    """At once is how they step on devices other than the CPU."""
    one_by_one, at_once = make_weights(), make_weights()
    for weights in (one_by_one, at_once):
        optimiser = LARS(weights.values(), lr=0.5, weight_decay=decay, momentum_form=form)
        for name, gradient in gradients_at(weights, 0).items():
            weights[name].grad = gradient
        if weights is at_once:
            with torch.no_grad():
                optimiser._step_alike(optimiser.param_groups[0], [weights["matrix"], weights["kernel"]])
                optimiser._step_alike(optimiser.param_groups[0], [weights["bias"], weights["scalar"]])
        else:
            optimiser.step()
    for name, weight in one_by_one.items():
        torch.testing.assert_close(at_once[name], weight)
