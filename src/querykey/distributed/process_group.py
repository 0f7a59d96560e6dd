"""The processes of a run: which part of a batch is whose, and what they tell one another.

A batch is that of all processes, in one order: the first process has its first rows, and so on. What a
step computes of its local rows is gathered, so that every process looks up what one process alone would.
`default_torch_state` is the state of PyTorch in which a process computes, whatever its caller has set.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as network

from querykey.errors import RangeError, SecondDerivativeError, ShapeError

__all__ = [
    "SINGLE_PROCESS",
    "ProcessGroup",
    "current_process_group",
    "default_torch_state",
    "gather_full",
    "gather_rows",
    "in_default_torch_state",
    "processes_here",
    "shard",
    "shard_size",
]

Plain = TypeVar("Plain")
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of torch.distributed's default group; a single process needs no group.

    All processes must call the same methods in the same order.

    Args:
        rank: Number of this process, from 0.
        world_size: How many there are, at least 1.

    Raises:
        RangeError: If there is no such process.

    Example:
        >>> [ProcessGroup(rank, 4).local_slice(10) for rank in range(4)]
        [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None), slice(8, 10, None)]
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise RangeError(
                f"process {self.rank} of {self.world_size} does not exist; the first has number 0"
            )

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def local_slice(self, rows: int) -> slice:
        """The rows of a batch that this process computes: consecutive; sizes differ by one at the most.

        Args:
            rows: Of the whole batch; the first processes have one more where they do not divide.

        Returns:
            Where they begin and end.
        """
        size, more = divmod(rows, self.world_size)
        start = self.rank * size + min(self.rank, more)
        return slice(start, start + size + (self.rank < more))

    def all_gather_with_grad(self, local: Tensor, rows: int) -> Tensor:
        r"""The rows of all processes, in order, on every one of them.

        The loss is a sum over the processes, each of which computes its part. So the gradient of the local
        rows is the sum over processes *r* of the gradients of their parts,

        .. math:: \frac{\partial L}{\partial z_\text{local}}
                  = \sum_r \frac{\partial L_r}{\partial z_\text{local}}

        Args:
            local: [rows of `local_slice(rows)`, ...], of one dtype and otherwise one shape everywhere.
            rows: Of the whole batch.

        Returns:
            [rows, ...], with gradient where `local` has one; on one process `local` itself.

        Raises:
            ShapeError: If `local` has another number of rows.
        """
        if self.world_size == 1:
            return local
        part = self.local_slice(rows)
        if len(local) != part.stop - part.start:
            raise ShapeError(
                f"process {self.rank} of {self.world_size} has {len(local)} rows of {rows}, and its part are "
                f"{part.stop - part.start}; give each process its part of the batch, and ids of all of it"
            )
        gathered: Tensor = _Gather.apply(local, rows, self)
        return gathered

    def sum(self, value: Tensor) -> Tensor:
        """The sum of what each process has, without gradient; the same bits on all.

        Args:
            value: Of one shape and dtype everywhere.

        Returns:
            A new tensor; on one process the value itself, detached.
        """
        if self.world_size == 1:
            return value.detach()
        return self.sum_(value.detach().clone(memory_format=torch.contiguous_format))

    def sum_(self, value: Tensor) -> Tensor:
        """`sum` in place, for large tensors.

        Args:
            value: Contiguous, without gradient.

        Returns:
            The same tensor.
        """
        if self.world_size > 1:
            network.all_reduce(value)
        return value

    def total(self, local: Tensor) -> int:
        """How many rows all processes have together.

        Args:
            local: Those of this process.
        """
        if self.world_size == 1:
            return len(local)
        return int(self.sum(torch.tensor(len(local), device=local.device)))

    def sum_gradients_(self, optimizer: torch.optim.Optimizer) -> None:
        """Make each parameter's gradient the sum of what the processes have of it, in place.

        In one piece a dtype, after backward. torch's DistributedDataParallel sums from hooks while one
        forward pass runs back; a step here may run an encoder several times, in chunks, or without gradient.

        Args:
            optimizer: Of the same parameters in the same order everywhere. One that has no gradient on any
                process keeps none.
        """
        if self.world_size == 1:
            return
        kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    kinds.setdefault((parameter.device, parameter.dtype), []).append(parameter)
        for parameters in kinds.values():
            with_gradient = [parameter.grad is not None for parameter in parameters]
            given = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
            flags = given[0].new_tensor(with_gradient)
            flat = self.sum_(torch.cat([flags, *(one.reshape(-1) for one in given)]))
            flags, *summed = torch.split(flat, [len(parameters), *(one.numel() for one in given)])
            for parameter, local, is_there, gradient in zip(
                parameters, given, flags.tolist(), summed, strict=True
            ):
                if is_there:
                    parameter.grad = local.copy_(gradient.view_as(local))

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Put the first process's numbers in the place of this one's.

        Args:
            tensors: Of the same shapes in the same order everywhere.
        """
        if self.world_size == 1:
            return
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            network.broadcast(whole, src=0)
            tensor.detach().copy_(whole)

    def broadcast_object(self, value: Plain) -> Plain:
        """What the first process has.

        Args:
            value: Of what JSON can write; numbers keep their bits.

        Returns:
            The first process's, on every process.
        """
        return self._from(0, value)

    def distribute_jobs(self, jobs: Sequence[Callable[[], Plain]]) -> list[Plain]:
        """Do each of several jobs on one of the processes.

        Args:
            jobs: The same ones in the same order everywhere; what each gives is of what JSON can write.

        Returns:
            What all of them gave, on every process.
        """
        done = [job() if number % self.world_size == self.rank else None for number, job in enumerate(jobs)]
        return [self._from(number % self.world_size, value) for number, value in enumerate(done)]  # type: ignore[misc]

    def barrier(self) -> None:
        """Go on when all processes have come here."""
        if self.world_size > 1:
            network.barrier()

    def _from(self, source: int, value: Plain) -> Plain:
        if self.world_size == 1:
            return value
        written = json.dumps(value).encode() if self.rank == source else b""
        device = _device()
        length = torch.tensor([len(written)], device=device)
        network.broadcast(length, src=source)
        text = torch.zeros(int(length), dtype=torch.uint8, device=device)
        if self.rank == source:
            text.copy_(torch.frombuffer(bytearray(written), dtype=torch.uint8))
        network.broadcast(text, src=source)
        found: Plain = json.loads(bytes(text.cpu().tolist()))
        return found


SINGLE_PROCESS = ProcessGroup()


def current_process_group() -> ProcessGroup:
    """The processes that torch.distributed runs.

    Returns:
        This one among them; `SINGLE_PROCESS` where it does not run.

    Example:
        >>> current_process_group() == SINGLE_PROCESS
        True
    """
    if not (network.is_available() and network.is_initialized()):
        return SINGLE_PROCESS
    return ProcessGroup(network.get_rank(), network.get_world_size())


def processes_here() -> int:
    """How many processes of the run share this machine, its memory above all.

    Returns:
        What torchrun says; 1 where it says nothing.
    """
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if current_process_group().world_size > 1 else 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, rows: int, processes: ProcessGroup) -> Tensor:
        ctx.part, ctx.processes = processes.local_slice(rows), processes
        # gloo gathers parts of one size alone: each is filled up to that of the first, the largest
        most, is_even = -(-rows // processes.world_size), rows % processes.world_size == 0
        filled = local.contiguous() if is_even else local.new_zeros(most, *local.shape[1:])
        if not is_even:
            filled[: len(local)] = local
        every = local.new_empty(processes.world_size * most, *local.shape[1:])
        network.all_gather([*torch.split(every, most)], filled)  # into `every`: these are views
        if is_even:
            return every
        parts = [
            ProcessGroup(rank, processes.world_size).local_slice(rows) for rank in range(processes.world_size)
        ]
        return torch.cat(
            [one[: part.stop - part.start] for one, part in zip(torch.split(every, most), parts, strict=True)]
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            raise SecondDerivativeError
        return ctx.processes.sum(gradients[0])[ctx.part], None, None


def _device() -> torch.device:
    """Where values have to be for the default group: NCCL knows accelerators alone."""
    return torch.device("cuda" if network.get_backend() == "nccl" else "cpu")


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
        >>> is_local, places = shard(torch.tensor([5, 2, 3, 7]), ProcessGroup(1, 2))
        >>> is_local.tolist(), places.tolist()
        ([True, False, True, True], [2, 1, 3])
    """
    if processes.world_size == 1:
        return slice(None), numbers
    local = numbers % processes.world_size == processes.rank
    return local, numbers[local] // processes.world_size


@torch.no_grad()
def gather_rows(stored: Tensor, numbers: Tensor, processes: ProcessGroup) -> Tensor:
    """Rows by their numbers, whichever process holds them; without gradient.

    Args:
        stored: This process's rows.
        numbers: The same on every process.
        processes: Over which the rows are sharded.

    Returns:
        [numbers, ...], a copy.
    """
    local, places = shard(numbers, processes)
    if processes.world_size == 1:
        return stored.index_select(0, places)
    found = stored.new_zeros(len(numbers), *stored.shape[1:])
    found[local] = stored[places]
    return processes.sum_(found)  # each row is non-zero on one process alone, so the sum copies it


def gather_full(stored: Tensor, rows: int, processes: ProcessGroup) -> Tensor:
    """All rows in the order of their numbers, on the first process alone, to be written down.

    Args:
        stored: This process's rows.
        rows: In all.
        processes: Over which they are sharded.

    Returns:
        [rows, ...] on the CPU, none on the others; on one process `stored` itself.
    """
    if processes.world_size == 1:
        return stored
    parts = [stored[:0].cpu()]
    for numbers in torch.split(torch.arange(rows, device=stored.device), BLOCK):
        part = gather_rows(stored, numbers, processes).cpu()
        if processes.is_main_process:
            parts.append(part)
    return torch.cat(parts)


@contextmanager
def default_torch_state() -> Iterator[None]:
    """Gradients on, float32 and the CPU as defaults, no autocast; restores the caller's state.

    Yields:
        Nothing.
    """
    dtype = torch.get_default_dtype()
    kinds = [kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.is_autocast_enabled(kind)]
    was = [(kind, torch.get_autocast_dtype(kind)) for kind in kinds]
    # a device context passes every operation of PyTorch through Python: enter it only where it is needed
    on_cpu = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
    with torch.inference_mode(mode=False), torch.enable_grad(), on_cpu:
        torch.set_default_dtype(torch.float32)
        for kind in kinds:
            torch.set_autocast_enabled(kind, False)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            for kind, autocast in was:
                torch.set_autocast_enabled(kind, True)
                torch.set_autocast_dtype(kind, autocast)


def in_default_torch_state(function: _Function) -> _Function:
    """Run a function in `default_torch_state`."""

    @wraps(function)
    def wrapped(*args: Any, **given: Any) -> Any:
        with default_torch_state():
            return function(*args, **given)

    return cast("_Function", wrapped)
