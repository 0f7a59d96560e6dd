"""Rows scaled to length 1: values, first and second derivatives, for any magnitude."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from querykey.lookup.unit_length import in_range, unit_length

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")
"""Of torch's own module of forward derivatives."""


def rows(*shape, scale=1.0, dtype=torch.float32):
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (scale * drawn).to(dtype)


@pytest.mark.parametrize("dim", [-1, 0])
@pytest.mark.parametrize("scale", [1.0, 0.0, 1e-30, 1e-13, 1e30])
def test_training_has_the_bits_of_evaluation(scale, dim):
    given = rows(7, 5, scale=scale)
    assert unit_length(given.clone().requires_grad_(), dim).equal(unit_length(given, dim))


@pytest.mark.parametrize("scale", [1.0, 1e-13, 1e30])
def test_gradient_is_that_of_normalize(scale):
    ours, theirs = rows(7, 5, scale=scale).requires_grad_(), rows(7, 5).double().requires_grad_()
    upstream = rows(7, 5).flip(0)
    unit_length(ours).backward(upstream)
    F.normalize(theirs, dim=1).backward(upstream.double())
    torch.testing.assert_close(scale * ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-6)


def test_a_row_of_zeros_gets_the_gradient_of_normalize():
    ours, theirs = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    unit_length(ours).sum().backward()
    F.normalize(in_range(theirs), dim=1).sum().backward()
    assert ours.grad.equal(theirs.grad)


@pytest.mark.parametrize("dim", [-1, 0])
def test_first_and_second_derivatives(dim):
    given = rows(4, 3, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda one: unit_length(one, dim), given, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(lambda one: unit_length(one, dim), given)


def test_derivatives_of_functions():
    def cubes(one):
        return (unit_length(one) ** 3).sum()

    given = rows(4, 3, dtype=torch.float64)
    by_rows = torch.func.vmap(torch.func.grad(cubes))(given[:, None])[:, 0]
    torch.testing.assert_close(by_rows, torch.func.grad(cubes)(given))
    forward, reverse = (
        turn(torch.func.grad(cubes))(given) for turn in (torch.func.jacfwd, torch.func.jacrev)
    )
    torch.testing.assert_close(forward, reverse)


def test_rows_without_numbers_stay():
    assert unit_length(torch.zeros(3, 0, requires_grad=True)).shape == (3, 0)


def test_half_precision_becomes_float32():
    given = rows(3, 4).bfloat16().requires_grad_()
    out = unit_length(given)
    out.sum().backward()
    assert out.dtype == torch.float32
    assert given.grad.dtype == torch.bfloat16
