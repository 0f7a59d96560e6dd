"""The memory bank: one slot per item of the data set."""

import torch
from torch import Tensor, nn

from querykey.dictionaries.protocol import MemoryRows
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup, gather_rows, shard
from querykey.errors import RangeError, ShapeError
from querykey.lookup.unit_length import unit_length
from querykey.types import Ids, Numbers, Rows

__all__ = ["MemoryBank"]


class MemoryBank(nn.Module):
    r"""One row per item, written by id: slot i is item i.

    It is full from the start, with random rows about as long as 1: each number uniform from
    :math:`-1/\sqrt{d/3}` to :math:`1/\sqrt{d/3}`. A row that was written has length 1.

    Writing mixes the new row into the old, :math:`V_i \leftarrow \mathrm{unit}(m V_i + (1 - m) v_i)`,
    so a slot averages several epochs: about :math:`1 / (1 - m)`.

    Rows, their times of writing and the normaliser of NCE are saved.

    Args:
        items: Slots, at least 1: as many as the data has items.
        dim: Width of a row, at least 1.
        seed: Of the random rows; the state of the default generator is unchanged.
        momentum: m in [0, 1), the weight of the old row.
        processes: Over which the rows are sharded, slot i on process i mod N. The times of writing
            are stored on all processes.

    Raises:
        RangeError: If items or dim is below 1, or momentum is not in [0, 1).

    Example:
        >>> bank = MemoryBank(items=3, dim=2, momentum=0.0)
        >>> bank.write(torch.tensor([[0.0, 2.0]]), torch.tensor([1]))
        >>> bank.rows(torch.tensor([1])), bank.age().tolist()
        (tensor([[0., 1.]]), [1, 0, 1])

    Source:
        Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018,
        arXiv:1805.01978, section 3; the random start and the momentum of 0.5 are the authors' code's.
    """

    vectors: Tensor
    ids: Tensor
    labels: Tensor
    written: Tensor
    normaliser: Tensor

    def __init__(
        self,
        *,
        items: int,
        dim: int,
        seed: int = 0,
        momentum: float = 0.5,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        super().__init__()
        if items < 1 or dim < 1:
            raise RangeError(f"items and dim must be at least 1, got {items} and {dim}")
        if not 0.0 <= momentum < 1.0:
            raise RangeError(
                f"momentum of the memory bank must be from 0 to below 1, got {momentum}; 0.5 is usual"
            )
        self.momentum = momentum
        drawn = torch.rand(items, dim, generator=torch.Generator().manual_seed(seed))
        drawn = drawn[processes.rank :: processes.world_size].clone() if processes.world_size > 1 else drawn
        self.processes = processes
        self.register_buffer("vectors", drawn.mul_(2.0).sub_(1.0).mul_((3.0 / dim) ** 0.5))
        self.register_buffer("ids", torch.arange(items), persistent=False)
        self.register_buffer("labels", torch.full((items,), -1), persistent=False)
        self.register_buffer("written", torch.zeros(items, dtype=torch.int64))
        self.register_buffer("normaliser", torch.zeros(()))
        self._writes = 0
        self._has_normaliser = False

    def __len__(self) -> int:
        """Number of items."""
        return len(self.ids)

    def read(self) -> MemoryRows:
        """All rows, slot i with id i, unlabelled: those of this process.

        Views, not copies. A loss that is computed from them must run backward before the next
        `write`; torch refuses it afterwards.
        """
        local = slice(self.processes.rank, None, self.processes.world_size)
        return MemoryRows(self.vectors, self.ids[local], self.labels[local])

    def rows(self, ids: Ids) -> Rows:
        """The stored rows of these items, from the processes that store them.

        Args:
            ids: Items [rows], from 0 to below the number of slots.

        Returns:
            [rows, dim], a copy.

        Raises:
            RangeError: If an item has no slot.
        """
        self._require_slots(ids)
        return gather_rows(self.vectors, ids, self.processes)

    def sample(self, count: int, generator: torch.Generator) -> Numbers:
        """Draw items uniformly, with replacement.

        Args:
            count: Number of items, at least 1.
            generator: On any device.

        Returns:
            Ids [count].

        Raises:
            RangeError: If count is below 1.
        """
        if count < 1:
            raise RangeError(f"a sample of the memory bank needs at least 1 item, got {count}")
        drawn = torch.randint(len(self), (count,), generator=generator, device=generator.device)
        return drawn.to(self.vectors.device)

    def age(self) -> Tensor:
        """How many calls of `write` ago each row was written: int64 [items].

        For a row that was never written it is the number of all calls; its `written` is 0.
        """
        return self._writes - self.written

    @torch.no_grad()
    def put(self, vectors: Rows, ids: Ids) -> None:
        """Set the slots of items, without counting a `write`.

        Args:
            vectors: [rows, dim]; stored without gradient.
            ids: Which item each row is, each at most once.

        Raises:
            RangeError: If an item has no slot; nothing is set.
        """
        self._require_slots(ids)
        local, places = shard(ids, self.processes)
        self.vectors[places] = vectors[local].to(self.vectors.dtype)

    @torch.no_grad()
    def write(self, vectors: Rows, ids: Ids) -> None:
        """Mix rows into their items' slots.

        Args:
            vectors: [rows, dim]; stored without gradient.
            ids: Which item each row is. Of a repeated item the last row is used, and the others
                are ignored.

        Raises:
            RangeError: If an item has no slot; nothing is written.
            ShapeError: If rows, ids and widths do not fit.
        """
        if len(vectors) != len(ids) or vectors.shape[1] != self.vectors.shape[1]:
            raise ShapeError(
                f"{list(vectors.shape)} rows with {len(ids)} ids do not fit a memory bank of rows "
                f"{self.vectors.shape[1]} wide; one id for each row is needed"
            )
        self._require_slots(ids)
        # a repeated item is written as often, each time by its last row: the number of rows to write must not
        # depend on the ids, or the host would wait for the device
        ordered, order = torch.sort(ids, stable=True)
        last = order[torch.searchsorted(ordered, ids, right=True) - 1]
        slots, rows = ids, vectors[last].to(self.vectors.dtype)
        self._writes += 1
        local, places = shard(slots, self.processes)
        mixed = torch.lerp(rows[local], self.vectors[places], self.momentum)
        self.vectors[places] = unit_length(mixed).to(self.vectors.dtype)
        self.written[slots] = self._writes

    def get_extra_state(self) -> Tensor:
        """Number of calls of `write`, for `state_dict`."""
        return torch.tensor([self._writes])

    def set_extra_state(self, state: Tensor) -> None:
        """Restore it from a `state_dict`."""
        (self._writes,) = state.tolist()
        self._has_normaliser = False  # the restored one may be that of before the first step

    def extra_repr(self) -> str:
        return f"items={len(self)}, dim={self.vectors.shape[1]}, momentum={self.momentum}"

    def has_normaliser(self) -> bool:
        """Whether the normaliser has been estimated; reads the device until it has, and not after that."""
        self._has_normaliser = self._has_normaliser or bool(self.normaliser)
        return self._has_normaliser

    def _require_slots(self, ids: Ids) -> None:
        if ids.device.type != "cpu":  # a look at the ids would wait for the device, which checks them itself
            return
        outside = ids[(ids < 0) | (ids >= len(self))]
        if len(outside):
            raise RangeError(
                f"the memory bank has slots for items 0 to {len(self) - 1} and was given item "
                f"{int(outside[0])}; give it as many slots as the data has items, and ids counted from 0"
            )
