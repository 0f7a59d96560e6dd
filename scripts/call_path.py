"""Count the frames from the command to the loss, and the modules that a step and a run of pretraining enter.

python scripts/call_path.py [--list]

The network of the measured run is user-defined, `tiny_network` below: the layers of a network do not count.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from querykey import pretrain
from querykey.cli.pretrain import pretrain_source
from querykey.pretraining.learner import Learner

STEPS, IMAGES = 4, 60
TINY = {
    "method": "moco",
    "backbone": f"{__name__}:tiny_network",
    "head.dim": 8,
    "batch_size": 16,
    "views.size": 8,
    "views": "digits",
    "held_out": 12,
    "precision": "float32",
    "layout": "contiguous",
    "steps": STEPS,
    "num_evals": 1,
}
LOSS = ("querykey.losses.info_nce", "info_nce")
PACKAGE = "querykey"


def tiny_network() -> nn.Module:
    """One convolution with batch norm, pooled: [images, 1, height, width] to [images, 8]."""
    pooled = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), *pooled)


@dataclass
class Trace:
    """What a profiled call enters.

    Args:
        modules: Modules of the package of which a function was called.
        calls: (calling module, called module); frames of other packages between them are skipped.
        path: Functions of the package on the stack where the loss is entered, the outermost first.
    """

    modules: set[str] = field(default_factory=set)
    calls: set[tuple[str, str]] = field(default_factory=set)
    path: list[str] = field(default_factory=list)

    @property
    def both_ways(self) -> list[tuple[str, str]]:
        """Pairs of modules that call each other."""
        return sorted((one, other) for one, other in self.calls if one < other and (other, one) in self.calls)

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        """For `sys.setprofile`."""
        del argument
        name = _module(frame)
        if event != "call" or name is None:
            return
        above = [one for one in _stack(frame.f_back) if (found := _module(one)) is not None and found]
        self.modules.add(name)
        caller = _module(above[0]) if above else None
        if caller is not None and caller != name:
            self.calls.add((caller, name))
        if (name, frame.f_code.co_name) == LOSS:
            self.path = [f"{_module(one)}.{one.f_code.co_name}" for one in (*reversed(above), frame)]


def _module(frame: FrameType) -> str | None:
    """The module of the package that a frame runs a function of; None for imports and other packages."""
    name = str(frame.f_globals.get("__name__", ""))
    is_inside = name == PACKAGE or name.startswith(f"{PACKAGE}.")
    return name if is_inside and frame.f_code.co_name != "<module>" else None


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


@contextmanager
def profiled() -> Iterator[Trace]:
    """Record the calls of this thread in the context."""
    trace = Trace()
    before = sys.getprofile()
    sys.setprofile(trace.profile)
    try:
        yield trace
    finally:
        sys.setprofile(before)


def of_step(run: Callable[[], object]) -> Trace:
    """Trace the last step but one of a run; the last one is evaluated."""
    traces: list[Trace] = []
    original: Callable[..., Any] = Learner.training_step

    def traced(self: Learner, *given: Any, **options: Any) -> Any:
        with profiled() as trace:
            output = original(self, *given, **options)
        traces.append(trace)
        return output

    Learner.training_step = traced  # type: ignore[method-assign]
    try:
        run()
    finally:
        Learner.training_step = original  # type: ignore[method-assign]
    return traces[-2]


def of_run(folder: Path) -> Trace:
    """Trace a small run, from the public function on."""
    with profiled() as trace:
        pretrain(folder, **TINY)
    return trace


def of_command(folder: Path) -> Trace:
    """Trace a step of a small run, from the command on."""
    flat = [f"backbone={TINY['backbone']}", "views=digits", "views.size=8", f"head.dim={TINY['head.dim']}"]
    same = ("batch_size", "held_out", "precision", "layout", "steps", "num_evals")
    flat += [f"{name}={TINY[name]}" for name in same]

    def run() -> None:
        pretrain_source(folder.parent / "run", data=str(folder), method="moco", settings=flat)

    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        return of_step(run)


def write_images(folder: Path) -> Path:
    """A few small images in two classes."""
    drawn = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8), dtype=np.uint8)
    for number, pixels in enumerate(drawn):
        place = folder / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:03}.png")
    return folder


def measured() -> dict[str, Trace]:
    """The traces of a step, of a run, and of a step under the command."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = write_images(Path(folder) / "images")
        step = of_step(lambda: pretrain(images, **TINY))  # for the late imports
        return {"step": step, "run": of_run(images), "command": of_command(images)}


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the modules too")
    given = parser.parse_args()
    traces = measured()
    step, run = traces["step"], traces["run"]
    print(f"modules that one step of MoCo enters: {len(step.modules)}")
    print(f"modules that a small run enters: {len(run.modules)}")
    print(f"frames from the command to the loss: {len(traces['command'].path)}")
    for function in traces["command"].path:
        print(f"  {function}")
    print(f"pairs of modules that call each other in a step: {len(step.both_ways)}")
    for one, other in step.both_ways:
        print(f"  {one} <-> {other}")
    if given.list:
        for name, trace in (("step", step), ("run", run)):
            print(f"{name}:")
            for module in sorted(trace.modules):
                print(f"  {module}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
