"""The batch size and memory layout of a frozen model, measured before a run and recorded in it."""

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
_GAIN, _PATIENCE = 1.05, 2
_DTYPE_GAIN = 1.2
_SECONDS_A_BATCH = 0.75
_SECONDS_IN_ALL = 3.0


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Batch size and memory layout.

    Both change the speed, and the features only by rounding (about 1e-6 of their size), so neither is part of
    the key of a model.

    Args:
        batch_size: Items per forward pass, >= 1.
        channels_last: Whether images are in the channels-last memory format.
    """

    batch_size: int = 32
    channels_last: bool = False


def measure_plan(
    model: FrozenModel,
    items: Sequence[Any],
    *,
    dtype: torch.dtype,
    batch_size: int | None = None,
    lengths: Sequence[int] = (),
) -> BatchPlan:
    """Measure the layout and the batch size with the most items per second.

    The layout is the faster of two on four items. The batch size is doubled from 8 to 256 until two sizes in
    a row have not raised the rate by 5%, while a batch takes less than 0.75 s and fits into memory, for at
    most about 3 s. The smallest that comes within 5% of the highest rate is taken.

    Args:
        model: The model.
        items: Some prepared items; repeated if a batch needs more.
        dtype: Of the computation.
        batch_size: If given, only the layout is measured.
        lengths: Of items that are batched by length, the longest first: larger batches have more padding.

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

    rates: dict[int, float] = {}
    size, since = _SMALLEST, 0
    while size <= _LARGEST and since < _PATIENCE:
        try:
            seconds = _seconds(model, _repeated(items, size), dtype, channels_last=layout)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        rate = size / seconds / _padding(lengths, size)
        since = 0 if rate >= _GAIN * max(rates.values(), default=0.0) else since + 1
        rates[size] = rate
        if seconds > _SECONDS_A_BATCH or time.perf_counter() - started > _SECONDS_IN_ALL:
            break
        size *= 2
    enough = max(rates.values(), default=0.0) / _GAIN
    best = next((size for size, rate in rates.items() if rate >= enough), _SMALLEST)
    return BatchPlan(batch_size=best, channels_last=layout)


def _padding(lengths: Sequence[int], size: int) -> float:
    """Length of the rows of all batches, each as long as its longest, by the length of the items."""
    whole = sum(lengths)
    batches = (lengths[start : start + size] for start in range(0, len(lengths), size))
    return sum(batch[0] * len(batch) for batch in batches) / whole if whole else 1.0


def faster_dtype(model: FrozenModel) -> torch.dtype:
    """bfloat16 if two blank items are faster in it, else float32.

    Args:
        model: The model.

    Returns:
        torch.bfloat16 if it is at least 20% faster.
    """
    if model.fixed_dtype:
        return torch.float32
    pair = [model.prepare(model.blank())] * 2
    times = [_time(model, pair, dtype, channels_last=False) for dtype in (torch.float32, torch.bfloat16)]
    return torch.bfloat16 if times[1] * _DTYPE_GAIN < times[0] else torch.float32


def _repeated(items: Sequence[Any], size: int) -> list[Any]:
    return [items[place % len(items)] for place in range(size)]


def _time(model: FrozenModel, batch: list[Any], dtype: torch.dtype, *, channels_last: bool) -> float:
    """Seconds of the second run; the first one loads the kernels."""
    _seconds(model, batch, dtype, channels_last=channels_last)
    return _seconds(model, batch, dtype, channels_last=channels_last)


def _seconds(model: FrozenModel, batch: list[Any], dtype: torch.dtype, *, channels_last: bool) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        # copying to the CPU waits for the device
        model.forward(batch, dtype=dtype, channels_last=channels_last).cpu()
    return time.perf_counter() - started
