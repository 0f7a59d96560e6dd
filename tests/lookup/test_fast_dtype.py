"""Which dtype multiplies fastest is measured, and remembered where it changes bits."""

import torch

from querykey.lookup import fast_dtype as module

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


def pretend(monkeypatch, **seconds):
    module.fast_dtype.cache_clear()
    costs = {getattr(torch, name): cost for name, cost in seconds.items()}

    def compared(new, default, *, fraction):
        return costs[new().dtype] < fraction * costs[default().dtype]

    monkeypatch.setattr(module, "is_clearly_faster", compared)


def test_the_dtype_of_proposals_is_measured(monkeypatch):
    pretend(monkeypatch, float32=1.0, bfloat16=0.5)
    assert module.fast_dtype() == BFLOAT16
    pretend(monkeypatch, float32=1.0, bfloat16=0.9)
    assert module.fast_dtype() == FLOAT32
    module.fast_dtype.cache_clear()


def test_a_dtype_that_changes_bits_is_measured_once_a_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("QUERYKEY_CACHE", str(tmp_path))
    pretend(monkeypatch, float32=1.0, bfloat16=0.5)
    assert module.remembered_fast_dtype() == BFLOAT16
    pretend(monkeypatch, float32=1.0, bfloat16=0.9)  # under another load
    assert module.fast_dtype() == FLOAT32
    assert module.remembered_fast_dtype() == BFLOAT16
    monkeypatch.setenv("QUERYKEY_CACHE", str(tmp_path / "empty"))
    assert module.remembered_fast_dtype() == FLOAT32
    module.fast_dtype.cache_clear()
