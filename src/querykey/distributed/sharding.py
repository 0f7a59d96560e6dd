"""Rows that are dealt out over processes one by one: row i is with process i mod N."""

import torch
from torch import Tensor

from querykey.distributed.process_group import Processes

__all__ = ["deal", "dealt", "rows_of_dealt", "whole_of_dealt"]

BLOCK = 65_536
"""Rows that are collected at a time: no process but the first ever holds all."""


def dealt(rows: int, processes: Processes) -> int:
    """How many of some rows this process holds.

    Args:
        rows: In all.
        processes: Among which they are dealt.

    Example:
        >>> [dealt(10, Processes(rank, 4)) for rank in range(4)]
        [3, 3, 2, 2]
    """
    return len(range(processes.rank, rows, processes.count))


def deal(numbers: Tensor, processes: Processes) -> tuple[Tensor | slice, Tensor]:
    """Which of some rows are this process's, and where it has them.

    Args:
        numbers: Of the rows, the same on every process.
        processes: Among which they are dealt.

    Returns:
        (which of `numbers`, their places among all rows that it holds).

    Example:
        >>> own, places = deal(torch.tensor([5, 2, 3, 7]), Processes(1, 2))
        >>> own.tolist(), places.tolist()
        ([True, False, True, True], [2, 1, 3])
    """
    if processes.count == 1:
        return slice(None), numbers
    own = numbers % processes.count == processes.rank
    return own, numbers[own] // processes.count


@torch.no_grad()
def rows_of_dealt(held: Tensor, numbers: Tensor, processes: Processes) -> Tensor:
    """Rows by their numbers, whichever process holds them; without gradient.

    Args:
        held: This process's rows.
        numbers: The same on every process.
        processes: Among which the rows are dealt.

    Returns:
        [numbers, ...], a copy.
    """
    own, places = deal(numbers, processes)
    if processes.count == 1:
        return held.index_select(0, places)
    found = held.new_zeros(len(numbers), *held.shape[1:])
    found[own] = held[places]
    return processes.sum_(found)  # nobody else has anything but zeros there


def whole_of_dealt(held: Tensor, rows: int, processes: Processes) -> Tensor:
    """All rows in the order of their numbers, on the first process alone, to be written down.

    Args:
        held: This process's rows.
        rows: In all.
        processes: Among which they are dealt.

    Returns:
        [rows, ...] on the CPU, none on the others; on one process `held` itself.
    """
    if processes.count == 1:
        return held
    parts = [held[:0].cpu()]
    for numbers in torch.split(torch.arange(rows, device=held.device), BLOCK):
        part = rows_of_dealt(held, numbers, processes).cpu()
        if processes.is_first:
            parts.append(part)
    return torch.cat(parts)
