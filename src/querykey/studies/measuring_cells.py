"""A cell of a study to what measures it."""

from typing import Any

from querykey.studies.grid import Cell
from querykey.studies.measuring_adapters import measure_adapter
from querykey.studies.measuring_encoders import measure_encoder

__all__ = ["measure"]


def measure(cell: Cell) -> dict[str, Any]:
    """Measure a cell, whatever its arm is.

    Args:
        cell: With a `Work`.

    Returns:
        Its record but for the key.
    """
    if cell.work.arm.kind in ("adapter", "baseline"):
        return measure_adapter(cell)
    return measure_encoder(cell)
