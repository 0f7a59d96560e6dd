"""The queue of keys: FIFO, read before the keys of the step are enqueued."""

from typing import Literal

import torch

from querykey.dictionaries.cross_batch import CrossBatchMemory
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.errors import ConfigError, RangeError
from querykey.lookup.unit_length import unit_length
from querykey.types import Ids, Labels, Rows

__all__ = ["KeyQueue", "QueueStart", "stale_copies"]

QueueStart = Literal["empty", "random"]


class KeyQueue(CrossBatchMemory):
    """The last `capacity` keys of a momentum encoder, oldest overwritten first.

    A step reads the queue, and enqueues its own keys when the loss has been computed: its positives
    are never among what was read. Any number of rows may come at once; it need not divide the capacity.

    Args:
        capacity: Keys stored when full, at least 1.
        dim: Width of a key, at least 1.
        start: "empty": only enqueued keys are read, fewer than `capacity` in the first
            steps. "random": the queue is full from the start with random rows of length 1 and id -1,
            which belong to no item.
        seed: Of the random rows; the state of the default generator is unchanged.
        processes: Over which the rows are sharded; see `CrossBatchMemory`.

    Raises:
        RangeError: If capacity or dim is below 1.
        ConfigError: If start is not known.

    Example:
        >>> queue = KeyQueue(capacity=3, dim=1, start="random")
        >>> queue.enqueue(torch.ones(2, 1), torch.tensor([7, 8]))
        >>> len(queue), queue.read().ids.tolist(), queue.age().tolist()
        (3, [7, 8, -1], [0, 0, 1])

    Source:
        He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2019,
        arXiv:1911.05722, section 3.2 and algorithm 1. The start from random rows and batches that
        divide the capacity are the authors' code's.
    """

    def __init__(
        self,
        *,
        capacity: int,
        dim: int,
        start: QueueStart = "empty",
        seed: int = 0,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        super().__init__(capacity=capacity, dim=dim, processes=processes)
        if start not in ("empty", "random"):
            raise ConfigError(f"a queue starts empty or random; got {start!r}")
        if start == "random":
            drawn = torch.randn(capacity, dim, generator=torch.Generator().manual_seed(seed))
            self.vectors.copy_(unit_length(drawn)[processes.rank :: processes.world_size])
            self.ids.fill_(-1)
            self._filled = capacity

    def enqueue(self, vectors: Rows, ids: Ids, labels: Labels | None = None) -> None:
        """Enqueue keys, replacing the oldest; of more than the capacity, the last are stored.

        Args:
            vectors: [rows, dim]; stored without gradient.
            ids: Which item each key is of.
            labels: Class of each key; -1 if unlabelled.
        """
        last = slice(-self.capacity, None)
        super().enqueue(vectors[last], ids[last], None if labels is None else labels[last])


def stale_copies(capacity: int, items: int, batch_size: int, *, keys_an_item: int = 1) -> str | None:
    r"""A warning for a queue that contains older keys of the queries' items.

    The other items of an epoch leave `items - batch_size` keys. A larger queue holds older keys of
    the very items that are looked up; as negatives they push each query away from itself. Where batches take
    every item once an epoch, in a new order each time, and the queue holds *x* epochs, they are in
    the mean

    .. math:: x - \tfrac{1}{2} \; (x \ge 1), \quad x^2 / 2 \; (x < 1)

    times the keys of an item per epoch: one half at one epoch, and almost none well below it.

    Args:
        capacity: Of the queue, >= 1.
        items: That are trained on, >= 1.
        batch_size: Items a step, from 1 to items.
        keys_an_item: Keys that an item leaves in the queue each epoch: 2 of a symmetric loss.

    Returns:
        A sentence with the numbers; None if the queue is not too large.

    Raises:
        RangeError: If a number is below 1, or the batch is larger than the data.

    Example:
        >>> stale_copies(4096, 50_000, 256) is None
        True
        >>> stale_copies(65_536, 50_000, 256).partition(";")[0]
        "a queue of 65,536 keys reaches back over 1.31 epochs of 50,000 items, and holds about 0.8 older
        keys of each query's own item"

    Source:
        arXiv:1911.05722 takes 65,536 keys of 1.28 million items, and 4,096 of CIFAR's 50,000 in the
        authors' notebook.
    """
    if min(capacity, batch_size, keys_an_item) < 1 or batch_size > items:
        raise RangeError(
            f"capacity, batch_size and keys_an_item must be >= 1 and the batch no larger than the items; got "
            f"capacity={capacity}, items={items}, batch_size={batch_size}, keys_an_item={keys_an_item}"
        )
    most = keys_an_item * (items - batch_size)
    if capacity <= most:
        return None
    epochs = capacity / (keys_an_item * items)
    older = keys_an_item * (epochs - 0.5 if epochs >= 1 else epochs**2 / 2)
    advice = f"take a capacity of at most {most:,}" if most else "take a smaller batch and a smaller queue"
    return (
        f"a queue of {capacity:,} keys reaches back over {epochs:.2f} epochs of {items:,} items, and holds "
        f"about {older:.1f} older keys of each query's own item; {advice}, and leave them masked (same_id)"
    )
