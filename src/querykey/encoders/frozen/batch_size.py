"""How a model is run on this machine: measured once, before the run, and written into it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from querykey.encoders.frozen.model import FrozenModel
from querykey.errors import is_out_of_memory

__all__ = ["BatchPlan", "faster_dtype", "measure_plan"]

_SMALLEST, _LARGEST = 8, 256
_TRIED_ON = 4
_GAIN = 1.05
_DTYPE_GAIN = 1.2
_SECONDS_A_BATCH = 0.75
_SECONDS_IN_ALL = 3.0


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Batch size and memory layout.

    Both change how fast features come, and the features themselves by rounding alone (about
    1e-6 of their size), so neither is part of a model's key.

    Args:
        batch_size: Items a forward, >= 1.
        channels_last: Whether images lie in memory pixel by pixel.
    """

    batch_size: int = 32
    channels_last: bool = False


def measure_plan(
    model: FrozenModel, items: Sequence[Any], *, dtype: torch.dtype, batch_size: int | None = None
) -> BatchPlan:
    """Find the layout and the batch size that give the most items a second.

    The layout is the faster of two on four items. The batch doubles from 8 to 256 as
    long as the rate grows by a twentieth, a batch takes less than 0.75 s and it fits memory;
    3 s are spent at the most, but for the batch under way.

    Args:
        model: What runs.
        items: Some of the real items, prepared; repeated where a batch needs more.
        dtype: In which the model will run.
        batch_size: Given by the user; then only the layout is measured.

    Returns:
        The plan.
    """
    started = time.perf_counter()
    layout = False
    if model.has_layouts:
        few = _repeated(items, _TRIED_ON)
        plain, last = (_time(model, few, dtype, channels_last=how) for how in (False, True))
        layout = last * _GAIN < plain
    if batch_size is not None:
        return BatchPlan(batch_size=batch_size, channels_last=layout)

    size, best_size, best_rate = _SMALLEST, _SMALLEST, 0.0
    while size <= _LARGEST:
        try:
            seconds = _seconds(model, _repeated(items, size), dtype, channels_last=layout)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        rate = size / seconds
        if rate < _GAIN * best_rate:
            break
        best_size, best_rate = size, rate
        if seconds > _SECONDS_A_BATCH or time.perf_counter() - started > _SECONDS_IN_ALL:
            break
        size *= 2
    return BatchPlan(batch_size=best_size, channels_last=layout)


def faster_dtype(model: FrozenModel) -> torch.dtype:
    """bfloat16 where two blank items take less time in it, float32 elsewhere.

    Args:
        model: What runs.

    Returns:
        torch.bfloat16 only if it is at least a fifth faster.
    """
    if model.fixed_dtype:
        return torch.float32
    pair = [model.prepare(model.blank())] * 2
    times = [_time(model, pair, dtype, channels_last=False) for dtype in (torch.float32, torch.bfloat16)]
    return torch.bfloat16 if times[1] * _DTYPE_GAIN < times[0] else torch.float32


def _repeated(items: Sequence[Any], size: int) -> list[Any]:
    return [items[place % len(items)] for place in range(size)]


def _time(model: FrozenModel, batch: list[Any], dtype: torch.dtype, *, channels_last: bool) -> float:
    """The second run counts: the first one sets up the kernels."""
    _seconds(model, batch, dtype, channels_last=channels_last)
    return _seconds(model, batch, dtype, channels_last=channels_last)


def _seconds(model: FrozenModel, batch: list[Any], dtype: torch.dtype, *, channels_last: bool) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        # copying to the CPU waits for the device
        model.forward(batch, dtype=dtype, channels_last=channels_last).cpu()
    return time.perf_counter() - started
