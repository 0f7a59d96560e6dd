"""What the caller has set in PyTorch changes no fit."""

from contextlib import contextmanager

import pytest
import torch

from querykey import Adapter

ROWS = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 4


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("steps", [0, 5])
@pytest.mark.parametrize("state", STATES)
def test_a_fit_is_the_same_in_every_state(state, steps):
    expected = Adapter(dim=3, steps=steps, batch_size=32).fit(ROWS, LABELS).transform(ROWS)
    with STATES[state]():
        moved = Adapter(dim=3, steps=steps, batch_size=32).fit(ROWS, LABELS).transform(ROWS)
    assert moved.dtype == torch.float32
    assert moved.equal(expected)


def test_the_state_of_the_caller_comes_back():
    with default_dtype(torch.float64), torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(ValueError, match="NaN"):
            Adapter(dim=3, steps=0, batch_size=32).fit(ROWS * torch.nan)
        assert torch.get_default_dtype() == torch.float64
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")


def test_rows_made_in_inference_mode_are_fitted():
    with torch.inference_mode():
        rows = ROWS.clone()
    assert Adapter(dim=3, steps=5, batch_size=32).fit(rows, LABELS).transform(rows).shape == (64, 3)
