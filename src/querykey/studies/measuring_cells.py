"""A cell of a study to what measures it."""

import time
from typing import Any

import torch

from querykey.records import versions
from querykey.studies.grid import Cell
from querykey.studies.measuring_adapters import measure_adapter
from querykey.studies.measuring_encoders import measure_encoder
from querykey.training.leakage import probe_leakage

__all__ = ["LEAK", "measure"]

LEAK = "own key in noise"


def measure(cell: Cell) -> dict[str, Any]:
    """Measure a cell, whatever its arm is.

    Args:
        cell: With a `Work`.

    Returns:
        Its record but for the key.
    """
    match cell.work.arm.kind:
        case "adapter" | "baseline":
            return measure_adapter(cell)
        case "leak":
            return _measure_leak(cell)
        case _:
            return measure_encoder(cell)


def _measure_leak(cell: Cell) -> dict[str, Any]:
    """How often a query finds its key among noise, by batch statistics alone."""
    work, began = cell.work, time.monotonic()
    torch.set_num_threads(work.threads)
    found = probe_leakage(**work.arm.settings, seed=cell.seed)
    values = {LEAK: [round(found.accuracy * found.asked), found.asked]}
    seconds = time.monotonic() - began
    return {"values": values, "run": {"chance": found.chance}, "seconds": seconds, "versions": versions()}
