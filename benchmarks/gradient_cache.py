"""The gradient of a batch in 8 chunks beside the gradient of the whole batch: memory and time.

Both are of the same encoder with batch norm and the same loss. Memory is the highest resident size
during one step, beyond what the process had before it, each in a process of its own.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from timing import Row, in_turns, median_ratio
from torch import Tensor
from torch.nn import functional as F

from querykey.encoders.backbones import make_backbone
from querykey.encoders.projection import ProjectionHead, ViewEncoder
from querykey.pretraining.chunked.gradient_cache import cached_backward

CASES = {"small_cnn": ("small_cnn", 1024), "ResNet-18, small stem": ("torchvision:resnet18", 256)}
"""Backbone and images of 32 x 32 pixels in the batch."""

CHUNKS, SIZE, REPEATS, WARM = 8, 32, 3, 16
MEMORY, TIME = 0.4, 2.0
WAYS = ("whole", "cached")


def loss_of(z: Tensor) -> Tensor:
    """Each row among all others, as in NT-Xent."""
    unit = F.normalize(z, dim=1)
    return ((unit @ unit.T) / 0.5).logsumexp(dim=1).mean() - (unit[::2] * unit[1::2]).sum(dim=1).mean()


def steps_of(spec: str, images: Tensor) -> dict[str, Callable[[], object]]:
    """Forward and backward, either way."""
    backbone = make_backbone(spec, channels=3, image_size=SIZE, seed=0)
    encoder = ViewEncoder(backbone, ProjectionHead(backbone.dim, seed=0))

    def whole(batch: Tensor = images) -> None:
        loss_of(encoder(batch)[1]).backward()

    def cached(batch: Tensor = images) -> None:
        cached_backward(encoder, batch.chunk(CHUNKS), loss_of)

    for step in (whole, cached):  # kernels and gradients have their memory from now on
        step(images[:WARM])
    return {"whole": whole, "cached": cached}


def some_images(count: int) -> Tensor:
    """Noise; what is in them costs nothing."""
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def peak_megabytes(spec: str, count: int, way: str) -> float:
    """Of one step in this process, by the kernel's own mark."""
    step = steps_of(spec, some_images(count))[way]
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def measured_apart(spec: str, count: int, way: str) -> float:
    """`peak_megabytes` in a new process."""
    threads = str(torch.get_num_threads())
    command = [sys.executable, __file__, spec, str(count), way, threads]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure() -> list[Row]:
    """Peak memory and time of the chunks by the whole batch's."""
    table = []
    for name, (spec, count) in CASES.items():
        peaks = {way: measured_apart(spec, count, way) for way in WAYS}
        ratio = peaks["cached"] / peaks["whole"]
        figures = {f"{way}_mb": round(peak) for way, peak in peaks.items()}
        what = f"{name}, batch {count}, {CHUNKS} chunks"
        table.append(Row(f"peak memory: {what}", ratio, f"at most {MEMORY:g}", ratio <= MEMORY, figures))
        seconds = in_turns(steps_of(spec, some_images(count)), REPEATS)
        ratio = median_ratio(seconds["cached"], seconds["whole"])
        figures = {f"{way}_ms": round(1000 * min(seconds[way])) for way in WAYS}
        table.append(Row(f"time: {what}", ratio, f"at most {TIME:g}", ratio <= TIME, figures))
    return table


if __name__ == "__main__":
    if len(sys.argv) > 1:
        torch.set_num_threads(int(sys.argv[4]))
        print(peak_megabytes(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
    else:
        for row in measure():
            print(row)
