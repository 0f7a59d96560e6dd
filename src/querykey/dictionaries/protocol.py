"""The interface of dictionaries, and the rows that they return."""

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from querykey.distributed.process_group import ProcessGroup
from querykey.types import Ids, Labels, Numbers, Rows

__all__ = ["Dictionary", "MemoryRows"]


class MemoryRows(NamedTuple):
    """Rows of a dictionary, each with its item id and its label (-1: unlabelled)."""

    vectors: Rows
    ids: Ids
    labels: Labels


@runtime_checkable
class Dictionary(Protocol):
    """Rows that a step looks up in: numbered slots, each with an item id and a label."""

    @property
    def processes(self) -> ProcessGroup:
        """Over which the rows are sharded, slot *s* on process *s* mod N."""
        ...

    @property
    def ids(self) -> Ids:
        """Which item each slot stores, on all processes."""
        ...

    @property
    def labels(self) -> Labels:
        """Class of each slot's item, -1 if unlabelled."""
        ...

    def __len__(self) -> int:
        """Slots that are filled, of all processes."""
        ...

    def read(self) -> MemoryRows:
        """The rows that this process stores, in the order of their slots."""
        ...

    def rows(self, slots: Numbers) -> Rows:
        """The rows of some slots, the same on every process; a copy."""
        ...

    def age(self) -> Tensor:
        """How many calls of `enqueue` ago each slot was written."""
        ...

    def enqueue(self, vectors: Rows, ids: Ids, labels: Labels | None = None) -> None:
        """Add a batch."""
        ...
