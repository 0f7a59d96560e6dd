"""How often a fit says "better" of noise: 130 fits on labels and 130 on pairs, 14 minutes of one core."""

import os

import pytest
from adapter.test_fit import noise


@pytest.mark.parametrize("kind", ["labels", "pairs"])
def test_many_fits_to_noise_are_rarely_called_better(kind):
    """At most 12 of 130: at a rate of 5% more have probability 0.014, at 15% 0.96 (binomial)."""
    assert noise([kind], 130, jobs=os.cpu_count() or 1).get("better", 0) <= 12
