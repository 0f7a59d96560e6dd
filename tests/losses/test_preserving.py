"""The losses that keep the frozen scores: closed forms, temperatures and gradients."""

import math

import pytest
import torch

from querykey.errors import RangeError
from querykey.lookup import Lookup
from querykey.losses import info_nce, rank_loss, score_difference, score_distillation


def among_all(scores):
    """Every pair takes part."""
    nothing = torch.zeros(scores.shape, dtype=torch.bool)
    return Lookup.from_scores(scores, nothing, ~nothing)


def random_scores(seed):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(4, 9, generator=random, dtype=torch.float64) * 2 - 1


def test_equal_scores_have_loss_0_and_no_gradient():
    for loss in (score_difference, lambda a, b: score_distillation(a, b, temperature=0.05)):
        scores = random_scores(0).requires_grad_()
        cost = loss(among_all(scores), among_all(scores.detach()))
        cost.sum().backward()
        assert cost.tolist() == [0.0] * 4
        assert not scores.grad.any()


def test_the_target_temperature_is_the_temperature_unless_given():
    mine, theirs = among_all(random_scores(1)), among_all(random_scores(2))
    same = score_distillation(mine, theirs, temperature=0.1, target_temperature=0.1)
    assert torch.equal(score_distillation(mine, theirs, temperature=0.1), same)
    assert not torch.allclose(score_distillation(mine, theirs, temperature=0.1, target_temperature=0.2), same)


def test_a_learned_temperature_gets_its_gradient_through_the_trained_scores():
    frozen = among_all(random_scores(3))
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def cost(scores, learned):
        return score_distillation(among_all(scores), frozen, temperature=learned, target_temperature=0.2)

    assert torch.autograd.gradcheck(cost, (random_scores(4).requires_grad_(), temperature))


def test_a_target_sure_of_one_key_gives_info_nce():
    scores = random_scores(5)
    sure = torch.full_like(scores, -1.0)
    sure[:, 2] = 1.0
    positive = sure > 0
    expected = info_nce(Lookup.from_scores(scores, positive, ~positive), temperature=0.1)
    cost = score_distillation(among_all(scores), among_all(sure), temperature=0.1, target_temperature=0.01)
    torch.testing.assert_close(cost, expected)


def test_distillation_is_never_below_0_and_reads_differences_of_scores_alone():
    mine, theirs = random_scores(6), random_scores(7)
    cost = score_distillation(among_all(mine), among_all(theirs), temperature=0.1)
    assert (cost > 0).all()
    lifted = score_distillation(among_all(mine + 0.5), among_all(theirs), temperature=0.1)
    torch.testing.assert_close(lifted, cost)


@pytest.mark.parametrize("name", ["temperature", "target_temperature"])
def test_distillation_refuses_a_temperature_that_is_not_positive(name):
    lookup = among_all(random_scores(8))
    with pytest.raises(RangeError) as error:
        score_distillation(lookup, lookup, **({"temperature": 0.1} | {name: 0.0}))
    assert str(error.value) == f"{name} must be > 0 and finite, got 0.0; 0.05 to 0.5 is usual"


def test_score_difference_by_hand():
    scores = torch.tensor([[0.5, 0.0, 0.9, 0.3]], requires_grad=True)
    target = torch.tensor([[1.0, -0.25, 0.9, -1.0]])
    selected = torch.tensor([[True, True, True, False]])
    lookup = Lookup.from_scores(scores, selected, ~selected)
    cost = score_difference(lookup, Lookup.from_scores(target, selected, torch.zeros_like(selected)))
    torch.testing.assert_close(cost, torch.tensor([0.25]))
    cost.sum().backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[-1 / 3, 1 / 3, 0.0, 0.0]]))


def test_rank_loss_by_hand():
    """Own document first; a batch of three."""
    scores = torch.tensor([[1.0, 0.5, 0.5], [0.5, 0.5, 0.5]], requires_grad=True)
    positive = torch.tensor([[True, False, False], [False, True, False]])
    cost = rank_loss(Lookup.from_scores(scores, positive, ~positive))
    torch.testing.assert_close(cost, torch.tensor([math.log1p(math.exp(-0.5)), math.log(2)]))
    cost[1].backward()
    torch.testing.assert_close(scores.grad[1], torch.tensor([0.25, -0.5, 0.25]))
