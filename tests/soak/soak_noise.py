"""How often a fit says "better" of noise: 400 fits on labels and 400 on pairs."""

import os

import pytest
from adapter.test_fit import noise


@pytest.mark.parametrize("kind", ["labels", "pairs"])
def test_four_hundred_fits_to_noise_are_rarely_called_better(kind):
    """At most 29 of 400: at a rate of 5% more have probability 0.02, at 10% 0.97 (binomial)."""
    assert noise([kind], 400, jobs=os.cpu_count() or 1).get("better", 0) <= 29
