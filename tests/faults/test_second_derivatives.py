"""What has no second derivative says so, in place of a Hessian that lacks a term."""

import pytest
import torch
from torch.nn import functional as F

from querykey import losses
from querykey.errors import ConfigError
from querykey.lookup import PairRule, look_up
from querykey.losses.temperature import LearnedTemperature

NUMBERS = torch.arange(12)
LOSSES = {
    "info_nce": lambda lookup: losses.info_nce(lookup, temperature=0.1),
    "info_nce, chunked": lambda lookup: losses.info_nce(lookup, temperature=0.1, form="chunked"),
    "nca": lambda lookup: losses.nca(lookup, temperature=0.1),
    "triplet": losses.triplet,
    "multi_similarity": losses.multi_similarity,
}


def looked_up(rows):
    return look_up(
        F.normalize(rows, dim=1), F.normalize(rows, dim=1), query_ids=NUMBERS, key_ids=NUMBERS,
        query_labels=NUMBERS % 3, key_labels=NUMBERS % 3, rule=PairRule(positive="label"),
    )  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_a_second_derivative_is_refused(name):
    rows = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with pytest.raises(ConfigError, match="create_graph=True asks for second derivatives"):
        torch.autograd.grad(LOSSES[name](looked_up(rows)).sum(), rows, create_graph=True)


def test_a_second_derivative_of_two_views_is_refused():
    views = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    cost = losses.nt_xent(views[0], views[1], temperature=0.5).sum()
    with pytest.raises(ConfigError, match="create_graph"):
        torch.autograd.grad(cost, views, create_graph=True)


def test_a_second_derivative_of_a_learned_temperature_is_refused():
    learned = LearnedTemperature(0.1)
    with pytest.raises(ConfigError, match="create_graph"):
        torch.autograd.grad(learned(), list(learned.parameters()), create_graph=True)


@pytest.mark.parametrize("name", LOSSES)
def test_first_derivatives_are_there_after_one_was_refused(name):
    rows = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    cost = LOSSES[name](looked_up(rows)).sum()
    (gradient,) = torch.autograd.grad(cost, rows)
    assert float(gradient.abs().sum()) > 0
