"""The learned temperature: where it begins, its bound, and which losses teach it."""

import math

import pytest
import torch
from torch.nn import functional as F

from querykey.errors import RangeError
from querykey.lookup.two_view_pairs import look_up_views
from querykey.losses import (
    LearnedTemperature,
    debiased,
    decoupled,
    hard_negative,
    info_nce,
    nca,
    nt_logistic,
    nt_xent,
)
from querykey.optim import parameter_groups

OVER_VIEWS = {
    "info_nce": info_nce,
    "nca": nca,
    "decoupled": decoupled,
    "debiased": debiased,
    "hard_negative": hard_negative,
    "nt_logistic": nt_logistic,
}


def views():
    random = torch.Generator().manual_seed(0)
    return [F.normalize(view) for view in torch.randn(2, 6, 4, generator=random, dtype=torch.float64)]


def costs():
    found = look_up_views(*views())
    for name, loss in OVER_VIEWS.items():
        yield pytest.param(lambda t, loss=loss: loss(found, temperature=t), id=name)
    yield pytest.param(lambda t: nt_xent(*views(), temperature=t), id="nt_xent")


@pytest.mark.parametrize("cost", costs())
def test_the_gradient_reaches_it_and_is_the_derivative(cost):
    module = LearnedTemperature(initial=0.3).double()
    cost(module()).sum().backward()
    step = 1e-6
    up, down = (cost(math.exp(-(math.log(1 / 0.3) + sign * step))).sum().item() for sign in (1, -1))
    assert module.log_inverse.grad.item() == pytest.approx((up - down) / 2 / step, rel=1e-4)
    assert abs(module.log_inverse.grad.item()) > 1e-3


@pytest.mark.parametrize("initial", [0.01, 0.07, 0.5, 3.0])
def test_starts_at_the_given_value(initial):
    assert LearnedTemperature(initial=initial)().item() == pytest.approx(initial)


def test_is_one_number_without_decay():
    module = LearnedTemperature()
    assert module().shape == ()
    assert module().item() == pytest.approx(0.07)
    assert [group["weight_decay"] for group in parameter_groups(module, weight_decay=0.1)] == [0.0]
    assert repr(module) == "LearnedTemperature(lowest=0.01)"


def test_ends_at_its_bound_and_comes_back():
    """Views that agree want it ever colder; shuffled ones warmer."""
    module, (view, _) = LearnedTemperature(initial=0.05), views()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.01)

    def train(other, steps):
        for _ in range(steps):
            optimiser.zero_grad()
            nt_xent(view, other, temperature=module()).mean().backward()
            optimiser.step()
        return module().item()

    with torch.no_grad():
        module.log_inverse.fill_(math.log(100) + 0.2)
    assert module().item() == pytest.approx(0.01)
    assert train(view, 3) == pytest.approx(0.01)
    assert module.log_inverse.item() == pytest.approx(math.log(100) + 0.2)
    assert train(view.roll(1, 0), 3) > 0.02


def test_is_saved_with_its_state():
    module, other = LearnedTemperature(initial=0.2), LearnedTemperature()
    other.load_state_dict(module.state_dict())
    assert other() == module()


@pytest.mark.parametrize(("initial", "lowest"), [(0.0, 0.01), (0.005, 0.01), (math.inf, 0.01), (0.1, 0.0)])
def test_refuses_values_outside_its_range(initial, lowest):
    with pytest.raises(RangeError) as error:
        LearnedTemperature(initial=initial, lowest=lowest)
    assert str(error.value) == (
        f"initial must be finite and at least lowest, which is > 0; got {initial} and {lowest}"
    )
