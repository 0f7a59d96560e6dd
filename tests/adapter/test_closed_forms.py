"""Closed forms: each against plain algebra, and each where the data are made for it to win."""

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from torch.nn import functional as F

from querykey.adapter.closed_forms import (
    discriminant,
    low_rank,
    principal_components,
    procrustes,
    ridge,
    soft_whitening,
)
from querykey.evaluation.moments import class_moments, moments, pair_moments

WIDTH = 12


def unit(rows):
    return F.normalize(rows.double(), dim=1)


def drawn(n, width=WIDTH, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def rows():
    return drawn(300) * torch.linspace(0.3, 2, WIDTH) + 0.4


def test_moments_are_those_of_numpy_and_add_up(rows):
    every = moments(rows)
    expected = EmpiricalCovariance().fit(unit(rows).numpy())
    np.testing.assert_allclose(every.covariance.numpy(), expected.covariance_, atol=1e-12)
    np.testing.assert_allclose(every.mean.numpy(), unit(rows).mean(0).numpy(), atol=1e-12)
    held_out = torch.arange(0, 300, 3)
    rest = torch.arange(300)[~torch.isin(torch.arange(300), held_out)]
    left, alone = every - moments(rows, held_out), moments(rows, rest)
    assert left.count == alone.count == 200
    torch.testing.assert_close(left.covariance, alone.covariance, atol=1e-12, rtol=0)


def test_weighted_rows_count_as_often_as_they_are_there(rows):
    weights = torch.arange(300) % 3
    repeated = torch.repeat_interleave(rows, weights, dim=0)
    one, other = moments(rows, weights=weights.double()), moments(repeated)
    assert one.count == other.count
    torch.testing.assert_close(one.products, other.products, atol=1e-10, rtol=0)


def test_within_covariance_is_the_pooled_one(rows):
    labels = torch.arange(300) % 7
    labels[:5] = torch.tensor([-1, -1, 7, 8, 8])
    scatter, degrees = torch.zeros(WIDTH, WIDTH, dtype=torch.float64), 0
    for label in range(9):
        own = unit(rows)[labels == label]
        scatter += (own - own.mean(0)).T @ (own - own.mean(0))
        degrees += len(own) - 1
    found = class_moments(rows, labels, 9)
    assert found.degrees == degrees
    torch.testing.assert_close(found.within, scatter / degrees, atol=1e-12, rtol=0)


def test_full_whitening_gives_all_directions_equal_variance(rows):
    form = soft_whitening(moments(rows), WIDTH, power=1.0)
    moved = unit(rows) @ form.weight.T + form.bias
    covariance = moved.T @ moved / len(moved)
    torch.testing.assert_close(covariance / covariance[0, 0], torch.eye(WIDTH).double(), atol=1e-6, rtol=0)


def test_power_0_is_centred_pca(rows):
    every = moments(rows)
    for dim in (3, WIDTH):
        one, other = soft_whitening(every, dim, power=0.0), principal_components(every, dim, centred=True)
        torch.testing.assert_close(one.weight, other.weight)
        torch.testing.assert_close(one.bias, other.bias)


def test_discriminants_solve_the_generalised_eigenproblem():
    """Without shrinkage the directions are scipy's, of the covariance between and within classes."""
    from scipy.linalg import eigh

    labels = torch.arange(600) % 4
    rows = drawn(600) + 2 * drawn(4, seed=1)[labels]
    found = class_moments(rows, labels, 4)
    form = discriminant(found, moments(rows), 3, shrinkage=1e-9)
    means = found.sums / found.counts[:, None]
    between = (means - means.mean(0)).T @ (means - means.mean(0)) / 4
    values, vectors = eigh(between.numpy(), found.within.numpy())
    b = values[::-1][:3] - 4 / 600
    expected = torch.from_numpy(np.sqrt(b / (1 + b))[:, None] * vectors.T[::-1][:3])
    cosines = F.cosine_similarity(form.weight, expected, dim=1).abs()
    torch.testing.assert_close(cosines, torch.ones(3).double(), atol=1e-6, rtol=0)
    lengths, wanted = form.weight.norm(dim=1), expected.norm(dim=1)
    torch.testing.assert_close(lengths / lengths[0], wanted / wanted[0], atol=1e-6, rtol=0)


def test_dimensions_beyond_the_discriminants_are_zero_unless_they_are_filled():
    labels = torch.arange(200) % 3
    rows = drawn(200) + 2 * drawn(3, seed=1)[labels]
    found, every = class_moments(rows, labels, 3), moments(rows)
    assert discriminant(found, every, 6, shrinkage=0.1).directions == 2
    assert discriminant(found, every, 6, shrinkage=0.1, fill=0.3).directions == 6


def pairs_of(turn, n=400, noise=0.01):
    queries = unit(drawn(n))
    documents = unit(queries @ turn.T + noise * drawn(n, seed=2).double())
    numbers = torch.arange(n)
    return queries, documents, pair_moments(queries, documents, numbers, numbers)


def test_procrustes_finds_the_rotation():
    turn = torch.linalg.qr(drawn(WIDTH, seed=3).double()).Q
    found = procrustes(pairs_of(turn)[2])
    torch.testing.assert_close(found.weight, turn, atol=0.02, rtol=0)
    torch.testing.assert_close(found.weight @ found.weight.T, torch.eye(WIDTH).double())


def test_ridge_is_least_squares_shrunk_to_the_identity():
    turn = torch.eye(WIDTH).double() + 0.3 * drawn(WIDTH, seed=3).double()
    queries, documents, of = pairs_of(turn)
    stacked = torch.cat([queries, 10.0**0.5 * torch.eye(WIDTH).double()])
    wanted = torch.cat([documents, 10.0**0.5 * torch.eye(WIDTH).double()])
    expected = torch.linalg.lstsq(stacked, wanted).solution.T
    torch.testing.assert_close(ridge(of, strength=10.0).weight, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(ridge(of, strength=1e9).weight, torch.eye(WIDTH).double(), atol=1e-5, rtol=0)


def test_low_rank_changes_no_more_directions_than_its_rank():
    turn = torch.eye(WIDTH).double() + 0.3 * drawn(WIDTH, seed=3).double()
    of = pairs_of(turn)[2]
    change = low_rank(of, strength=1.0, rank=2).weight - torch.eye(WIDTH)
    assert int(torch.linalg.matrix_rank(change, atol=1e-9)) == 2
    full = low_rank(of, strength=1.0, rank=WIDTH)
    torch.testing.assert_close(full.weight, ridge(of, strength=1.0).weight, atol=1e-9, rtol=0)
