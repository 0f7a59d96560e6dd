"""Rows that are sharded over processes one by one: row i is with process i mod N."""

import torch
from torch import Tensor

from querykey.distributed.process_group import ProcessGroup

__all__ = ["gather_full", "gather_rows", "shard", "shard_size"]

BLOCK = 65_536
"""Rows that are collected at a time: no process but the first ever holds all."""


def shard_size(rows: int, processes: ProcessGroup) -> int:
    """How many of some rows this process holds.

    Args:
        rows: In all.
        processes: Over which they are sharded.

    Example:
        >>> [shard_size(10, ProcessGroup(rank, 4)) for rank in range(4)]
        [3, 3, 2, 2]
    """
    return len(range(processes.rank, rows, processes.world_size))


def shard(numbers: Tensor, processes: ProcessGroup) -> tuple[Tensor | slice, Tensor]:
    """Which of some rows are this process's, and where it has them.

    Args:
        numbers: Of the rows, the same on every process.
        processes: Over which they are sharded.

    Returns:
        (which of `numbers`, their places among all rows that it holds).

    Example:
        >>> own, places = shard(torch.tensor([5, 2, 3, 7]), ProcessGroup(1, 2))
        >>> own.tolist(), places.tolist()
        ([True, False, True, True], [2, 1, 3])
    """
    if processes.world_size == 1:
        return slice(None), numbers
    own = numbers % processes.world_size == processes.rank
    return own, numbers[own] // processes.world_size


@torch.no_grad()
def gather_rows(held: Tensor, numbers: Tensor, processes: ProcessGroup) -> Tensor:
    """Rows by their numbers, whichever process holds them; without gradient.

    Args:
        held: This process's rows.
        numbers: The same on every process.
        processes: Over which the rows are sharded.

    Returns:
        [numbers, ...], a copy.
    """
    own, places = shard(numbers, processes)
    if processes.world_size == 1:
        return held.index_select(0, places)
    found = held.new_zeros(len(numbers), *held.shape[1:])
    found[own] = held[places]
    return processes.sum_(found)  # nobody else has anything but zeros there


def gather_full(held: Tensor, rows: int, processes: ProcessGroup) -> Tensor:
    """All rows in the order of their numbers, on the first process alone, to be written down.

    Args:
        held: This process's rows.
        rows: In all.
        processes: Over which they are sharded.

    Returns:
        [rows, ...] on the CPU, none on the others; on one process `held` itself.
    """
    if processes.world_size == 1:
        return held
    parts = [held[:0].cpu()]
    for numbers in torch.split(torch.arange(rows, device=held.device), BLOCK):
        part = gather_rows(held, numbers, processes).cpu()
        if processes.is_main_process:
            parts.append(part)
    return torch.cat(parts)
