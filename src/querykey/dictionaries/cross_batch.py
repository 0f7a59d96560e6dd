"""The cross-batch memory: the last rows enqueued, with their ids and labels."""

import torch
from torch import Tensor, nn

from querykey.dictionaries.protocol import MemoryRows
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup, gather_rows, shard, shard_size
from querykey.errors import RangeError, ShapeError
from querykey.types import Ids, Labels, Numbers, Rows

__all__ = ["CrossBatchMemory"]


class CrossBatchMemory(nn.Module):
    """The last `capacity` rows, oldest overwritten first: a FIFO of features or of projections.

    It starts empty. The caller decides the order: XBM enqueues and then looks up, so that the memory has the
    rows of the batch. Features of a frozen model do not age; projections are as old as `age` says.

    The position is stored as Python integers, so that reading does not wait for the device, and saved with
    the tensors, so that a resumed run has the same rows in the same order.

    The rows may be sharded over processes, slot *s* on process *s* mod N. Ids, labels and times of writing
    are small and stored on all processes.

    Args:
        capacity: Rows stored when full, at least 1; on all processes together.
        dim: Width of a row, at least 1.
        processes: Over which the rows are sharded.

    Raises:
        RangeError: If capacity or dim is below 1.

    Example:
        >>> memory = CrossBatchMemory(capacity=2, dim=1)
        >>> for item in range(3):
        ...     memory.enqueue(torch.full((1, 1), item + 0.0), torch.tensor([item]))
        >>> memory.read().ids.tolist()
        [2, 1]

    Source:
        Wang et al. 2020, arXiv:1912.06798, sec. 3.2; of features: Zhang et al. 2025,
        arXiv:2510.12474.
    """

    vectors: Tensor
    ids: Tensor
    labels: Tensor
    written: Tensor

    def __init__(self, *, capacity: int, dim: int, processes: ProcessGroup = SINGLE_PROCESS) -> None:
        super().__init__()
        if capacity < 1 or dim < 1:
            raise RangeError(f"capacity and dim must be at least 1, got {capacity} and {dim}")
        self.processes = processes
        self.register_buffer("vectors", torch.zeros(shard_size(capacity, processes), dim))
        self.register_buffer("ids", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("labels", torch.full((capacity,), -1))
        self.register_buffer("written", torch.zeros(capacity, dtype=torch.int64))
        self._cursor = 0
        self._filled = 0
        self._enqueued = 0

    @property
    def capacity(self) -> int:
        """Rows stored when full."""
        return len(self.ids)

    def __len__(self) -> int:
        """Rows stored now."""
        return self._filled

    def read(self) -> MemoryRows:
        """The rows stored now, in slot order: those of this process.

        Views, not copies: nothing of the memory is cloned in a step. A loss that is computed from
        them must run backward before the next `enqueue`; torch refuses it afterwards.
        """
        local = slice(self.processes.rank, self._filled, self.processes.world_size)
        return MemoryRows(
            self.vectors[: shard_size(self._filled, self.processes)], self.ids[local], self.labels[local]
        )

    def rows(self, slots: Numbers) -> Rows:
        """The rows of some slots, from the processes that store them.

        Args:
            slots: Filled ones [rows], the same on every process.

        Returns:
            [rows, dim], a copy.
        """
        return gather_rows(self.vectors, slots, self.processes)

    def age(self) -> Tensor:
        """How many calls of `enqueue` ago each row was written: int64 [filled], 0 for the newest."""
        return self._enqueued - self.written[: self._filled]

    @torch.no_grad()
    def enqueue(self, vectors: Rows, ids: Ids, labels: Labels | None = None) -> None:
        """Enqueue rows, replacing the oldest if the memory is full.

        Args:
            vectors: [rows, dim]; stored without gradient.
            ids: Which item each row is.
            labels: Class of each row; -1 if unlabelled.

        Raises:
            ShapeError: If there are more rows than the capacity.
        """
        if len(vectors) > self.capacity:
            raise ShapeError(
                f"{len(vectors)} rows do not fit a memory of {self.capacity}; "
                "raise the capacity or lower the batch size"
            )
        end = self._cursor + len(vectors)
        slots = torch.arange(self._cursor, end, device=self.ids.device) % self.capacity
        self._enqueued += 1
        local, places = shard(slots, self.processes)
        self.vectors[places] = vectors[local].to(self.vectors.dtype)
        self.ids[slots] = ids
        self.labels[slots] = -1 if labels is None else labels
        self.written[slots] = self._enqueued
        self._cursor = end % self.capacity
        self._filled = min(self._filled + len(vectors), self.capacity)

    def get_extra_state(self) -> Tensor:
        """The position, for `state_dict`: cursor, filled, calls of enqueue."""
        return torch.tensor([self._cursor, self._filled, self._enqueued])

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the position from a `state_dict`."""
        self._cursor, self._filled, self._enqueued = state.tolist()
