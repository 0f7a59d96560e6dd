"""The dtype in which this machine multiplies matrices fastest, float32 or bfloat16."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from querykey.io.measured import is_clearly_faster, processor, recall, remember

__all__ = ["fast_dtype", "remembered_dtype", "remembered_fast_dtype"]

WORTH_ROUNDING = 0.7
"""The fraction of the time of a float32 product below which rounding the rows pays off."""


@lru_cache(maxsize=1)
def fast_dtype() -> torch.dtype:
    """bfloat16 where this machine multiplies it clearly faster than float32, else float32.

    Measured once a process, in some milliseconds. For results that have the same bits either way, as
    those of `nearest` and `knn_predict`.
    """
    rows, keys = torch.ones(256, 384), torch.ones(2048, 384)
    rounded_rows, rounded_keys = rows.bfloat16(), keys.bfloat16()
    is_faster = is_clearly_faster(
        lambda: rounded_rows @ rounded_keys.T, lambda: rows @ keys.T, fraction=WORTH_ROUNDING
    )
    return torch.bfloat16 if is_faster else torch.float32


def remembered_fast_dtype() -> torch.dtype:
    """`fast_dtype` as it was measured first on this machine, for results whose bits depend on it."""
    return remembered_dtype("dtype of large products", lambda: fast_dtype() == torch.bfloat16)


def remembered_dtype(choice: str, is_faster: Callable[[], bool], **conditions: Any) -> torch.dtype:
    """A choice between bfloat16 and float32 that is measured once a machine.

    Args:
        choice: What is chosen.
        is_faster: Measures whether bfloat16 is clearly faster.
        **conditions: JSON values that the choice depends on, besides the machine.

    Returns:
        bfloat16 or float32; the same in every process with this processor, version of torch and number of
        threads, as long as the cache can be written (`querykey.io.measured`).
    """
    machine = {
        "choice": choice,
        "processor": processor(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }
    found = recall(machine | conditions)
    if found not in ("float32", "bfloat16"):
        found = "bfloat16" if is_faster() else "float32"
        remember(machine | conditions, found)
    return torch.bfloat16 if found == "bfloat16" else torch.float32
