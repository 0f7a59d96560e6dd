"""Processes that meet over gloo, for the tests of what they do together."""

import multiprocessing
import os
import socket
import sys
import traceback
from importlib import import_module
from pathlib import Path

import torch
from torch import distributed

from querykey.cli.main import main
from querykey.distributed.process_group import current_process_group
from querykey.encoders.norm.sync_batchnorm import GlobalBatchNorm

SECONDS = 300
ROWS = torch.arange(10.0, dtype=torch.float64).view(5, 2)


def together(target, count, folder, *args):
    """Run `module:function` in so many processes; it gets them, then `args`.

    What each gives, a dict of tensors by name, is returned in their order.
    """
    context = multiprocessing.get_context("forkserver")  # torch is imported once, for all of them
    # torch._dynamo is what the first optimiser imports: half of what a process would do
    context.set_forkserver_preload(["process_toys", "torch._dynamo", target.split(":")[0]])
    folder.mkdir(parents=True, exist_ok=True)
    members = [
        context.Process(target=_run, args=(target, rank, count, str(folder), args)) for rank in range(count)
    ]
    for member in members:
        member.start()
    try:
        for member in members:
            member.join(SECONDS)
    finally:
        for member in members:
            if member.is_alive():
                member.kill()
    faults = [error.read_text() for rank in range(count) if (error := folder / f"{rank}.txt").exists()]
    assert [member.exitcode for member in members] == [0] * count, "\n".join(faults) or "no one answered"
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def commanded(words, count, folder, environment):
    """Run a command in so many processes, as torchrun does, but without importing torch in each of them.

    Their exit codes and what they wrote are returned.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]),
                   "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}  # fmt: skip
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["process_toys", "torch._dynamo"])
    folder.mkdir(parents=True)
    members = [
        context.Process(target=_command, args=([*map(str, words)], rank, str(folder), environment | meeting))
        for rank in range(count)
    ]
    for member in members:
        member.start()
    for member in members:
        member.join(SECONDS)
    codes = [member.exitcode for member in members]
    for member in members:
        if member.is_alive():
            member.kill()
    return codes, "".join((folder / f"{rank}.txt").read_text() for rank in range(count))


def _command(words, rank, folder, environment):
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    with Path(folder, f"{rank}.txt").open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = ["querykey", *words]
    main()


def distance(found, wanted):
    """The largest difference, relative to the largest number."""
    if not found.is_floating_point():
        return float(not torch.equal(found, wanted))
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6)) if found.numel() else 0.0


def _run(target, rank, count, folder, args):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count
    )
    module, _, name = target.partition(":")
    try:
        given = getattr(import_module(module), name)(current_process_group(), *args)
        torch.save(given, f"{folder}/{rank}.pt")
    except BaseException:
        with Path(folder, f"{rank}.txt").open("w") as file:
            file.write(f"process {rank}: {traceback.format_exc()}")
        raise
    distributed.destroy_process_group()


def exchange(processes):
    """What two processes tell one another."""
    rank = processes.rank
    own = ROWS[processes.local_slice(5)].clone().requires_grad_()
    every = processes.all_gather_with_grad(own, 5)
    # process r weighs row i by (i + 1) * 10 ** r
    weights = torch.arange(1.0, 6.0).double()[:, None] * 10**rank
    (every * weights).sum().backward()
    even = processes.all_gather_with_grad(torch.tensor([rank, rank + 10]), 4)
    tenth = 0.1 + rank
    first = processes.broadcast_object(
        {"steps": 7 + rank, "rate": tenth, "kind": "bfloat16" if rank == 0 else None}
    )
    before = torch.full((3,), tenth)
    return {
        "every": every.detach(), "gradient": own.grad, "even": even, "sum": processes.sum(before),
        "before": before, "flags": processes.sum(torch.tensor([rank, 1])),
        "first": torch.tensor([first["steps"], first["rate"]], dtype=torch.float64),
        "kind": torch.tensor(first["kind"] == "bfloat16"),
        "empty": processes.all_gather_with_grad(torch.ones(1 - rank), 1),
        "none": torch.tensor(processes.broadcast_object(None if rank == 0 else 3) is None),
    }  # fmt: skip


def normed(norm, rows, part=slice(None)):
    """What a norm makes of its part of some rows in two steps, and what flows back."""
    out = {}
    for step in range(2):
        own = (rows[part] * (step + 1) + step).clone().requires_grad_()
        made = norm(own)
        places = torch.arange(made.numel() // len(made) * len(rows), dtype=rows.dtype).view(rows.shape)[part]
        (made**3 * (places + 1).cos()).sum().backward()
        out[f"rows {step}"], out[f"gradient {step}"] = made.detach(), own.grad
    state = {f"state {key}": value for key, value in norm.state_dict().items()}
    return out | {f"weight {key}": weight.grad for key, weight in norm.named_parameters()} | state


NORMS = {
    "maps": (5, {"momentum": None}), "columns": (7, {"affine": False}), "one row each": (2, {}),
    "no running statistics": (5, {"track_running_stats": False}),
}  # fmt: skip


def rows_of(name):
    """Rows for one of `NORMS`, far from 0 in one channel."""
    shape = (NORMS[name][0], 2, *([3, 2] if name == "maps" else []))
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn[:, 1] += 1000
    return drawn


def norms(processes):
    """The part of a process in every norm, with weights that differ from 1 and 0."""
    found = {}
    for name, (count, options) in NORMS.items():
        norm = GlobalBatchNorm(2, **options).double()
        for place, weight in enumerate(norm.parameters()):
            torch.nn.init.constant_(weight, 0.5 + place)
        given = normed(norm, rows_of(name), processes.local_slice(count))
        found |= {f"{name}: {key}": value for key, value in given.items()}
    return found | exchange(processes)
