"""The processes of a run: which part of a batch is whose, and what they tell one another.

A batch is that of all processes, in one order: the first process has its first rows, and so on. What a
step computes of its own rows is gathered, so that every process looks up what one process alone would.
"""

import json
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as network

from querykey.errors import RangeError, ShapeError

__all__ = ["ALONE", "Processes", "current_processes"]

Plain = TypeVar("Plain")


@dataclass(frozen=True)
class Processes:
    """This process among those of torch.distributed's default group; one alone asks nobody.

    All processes must call the same methods in the same order.

    Args:
        rank: Number of this process, from 0.
        count: How many there are, at least 1.

    Raises:
        RangeError: If there is no such process.

    Example:
        >>> [Processes(rank, 4).part(10) for rank in range(4)]
        [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None), slice(8, 10, None)]
    """

    rank: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise RangeError(f"process {self.rank} of {self.count} does not exist; the first has number 0")

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def part(self, rows: int) -> slice:
        """The rows of a batch that this process computes: consecutive; sizes differ by one at the most.

        Args:
            rows: Of the whole batch; the first processes have one more where they do not divide.

        Returns:
            Where they begin and end.
        """
        size, more = divmod(rows, self.count)
        start = self.rank * size + min(self.rank, more)
        return slice(start, start + size + (self.rank < more))

    def gather(self, own: Tensor, rows: int) -> Tensor:
        r"""The rows of all processes, in order, on every one of them.

        The loss is a sum over the processes, and each has its own part of it: so what comes back to the own
        rows is the sum over processes *r* of what each of their parts sends there,

        .. math:: \frac{\partial L}{\partial z_\text{own}}
                  = \sum_r \frac{\partial L_r}{\partial z_\text{own}}

        Args:
            own: [rows of `part(rows)`, ...], of one dtype and otherwise one shape everywhere.
            rows: Of the whole batch.

        Returns:
            [rows, ...], with gradient where `own` has one; on one process `own` itself.

        Raises:
            ShapeError: If `own` has another number of rows.
        """
        part = self.part(rows)
        if len(own) != part.stop - part.start:
            raise ShapeError(
                f"process {self.rank} of {self.count} has {len(own)} rows of {rows}, and its part are "
                f"{part.stop - part.start}; give each process its part of the batch, and ids of all of it"
            )
        if self.count == 1:
            return own
        gathered: Tensor = _Gather.apply(own, rows, self)
        return gathered

    def sum(self, value: Tensor) -> Tensor:
        """The sum of what each process has, without gradient; the same bits on all.

        Args:
            value: Of one shape and dtype everywhere.

        Returns:
            A new tensor; on one process the value itself, detached.
        """
        if self.count == 1:
            return value.detach()
        total = value.detach().clone(memory_format=torch.contiguous_format)
        network.all_reduce(total)
        return total

    def from_first(self, value: Plain) -> Plain:
        """What the first process has.

        Args:
            value: Of what JSON can write; numbers keep their bits.

        Returns:
            The first process's, on every process.
        """
        if self.count == 1:
            return value
        written = json.dumps(value).encode() if self.is_first else b""
        device = _device()
        length = torch.tensor([len(written)], device=device)
        network.broadcast(length, src=0)
        text = torch.zeros(int(length), dtype=torch.uint8, device=device)
        if self.is_first:
            text.copy_(torch.frombuffer(bytearray(written), dtype=torch.uint8))
        network.broadcast(text, src=0)
        found: Plain = json.loads(bytes(text.cpu().tolist()))
        return found


ALONE = Processes()


def current_processes() -> Processes:
    """The processes that torch.distributed runs.

    Returns:
        This one among them; `ALONE` where it does not run.

    Example:
        >>> current_processes() == ALONE
        True
    """
    if not (network.is_available() and network.is_initialized()):
        return ALONE
    return Processes(network.get_rank(), network.get_world_size())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: int, processes: Processes) -> Tensor:
        ctx.part, ctx.processes = processes.part(rows), processes
        # gloo gathers parts of one size alone: each is filled up to that of the first, the largest
        most, is_even = -(-rows // processes.count), rows % processes.count == 0
        filled = own.contiguous() if is_even else own.new_zeros(most, *own.shape[1:])
        if not is_even:
            filled[: len(own)] = own
        every = own.new_empty(processes.count * most, *own.shape[1:])
        network.all_gather_into_tensor(every, filled)
        if is_even:
            return every
        parts = [Processes(rank, processes.count).part(rows) for rank in range(processes.count)]
        return torch.cat(
            [one[: part.stop - part.start] for one, part in zip(torch.split(every, most), parts, strict=True)]
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.processes.sum(gradients[0])[ctx.part], None, None


def _device() -> torch.device:
    """Where values have to be for the default group: NCCL knows accelerators alone."""
    return torch.device("cuda" if network.get_backend() == "nccl" else "cpu")
