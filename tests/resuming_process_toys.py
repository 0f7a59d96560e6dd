"""Runs that are stopped and gone on with by several processes, and one of them that dies."""

import os
import signal
import time
from pathlib import Path

import torch
from pretraining_toys import TINY, after

from querykey import pretrain
from querykey.pretraining import autotune
from querykey.runs.pretrain import resume

HERE = TINY | {
    "batch_size": 16, "views.size": 12, "held_out": 4, "num_evals": 1, "steps": 6, "method": "moco",
    "dictionary.capacity": 40, "dictionary.sharded": True, "batch_norm.groups": 4,
}  # fmt: skip


def stopped_and_whole(processes, folder, images):
    """The encoder's bytes of a run that was stopped after two steps, and of one that was not."""
    autotune.TRIALS = autotune.STEADY_TRIALS = 1
    one, other = Path(folder, "stopped"), Path(folder, "whole")
    # the last process alone is asked to stop, and all do
    is_last = processes.rank == processes.world_size - 1
    begun = pretrain(images, out=one, stop=after(2) if is_last else lambda: False, **HERE)
    assert not begun.is_finished
    assert begun.report["steps_taken"] == 2
    assert resume(one).is_finished
    assert pretrain(images, out=other, **HERE).folder == other
    files = ("encoder.safetensors", "checkpoints/step-000000006.safetensors")
    return {
        f"{kind} {file}": torch.frombuffer(bytearray((place / file).read_bytes()), dtype=torch.uint8)
        for kind, place in (("stopped", one), ("whole", other))
        for file in files
    }


def one_dies(processes, folder, images):
    """The last process is killed amid a step; the others' fault says so, in little time."""
    autotune.TRIALS = autotune.STEADY_TRIALS = 1
    is_last = processes.rank == processes.world_size - 1
    asked = after(3)

    def stop():
        if is_last and asked():
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    began = time.monotonic()
    try:
        pretrain(images, stop=stop, **HERE | {"steps": 10_000})
    except RuntimeError as error:
        Path(folder, f"fault-{processes.rank}").write_text(f"{time.monotonic() - began}\n{error}")
        os._exit(0)  # there is nobody left to part from
    return {}
