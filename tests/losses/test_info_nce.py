"""InfoNCE: closed forms, gradients, temperature, and the traps of published versions."""

import math
import subprocess
import sys

import pytest
import torch

from querykey.errors import RangeError, ShapeError
from querykey.lookup import Lookup, PairRule, look_up
from querykey.losses import info_nce


def one_positive(scores):
    """The first key is positive and the others negative."""
    positive = torch.zeros(scores.shape, dtype=torch.bool)
    positive[:, 0] = True
    return Lookup.from_scores(scores, positive, ~positive)


@pytest.mark.parametrize("keys", [1, 2, 10, 4097])
def test_equal_keys_cost_the_logarithm_of_their_number(keys):
    cost = info_nce(one_positive(torch.full((1, keys), 0.3)), temperature=0.07)
    torch.testing.assert_close(cost, torch.tensor([math.log(keys)]))


@pytest.mark.parametrize("positives", [1, 2, 5])
def test_positives_share_the_probability(positives):
    """At best n positives cost log(n)."""
    scores = torch.tensor([[1.0] * positives + [-1.0] * 3])
    positive = scores > 0
    cost = info_nce(Lookup.from_scores(scores, positive, ~positive), temperature=0.01)
    torch.testing.assert_close(cost, torch.tensor([math.log(positives)]))


def test_gradient_is_right_and_finite_at_a_far_positive():
    """200 nats away, where exp() has long gone to zero in float32."""
    scores = torch.tensor([[-1.0, 1.0]], requires_grad=True)
    cost = info_nce(one_positive(scores), temperature=0.01)
    assert cost.tolist() == [200.0]
    cost.sum().backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[-100.0, 100.0]]))


def test_a_loss_near_0_keeps_its_digits():
    """exp(-10 / 0.7) beside 1: float32 holds it only if the top is taken out first."""
    scores = torch.tensor([[1.0, 0.0]])
    cost = info_nce(one_positive(scores), temperature=0.07)
    assert cost.item() == pytest.approx(math.log1p(math.exp(-1 / 0.07)), rel=0.1)


def test_a_learned_temperature_gets_its_gradient():
    scores = (torch.rand(3, 5, dtype=torch.float64) * 2 - 1).requires_grad_()
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda s, t: info_nce(one_positive(s), temperature=t), (scores, temperature)
    )
    learned = info_nce(one_positive(scores), temperature=temperature)
    assert torch.equal(learned, info_nce(one_positive(scores), temperature=0.3))


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan, math.inf])
def test_refuses_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(RangeError) as error:
        info_nce(one_positive(torch.zeros(1, 2)), temperature=temperature)
    assert str(error.value) == f"temperature must be > 0 and finite, got {temperature}; 0.05 to 0.5 is usual"


def test_refuses_a_temperature_for_each_query():
    with pytest.raises(ShapeError) as error:
        info_nce(one_positive(torch.zeros(2, 2)), temperature=torch.ones(2))
    assert str(error.value) == "temperature has shape [2]; a learned one is a tensor of one number"


def test_gradient_is_orthogonal_to_a_row_before_normalisation():
    """The score is a cosine: making a row longer changes nothing."""
    random = torch.Generator().manual_seed(0)
    queries = torch.randn(4, 6, generator=random, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(8, 6, generator=random, dtype=torch.float64)
    lookup = look_up(
        queries, keys, query_ids=torch.arange(4), key_ids=torch.arange(8),
        rule=PairRule(same_id="positive"), score="cosine",
    )  # fmt: skip
    info_nce(lookup, temperature=0.1).sum().backward()
    assert queries.grad.abs().max() > 0.1
    torch.testing.assert_close((queries.grad * queries).sum(dim=1), torch.zeros(4, dtype=torch.float64))


def test_trap_5_4_own_positive_is_not_among_the_negatives():
    """A perfect encoder costs next to nothing, not log 2, with older copies of its item in memory."""
    keys = torch.cat([torch.eye(4), torch.eye(4)])
    ids = torch.arange(4)
    fresh = PairRule(same_id="positive")
    lookup = look_up(torch.eye(4), torch.eye(4), query_ids=ids, key_ids=ids, rule=fresh)
    assert info_nce(lookup, temperature=0.05).max() < 1e-6

    both = look_up(torch.eye(4), keys, query_ids=ids, key_ids=ids.repeat(2), rule=fresh)
    positive = both.positive.clone()
    positive[:, 4:] = False
    old_copies_masked = both.with_pairs(positive, both.negative)
    assert info_nce(old_copies_masked, temperature=0.05).max() < 1e-6
    old_copies_negative = both.with_pairs(positive, ~positive)
    torch.testing.assert_close(info_nce(old_copies_negative, temperature=0.05), torch.full((4,), math.log(2)))


def test_trap_models_5_2_one_positive_and_one_negative_is_not_0():
    cost = info_nce(one_positive(torch.tensor([[0.0, 0.0]])), temperature=0.1)
    assert cost.item() == pytest.approx(math.log(2))


def test_trap_models_5_2_far_scores_do_not_saturate():
    """Temperature 0.02 and scores -1 / +1: 100 nats, and log 2 more with a second negative."""
    one, two = torch.tensor([[-1.0, 1.0]]), torch.tensor([[-1.0, 1.0, 1.0]])
    assert info_nce(one_positive(one), temperature=0.02).item() == pytest.approx(100.0, abs=1e-4)
    assert info_nce(one_positive(two), temperature=0.02).item() == pytest.approx(100.6931, abs=1e-4)


COMPILED = """
import torch
from querykey.losses import decoupled, hard_negative, info_nce, multi_similarity, nt_logistic
from querykey.lookup import DensePairs, Lookup

queries, keys = torch.randn(8, 4, requires_grad=True), torch.randn(20, 4)
positive = torch.rand(8, 20) < 0.2
tempered = [
    lambda lookup, loss=loss: loss(lookup, temperature=0.07)
    for loss in (info_nce, decoupled, hard_negative, nt_logistic)
]
for loss in (*tempered, multi_similarity):
    lookup = Lookup(queries, keys, DensePairs(positive, ~positive))
    lookup.scores, lookup.masks  # the step's own part; its lock on Python 3.11 does not compile
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(lookup), loss(lookup))
    ours, theirs = (torch.autograd.grad(f(lookup).sum(), lookup.scores)[0] for f in (loss, compiled))
    torch.testing.assert_close(theirs, ours)
"""


def test_compiles_as_one_graph():
    """In its own process: the type checks that the test-suite turns on stop torch.compile."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
