"""The smallest dictionary: this batch."""

import torch
from torch import Tensor

from querykey.dictionaries.rows import Held
from querykey.processes import ALONE
from querykey.types import Ids, Labels, Numbers, Rows

__all__ = ["InBatch"]


class InBatch:
    """The batch of this step and nothing else: contrastive learning without a memory.

    Example:
        >>> batch = InBatch()
        >>> batch.enqueue(torch.ones(2, 3), torch.tensor([4, 5]))
        >>> batch.enqueue(torch.ones(1, 3), torch.tensor([6]))
        >>> batch.read().ids.tolist()
        [6]
    """

    processes = ALONE

    def __init__(self) -> None:
        self._held = Held(
            torch.empty(0, 0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        )

    def __len__(self) -> int:
        """Rows held now."""
        return len(self._held.ids)

    def read(self) -> Held:
        """The rows of the last `enqueue`."""
        return self._held

    @property
    def ids(self) -> Ids:
        """Which items they are."""
        return self._held.ids

    @property
    def labels(self) -> Labels:
        """Their classes."""
        return self._held.labels

    def rows(self, slots: Numbers) -> Rows:
        """Some of them: [slots, dim], a copy."""
        return self._held.vectors[slots]

    def age(self) -> Tensor:
        """Always 0: int64 [filled]."""
        return torch.zeros_like(self._held.ids)

    def enqueue(self, vectors: Rows, ids: Ids, labels: Labels | None = None) -> None:
        """Hold these rows in place of the last ones."""
        self._held = Held(vectors.detach(), ids, torch.full_like(ids, -1) if labels is None else labels)
