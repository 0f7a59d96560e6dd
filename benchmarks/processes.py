"""Bytes that a process sends in a step of each method: what its sockets say, beside the formula.

With N processes a ring gathers T bytes by sending (N - 1) / N of T from each, and sums them by sending twice
that. In numbers of 4 bytes, B images, z of width d, P weights and C channels of running statistics (mean and
variance each count): a step sums P weights and, with batch norm of kind "device", C statistics; it gathers
z, and sums its gradient: 3 B d for each z that is looked up with gradient, B d for keys without. Shuffled
keys take all images of a view besides. A queue, bank or memory sends nothing, whatever it holds.
"""

import os
import socket
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch
from timing import Row
from torch import distributed
from torch.multiprocessing.spawn import spawn

from querykey.distributed.process_group import ProcessGroup, current_process_group
from querykey.pretraining.learner import Learner
from querykey.pretraining.methods.modules import make_encoder
from querykey.pretraining.methods.step import ViewPair
from querykey.pretraining.settings.methods import given_settings
from querykey.pretraining.settings.resolve import resolve_settings

COUNTS, STEPS, IMAGES, SIDE, ITEMS, MOST = (2, 4), 3, 32, 32, 9999, 1.01
WIDTH = 128
COMMON: dict[str, Any] = {
    "backbone": "small_cnn:32", "head.dim": WIDTH, "batch_size": IMAGES, "image_size": SIDE,
    "steps": STEPS + 1, "optimizer.learning_rate": 0.01, "precision": "float32", "layout": "contiguous",
}  # fmt: skip
SPLIT = {"batch_norm": "split", "batch_norm.groups": 8, "key_encoder.shuffle": True}
METHODS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "simclr": ("simclr", {}, 6, 0),
    "moco, shuffled": ("moco", {"dictionary.capacity": 4096, **SPLIT}, 4, 1),
    "moco, shuffled, symmetric": (
        "moco",
        {"dictionary.capacity": 4096, "key_encoder.symmetric": True, **SPLIT},
        8,
        2,
    ),
    "moco-v3": ("moco-v3", {"key_encoder.predictor_hidden": WIDTH}, 8, 0),
    "memory-bank": ("memory-bank", {}, 3, 0),
    "end-to-end": ("end-to-end", {}, 6, 0),
    "xbm": ("xbm", {"dictionary.capacity": 4096}, 3, 0),
}
"""Method, settings, rows of z that are sent an image, and views that are sent to be shuffled."""
ACKNOWLEDGED = 120
"""Where Linux's tcp_info has the bytes that a socket has sent and the other side has received."""


def measure() -> list[Row]:
    """A row a method and number of processes."""
    rows = []
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            spawn(_take, (count, folder), nprocs=count)
            found = torch.load(Path(folder, "sent.pt"), weights_only=True)
        for name, (sent, weights, statistics) in found.items():
            _, _, of_z, views = METHODS[name]
            pixels = 3 * SIDE**2
            numbers = 2 * (weights + statistics) + IMAGES * (of_z * WIDTH + views * pixels)
            expected = 4 * (count - 1) / count * numbers
            rows.append(
                Row(
                    f"{name}, {count} processes: bytes sent a step by the formula's", sent / expected,
                    f"at most {MOST:g}", sent / expected <= MOST,
                    {"bytes": round(sent), "formula_bytes": round(expected), "weights": weights},
                )
            )  # fmt: skip
    return rows


def _take(rank: int, count: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count
    )
    processes = current_process_group()
    found = {name: _of_method(name, processes) for name in METHODS}
    if processes.is_main_process:
        torch.save(found, f"{folder}/sent.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def _of_method(name: str, processes: ProcessGroup) -> tuple[float, int, int]:
    """Bytes that a process sends in a step, in the mean; weights; running statistics."""
    method, given, _, _ = METHODS[name]
    settings = resolve_settings(given_settings(method, **COMMON | given), images=ITEMS, channels=3, side=SIDE)
    encoder = make_encoder(settings, channels=3, processes=processes)
    learner = Learner(encoder, settings, torch.device("cpu"), items=ITEMS, processes=processes)
    before = 0.0
    for step in range(STEPS + 1):
        learner.training_step(step, _pair(step, processes))
        distributed.barrier()
        before = before if step else _sent()
    sent = torch.tensor([_sent() - before], dtype=torch.float64) / STEPS
    weights = sum(one.numel() for group in learner.optimizer.param_groups for one in group["params"])
    statistics = sum(one.numel() for key, one in learner.parts.named_buffers() if "running" in key)
    return float(processes.sum(sent)) / processes.world_size, weights, statistics


def _pair(step: int, processes: ProcessGroup) -> ViewPair:
    draw = torch.Generator().manual_seed(step)
    own = processes.local_slice(IMAGES)
    view_1, view_2 = (torch.randn(IMAGES, 3, SIDE, SIDE, generator=draw)[own] for _ in range(2))
    ids = torch.randperm(ITEMS, generator=draw)[:IMAGES]
    return ViewPair(view_1, view_2, ids, ids % 4, 0.0)


def _sent() -> int:
    """By all of this process's connections since they were made."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        if not entry.is_symlink() or not str(entry.readlink()).startswith("socket:"):
            continue
        with socket.socket(fileno=os.dup(int(entry.name))) as connection:
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, ACKNOWLEDGED + 8)
                total += struct.unpack_from("Q", told, ACKNOWLEDGED)[0]
    return total
