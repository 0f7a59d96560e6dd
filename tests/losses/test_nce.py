"""NCE: closed forms, gradients, the ends of the scale, and the normaliser."""

import math

import pytest
import torch
from torch.nn import functional as F

from querykey.errors import RangeError, ShapeError
from querykey.lookup import DensePairs, Lookup
from querykey.losses import nce, nce_normaliser

SETTINGS = {"temperature": 0.1, "normaliser": 40.0, "noise_items": 20}


def one_positive(scores):
    """The first key is positive and the others noise."""
    positive = torch.zeros(scores.shape, dtype=torch.bool)
    positive[:, 0] = True
    return Lookup.from_scores(scores, positive, ~positive)


@pytest.mark.parametrize("noise", [1, 4, 4096])
def test_keys_at_even_odds_cost_one_bit_each(noise):
    """exp(0) / Z = K / N."""
    cost = nce(
        one_positive(torch.zeros(2, 1 + noise)), temperature=0.07, normaliser=100 / noise, noise_items=100
    )
    torch.testing.assert_close(cost, torch.full((2,), (1 + noise) * math.log(2)))


def test_a_confident_error_costs_its_logit():
    """Logits of -100 and 100, Z = 1, K / N = 1: 100 nats each, where exp() is 0 or infinite in float32."""
    scores = torch.tensor([[-1.0, 1.0]], requires_grad=True)
    cost = nce(one_positive(scores), temperature=0.01, normaliser=1.0, noise_items=1)
    assert cost.tolist() == [200.0]
    cost.sum().backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[-100.0, 100.0]]))


def test_a_loss_near_0_keeps_its_digits():
    scores = torch.tensor([[1.0, -1.0]])
    cost = nce(one_positive(scores), temperature=0.05, normaliser=1.0, noise_items=1)
    assert cost.item() == pytest.approx(2 * math.log1p(math.exp(-20)), rel=1e-5)


def test_a_learned_temperature_and_a_normaliser_as_a_tensor():
    scores = (torch.rand(3, 5, dtype=torch.float64) * 2 - 1).requires_grad_()
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    normaliser = torch.tensor(40.0, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda s, t: nce(one_positive(s), temperature=t, normaliser=40.0, noise_items=20),
        (scores, temperature),
    )
    cost = nce(one_positive(scores), temperature=temperature, normaliser=normaliser, noise_items=20)
    assert torch.equal(cost, nce(one_positive(scores), temperature=0.3, normaliser=40.0, noise_items=20))
    cost.sum().backward()
    assert normaliser.grad is None


def test_the_noise_of_each_query_is_counted():
    """A query whose own item was drawn has one noise key less."""
    scores = torch.zeros(2, 4)
    positive = torch.zeros(2, 4, dtype=torch.bool)
    positive[:, 0] = True
    negative = ~positive
    negative[1, 3] = False
    cost = nce(
        Lookup.from_scores(scores, positive, negative), temperature=1.0, normaliser=1.0, noise_items=10
    )
    expected = [-math.log(1 / (1 + k / 10)) - k * math.log(k / 10 / (1 + k / 10)) for k in (3, 2)]
    torch.testing.assert_close(cost, torch.tensor(expected))


def test_the_normaliser_is_the_mean_over_the_pairs_that_count_times_the_items():
    scores = torch.tensor([[0.1, 0.3, -0.2], [0.9, -0.4, 0.2]])
    positive = torch.tensor([[True, False, False], [False, False, True]])
    negative = torch.tensor([[False, True, False], [False, True, False]])
    found = nce_normaliser(Lookup.from_scores(scores, positive, negative), temperature=0.5, items=7)
    mean = sum(math.exp(s / 0.5) for s in (0.1, 0.3, -0.4, 0.2)) / 4
    torch.testing.assert_close(found, torch.tensor(7 * mean, dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_normaliser_of_nothing_is_0_and_without_gradient():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    scores = torch.ones(2, 3, requires_grad=True)
    found = nce_normaliser(Lookup.from_scores(scores, nothing, nothing), temperature=0.01, items=7)
    assert (found.item(), found.requires_grad) == (0.0, False)


def test_the_gradient_is_that_of_info_nce_where_noise_is_plenty():
    """With the right Z and many noise keys the expected gradients agree: Wu et al. 2018, section 3.2."""
    random = torch.Generator().manual_seed(0)
    items, drawn = 50, 200_000
    keys = F.normalize(torch.randn(items, 8, generator=random), dim=1)
    query = keys[:1].clone()
    logits = query @ keys.T / 0.5
    own = F.one_hot(torch.tensor([0]), 1 + drawn).bool()
    places = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randint(items, (drawn,), generator=random)])
    moving = keys.requires_grad_()
    found = Lookup(query, moving[places], DensePairs(own, ~own))
    nce(found, temperature=0.5, normaliser=float(logits.exp().sum()), noise_items=items).sum().backward()
    slopes = (logits.softmax(dim=1) - F.one_hot(torch.tensor([0]), items)) / 0.5
    torch.testing.assert_close(keys.grad @ query[0], slopes[0], rtol=0.1, atol=4e-3)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0 and finite, got 0.0; 0.05 to 0.5 is usual"),
        (
            {"normaliser": 0.0},
            "normaliser must be > 0 and finite, got 0.0; nce_normaliser of the first batch gives it",
        ),
        (
            {"normaliser": math.nan},
            "normaliser must be > 0 and finite, got nan; nce_normaliser of the first batch gives it",
        ),
        ({"noise_items": 0}, "noise_items must be at least 1, got 0; it is the number of items"),
    ],
)
def test_refuses_settings_out_of_range(setting, message):
    with pytest.raises(RangeError) as error:
        nce(one_positive(torch.zeros(1, 2)), **(SETTINGS | setting))
    assert str(error.value) == message


def test_refuses_a_normaliser_for_each_query():
    with pytest.raises(ShapeError) as error:
        nce(one_positive(torch.zeros(2, 2)), **(SETTINGS | {"normaliser": torch.ones(2)}))
    assert str(error.value) == "normaliser has shape [2]; it is a tensor of one number"


def test_the_normaliser_refuses_no_items():
    with pytest.raises(RangeError) as error:
        nce_normaliser(one_positive(torch.zeros(1, 2)), temperature=0.1, items=0)
    assert str(error.value) == "items must be at least 1, got 0; it is the number of items"


@pytest.mark.parametrize("temperature", [0.0115, 0.005, 0.002])
def test_a_normaliser_of_a_low_temperature_is_finite_and_is_used_as_it_is(temperature):
    """exp(1 / temperature) is beyond float32; its logarithm is not."""
    positive = torch.tensor([[True, False]])
    lookup = Lookup.from_scores(torch.tensor([[1.0, 0.9]]), positive, ~positive)
    found = nce_normaliser(lookup, temperature=temperature, items=50)
    wanted = math.log(25) + 1 / temperature + math.log1p(math.exp(-0.1 / temperature))
    assert float(found.log()) == pytest.approx(wanted, rel=1e-6)
    cost = nce(lookup, temperature=temperature, normaliser=found, noise_items=50)
    as_float = nce(lookup, temperature=temperature, normaliser=float(found), noise_items=50)
    assert torch.isfinite(cost).all()
    torch.testing.assert_close(cost, as_float)
