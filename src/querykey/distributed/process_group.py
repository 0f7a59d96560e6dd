"""Process groups: slices of a batch, collective operations, and sharded rows.

A batch is sliced over the processes in order: the first process has the first rows. What a step computes from
local rows is gathered, so that each process looks up the same queries and keys as a single process would.
`default_torch_state` sets the state of PyTorch in which a process computes.
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
    """This process among those of torch.distributed's default group; or a single process without a group.

    All processes must call the same methods in the same order.

    Args:
        rank: Number of this process, from 0.
        world_size: How many there are, at least 1.

    Raises:
        RangeError: If rank is not below world_size.

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
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def local_slice(self, rows: int) -> slice:
        """The consecutive rows of a batch that this process computes; sizes differ by one at most.

        Args:
            rows: Of the batch of all processes. If it is not divisible, the first processes have one more.

        Returns:
            The slice.
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
            rows: Of the batch of all processes.

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
                f"process {self.rank} of {self.world_size} has {len(local)} rows of {rows}, and needs "
                f"{part.stop - part.start}; give each process its slice of the batch, and the ids of all rows"
            )
        gathered: Tensor = _Gather.apply(local, rows, self)
        return gathered

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes, without gradient; the same bits on all.

        Args:
            value: Of the same shape and dtype on all processes.

        Returns:
            A new tensor; on a single process the value, detached.
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
        """The number of rows of all processes.

        Args:
            local: The rows of this process.
        """
        if self.world_size == 1:
            return len(local)
        return int(self.sum(torch.tensor(len(local), device=local.device)))

    def sum_gradients_(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace each gradient by its sum over the processes, in place.

        One all_reduce per dtype, after backward. torch's DistributedDataParallel sums from hooks while one
        forward pass runs back; a step here may run an encoder several times, in chunks, or without gradient.

        Args:
            optimizer: With the same parameters in the same order on all processes. A parameter without
                gradient on every process stays without.
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
        """Copy tensors from the main process, in place.

        Args:
            tensors: Of the same shapes in the same order on all processes.
        """
        if self.world_size == 1:
            return
        for tensor in tensors:
            received = tensor.detach().contiguous()
            network.broadcast(received, src=0)
            tensor.detach().copy_(received)

    def broadcast_object(self, value: Plain) -> Plain:
        """Send a value from the main process to all.

        Args:
            value: JSON-serialisable; numbers keep their bits.

        Returns:
            The value of the main process.
        """
        return self._from(0, value)

    def distribute_jobs(self, jobs: Sequence[Callable[[], Plain]]) -> list[Plain]:
        """Run each of several jobs on one of the processes.

        Args:
            jobs: The same in the same order on all processes; results are JSON-serialisable.

        Returns:
            All results, on every process.
        """
        done = [job() if number % self.world_size == self.rank else None for number, job in enumerate(jobs)]
        return [self._from(number % self.world_size, value) for number, value in enumerate(done)]  # type: ignore[misc]

    def barrier(self) -> None:
        """Wait until all processes have called this."""
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
    """The process group of torch.distributed.

    Returns:
        This process in it; `SINGLE_PROCESS` if torch.distributed is not initialised.

    Example:
        >>> current_process_group() == SINGLE_PROCESS
        True
    """
    if not (network.is_available() and network.is_initialized()):
        return SINGLE_PROCESS
    return ProcessGroup(network.get_rank(), network.get_world_size())


def processes_here() -> int:
    """Number of processes of the run on this machine, which share its memory.

    Returns:
        LOCAL_WORLD_SIZE as set by torchrun; 1 if it is not set.
    """
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if current_process_group().world_size > 1 else 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, rows: int, processes: ProcessGroup) -> Tensor:
        ctx.part, ctx.processes = processes.local_slice(rows), processes
        # gloo gathers tensors of equal size only: each is padded to the size of the first, the largest
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
    """Device of tensors for the default group: NCCL supports accelerators only."""
    return torch.device("cuda" if network.get_backend() == "nccl" else "cpu")


BLOCK = 65_536
"""Rows that are gathered at a time: only the main process stores all."""


def shard_size(rows: int, processes: ProcessGroup) -> int:
    """Number of rows that this process stores.

    Args:
        rows: Of all processes.
        processes: Over which they are sharded.

    Example:
        >>> [shard_size(10, ProcessGroup(rank, 4)) for rank in range(4)]
        [3, 3, 2, 2]
    """
    return len(range(processes.rank, rows, processes.world_size))


def shard(numbers: Tensor, processes: ProcessGroup) -> tuple[Tensor | slice, Tensor]:
    """Which rows this process stores, and their local indices.

    Args:
        numbers: Global indices of rows, the same on every process.
        processes: Over which they are sharded.

    Returns:
        (mask of `numbers` or a slice, local indices).

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
    """Rows by their global indices, from the processes that store them; without gradient.

    Args:
        stored: The rows of this process.
        numbers: Global indices, the same on every process.
        processes: Over which the rows are sharded.

    Returns:
        [numbers, ...], a copy.
    """
    local, places = shard(numbers, processes)
    if processes.world_size == 1:
        return stored.index_select(0, places)
    found = stored.new_zeros(len(numbers), *stored.shape[1:])
    found[local] = stored.index_select(0, places)
    return processes.sum_(found)  # each row is non-zero on one process only, so the sum copies it


def gather_full(stored: Tensor, rows: int, processes: ProcessGroup) -> Tensor:
    """All rows in global order, on the main process only, to be saved.

    Args:
        stored: The rows of this process.
        rows: Of all processes.
        processes: Over which they are sharded.

    Returns:
        [rows, ...] on the CPU; no rows on other processes; on a single process `stored` itself.
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
