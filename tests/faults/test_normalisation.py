"""Rows of any magnitude are scaled to length 1."""

import numpy as np
import pytest
import torch

from querykey import Adapter
from querykey.evaluation.baselines import fit_baselines
from querykey.lookup.nearest import nearest
from querykey.losses import nt_xent

ROWS = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("factor", [1e25, 1e-30])
def test_rows_of_any_magnitude_are_adapted_alike(factor):
    adapter = Adapter(dim=3, steps=0, batch_size=32).fit(ROWS.numpy())
    moved = adapter.transform((ROWS * factor).numpy())
    np.testing.assert_allclose(moved, adapter.transform(ROWS.numpy()), atol=1e-5)
    double = adapter.transform(ROWS.double().numpy() * 1e200)
    np.testing.assert_allclose(double, adapter.transform(ROWS.numpy()), atol=1e-5)


@pytest.mark.parametrize("factor", [1e25, 1e-30])
def test_rows_of_any_magnitude_are_found_and_projected_alike(factor):
    assert nearest(ROWS * factor, ROWS, 5)[1].equal(nearest(ROWS, ROWS, 5)[1])
    assert nearest(ROWS, ROWS * factor, 5)[1].equal(nearest(ROWS, ROWS, 5)[1])
    for one in fit_baselines(ROWS, 4).values():
        torch.testing.assert_close(one.transform(ROWS * factor), one.transform(ROWS), atol=1e-5, rtol=0)


def test_a_loss_of_large_rows_is_that_of_their_directions():
    loss = nt_xent(ROWS * 1e25, ROWS.flip(1) * 1e25, temperature=0.5)
    torch.testing.assert_close(loss, nt_xent(ROWS, ROWS.flip(1), temperature=0.5))
