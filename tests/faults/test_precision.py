"""Second derivatives, half precision, exact ties, and numbers beyond float32."""

import math

import pytest
import torch

from querykey.errors import ConfigError, RangeError
from querykey.lookup.lookup import DensePairs, Lookup
from querykey.lookup.nearest import nearest, rough_cosines
from querykey.lookup.top_k import top_k
from querykey.losses import info_nce, nce, nce_normaliser, nt_xent, triplet

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(32, 16, generator=GENERATOR)
MINE = torch.eye(32, dtype=torch.bool)


@pytest.mark.parametrize("form", ["dense", "chunked"])
def test_second_derivatives_are_refused(form):
    rows = ROWS.clone().requires_grad_()
    for loss in (
        info_nce(Lookup(rows, ROWS, DensePairs(MINE, ~MINE)), temperature=0.5, form=form),
        nt_xent(rows, ROWS, temperature=0.5, form=form),
    ):
        with pytest.raises(ConfigError, match="asks for second derivatives"):
            torch.autograd.grad(loss.sum(), rows, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_both_forms_are_computed_in_float32(dtype):
    half = torch.nn.functional.normalize(ROWS, dim=1).to(dtype)
    lookup = Lookup(half, half, DensePairs(MINE, ~MINE))
    forms = [info_nce(lookup, temperature=0.05, form=form) for form in ("dense", "chunked")]
    torch.testing.assert_close(*forms)
    whole = Lookup(half.float(), half.float(), DensePairs(MINE, ~MINE))
    expected = [
        info_nce(whole, temperature=0.05), triplet(whole, mining="semi_hard", soft=True),
    ]  # fmt: skip
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = Lookup(half.float(), half.float(), DensePairs(MINE, ~MINE))
        found = [info_nce(again, temperature=0.05), triplet(again, mining="semi_hard", soft=True)]
    torch.testing.assert_close(found, expected)


def test_top_k_of_half_rows_is_that_of_their_numbers():
    queries, keys = (torch.randn(n, 64, generator=GENERATOR).half() for n in (50, 3000))
    every = torch.ones(50, 3000, dtype=torch.bool)
    found, expected = (
        top_k(Lookup(q, k, DensePairs(~every, every)), 10, "hard_negative")
        for q, k in ((queries, keys), (queries.float(), keys.float()))
    )
    assert found.equal(expected)


def test_an_exact_tie_is_not_semi_hard():
    row = torch.randn(1, 33, generator=GENERATOR)
    keys = torch.cat([row * 0.3, row[:, torch.randperm(33, generator=GENERATOR)] * 0.1, row * 0.3])
    positive = torch.tensor([[True, False, False]])
    lookup = Lookup(row, keys, DensePairs(positive, ~positive))
    assert top_k(lookup, 2, "semi_hard").tolist() == [[1, -1]]
    scores = torch.tensor([[0.1, 0.1]])
    tied = Lookup.from_scores(scores, torch.tensor([[True, False]]), torch.tensor([[False, True]]))
    for margin in (0.1, 0.2, 0.3, 0.7):
        assert triplet(tied, margin=margin, mining="semi_hard", soft=True).item() == 0.0


def test_the_normaliser_is_finite_at_low_temperatures():
    lookup = Lookup.from_scores(torch.tensor([[1.0, 0.0]]), MINE[:1, :2], ~MINE[:1, :2])
    found = nce_normaliser(lookup, temperature=0.005, items=1000)
    assert math.isclose(math.log(found), 200 + math.log(500), rel_tol=1e-6)
    cost = nce(lookup, temperature=0.005, normaliser=found, noise_items=1000)
    assert cost.isfinite().all()
    assert cost.equal(nce(lookup, temperature=0.005, normaliser=float(found), noise_items=1000))
    with pytest.raises(RangeError, match="beyond float64"):
        nce_normaliser(lookup, temperature=0.001, items=1000)


def test_keys_that_are_not_finite_are_never_found():
    keys = ROWS.clone()
    keys[3], keys[5, 0] = torch.nan, torch.inf
    for score in ("cosine", "dot"):
        _, index = nearest(ROWS, keys, 32, score=score)
        assert set(index[0].tolist()) == {*range(32), -1} - {3, 5}
    assert not torch.isin(rough_cosines(ROWS, keys, 20)[1], torch.tensor([3, 5])).any()
    assert nearest(keys[3:4], ROWS, 2)[1].tolist() == [[-1, -1]]


@pytest.mark.parametrize(("queries", "keys"), [(3, 0), (0, 5), (0, 0)])
def test_without_keys_nothing_is_found(queries, keys):
    """As where too few keys are eligible."""
    scores, index = nearest(ROWS[:queries], ROWS[:keys], 2)
    assert scores.tolist() == [[-torch.inf, -torch.inf]] * queries
    assert index.tolist() == [[-1, -1]] * queries
