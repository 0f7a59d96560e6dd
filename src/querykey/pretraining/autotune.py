"""What a step costs here, measured before the first one: precision, memory layout, number of steps."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup

__all__ = ["Calibration", "calibrate", "steps_in"]

Layout = Literal["contiguous", "channels_last"]
TRIALS, WARM_UP = 3, 1
STEADY_SECONDS, STEADY_TRIALS = 4.0, 40
CLEARLY_FASTER = 0.97
BUSY = 0.98
"""Share of the time that is planned: the rest is for writing and for a machine that is not quite alone."""


@dataclass(frozen=True)
class Calibration:
    """What was chosen.

    Args:
        precision: "float32" or "bfloat16".
        layout: "contiguous" or "channels_last".
        seconds: Of a whole step, views included: the middle of several.
        tried: Seconds of every choice that was tried.
    """

    precision: Literal["float32", "bfloat16"]
    layout: Layout
    seconds: float
    tried: dict[str, float]


def calibrate(
    step: Callable[[torch.dtype, Layout], None],
    *,
    precision: Literal["auto", "float32", "bfloat16"],
    layout: Literal["auto", "contiguous", "channels_last"],
    device: torch.device,
    is_length_open: bool = True,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Calibration:
    """Measure whole steps on a copy of what is trained, and choose the fastest way to take them.

    Args:
        step: Takes one step with this precision and layout, on something that is thrown away.
        precision: "auto" tries bfloat16 where the device multiplies it faster than float32.
        layout: "auto" tries both.
        device: Where steps run.
        is_length_open: Whether the number of steps follows from their seconds: they are measured longer then.
        processes: That take each step together; the times of the first count for all.

    Returns:
        The choice; of two that differ by less than 3% the plainer one.
    """
    precisions = [precision] if precision != "auto" else ["float32"]
    if precision == "auto" and processes.broadcast_object(_has_fast_bfloat16(device)):
        precisions.append("bfloat16")
    layouts: list[Layout] = ["contiguous", "channels_last"] if layout == "auto" else [layout]
    tried: dict[str, float] = {}
    best: tuple[float, Literal["float32", "bfloat16"], Layout] | None = None
    for kind in precisions:
        for order in layouts:
            seconds = _seconds(lambda k=kind, o=order: step(_DTYPES[k], o), device, processes)  # type: ignore[misc]
            tried[f"{kind} {order}"] = seconds
            if best is None or seconds < CLEARLY_FASTER * best[0]:
                best = (seconds, kind, order)  # type: ignore[assignment]
    assert best is not None
    steady, chosen, order = best
    if is_length_open:
        steady = _steady(lambda: step(_DTYPES[chosen], order), device, processes)
    return Calibration(chosen, order, steady, tried)


def steps_in(seconds: float, *, step: float, look: float, looks: int) -> int:
    """How many steps fit into a time, at least 1.

    Args:
        seconds: The time there is.
        step: Seconds of a step.
        look: Seconds that the monitors take for one look.
        looks: How often they look.

    Returns:
        Steps.
    """
    return max(1, int((BUSY * seconds - look * looks) / step))


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _seconds(step: Callable[[], None], device: torch.device, processes: ProcessGroup) -> float:
    for _ in range(WARM_UP):
        step()
    return statistics.median(processes.broadcast_object(_time(step, device)) for _ in range(TRIALS))


def _steady(step: Callable[[], None], device: torch.device, processes: ProcessGroup) -> float:
    """The mean of enough steps to see what a run will see, noise included."""
    times: list[float] = []
    while sum(times) < STEADY_SECONDS and len(times) < STEADY_TRIALS:
        times.append(processes.broadcast_object(_time(step, device)))
    return statistics.mean(sorted(times)[: max(1, round(0.9 * len(times)))])


def _time(step: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a product of matrices is faster in bfloat16: without the hardware it is 100 times slower."""
    products = {}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.ones(256, 256, dtype=dtype, device=device)
        products[dtype] = min(_time(lambda s=square: s @ s, device) for _ in range(3))  # type: ignore[misc]
    return products[torch.bfloat16] < products[torch.float32]
