"""Drift: the distance of stored rows from those of the current encoder for the same views."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from querykey.dictionaries.bank import MemoryBank
from querykey.dictionaries.cross_batch import CrossBatchMemory
from querykey.errors import DataError, RangeError, ShapeError
from querykey.types import Ids, Rows

__all__ = ["ViewBatch", "ViewSource", "drift", "drift_of", "stored_ages", "undisturbed"]


@runtime_checkable
class ViewBatch(Protocol):
    """Two views of a batch of images."""

    @property
    def view_1(self) -> Tensor:
        """[images, channels, height, width]."""
        ...

    @property
    def view_2(self) -> Tensor:
        """Likewise."""
        ...

    @property
    def ids(self) -> Ids:
        """Item ids, as in the dictionary."""
        ...


@runtime_checkable
class ViewSource(Protocol):
    """The views of every step, deterministic: `TrainingImages`."""

    def walk(self, start: int, stop: int) -> Iterator[ViewBatch]:
        """The batches of steps start to stop."""
        ...


def drift(stored: Rows, fresh: Tensor) -> float:
    r"""The mean squared distance between stored rows and fresh ones of the same views.

    .. math:: D = \frac{1}{n} \sum_i \lVert v_i^{\text{fresh}} - v_i^{\text{stored}} \rVert^2

    Args:
        stored: [rows, dim], at least 1.
        fresh: [rows, dim], in the same order.

    Returns:
        Of unit rows from 0 (the encoder has not moved) to 4; 2 - 2 times their mean cosine, so 2 if they
        are orthogonal.

    Raises:
        ShapeError: If the shapes differ.
        DataError: If there is no row.

    Example:
        >>> drift(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        1.0

    Source:
        Wang et al., Cross-Batch Memory for Embedding Learning, 2020, arXiv:1912.06798, section 3.1
        and figure 3.
    """
    if stored.shape != fresh.shape:
        raise ShapeError(
            f"stored rows are {list(stored.shape)} and fresh ones {list(fresh.shape)}; need the same shape"
        )
    if not len(stored):
        raise DataError("a drift needs at least 1 row, got none; measure it after the first step")
    return float((fresh.double() - stored.double()).square().sum(dim=1).mean())


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Let a module encode in train mode, without a change of its state.

    Inside, the module is in train mode, without gradient, and its buffers (the running statistics of batch
    norm) are copies. Afterwards its modes, buffers and the generators of PyTorch are restored, so it may be
    used between a forward pass and its backward pass.

    Args:
        module: Any.

    Example:
        >>> norm = torch.nn.BatchNorm1d(2).eval()
        >>> with undisturbed(norm):
        ...     _ = norm(torch.randn(4, 2))
        >>> norm.running_mean.tolist(), norm.training
        ([0.0, 0.0], False)
    """
    parts = list(module.modules())
    modes = [part.training for part in parts]
    buffers = [
        (part, name, buffer)
        for part in parts
        for name, buffer in part.named_buffers(recurse=False, remove_duplicate=False)
    ]
    tensors = [*module.parameters(), *module.buffers()]
    devices = sorted({tensor.device.index for tensor in tensors if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        try:
            for part, name, buffer in buffers:
                setattr(part, name, buffer.clone())
            module.train()
            yield
        finally:
            for part, name, buffer in buffers:
                setattr(part, name, buffer)
            for part, mode in zip(parts, modes, strict=True):
                part.training = mode


def drift_of(
    dictionary: CrossBatchMemory | MemoryBank,
    images: ViewSource,
    encode: Callable[[Tensor, int], Rows],
    *,
    module: nn.Module,
    step: int,
    views: Sequence[int],
    ages: Sequence[int],
    lost: Callable[[], Ids] = lambda: torch.arange(0),
) -> dict[int, float]:
    """How far the rows of some earlier steps have drifted.

    Views are deterministic, so those of an earlier step are made again and encoded in the same way: in train
    mode, as one batch. Only the encoder differs. For a memory bank, whose slots are running means, it is the
    distance of the mean from the current row.

    Args:
        dictionary: Written once a step.
        images: The views of every step.
        encode: (images, number of their step) to rows as they are stored, by the encoder as it is now. The
            number seeds the random draws of a step, such as the permutation of shuffled batch norm.
        module: The module that `encode` runs; see `undisturbed`.
        step: Steps taken.
        views: The view, 0 or 1, of the stored rows, in the order of writing: (1,) for MoCo, (1, 0) if it is
            symmetric, (0,) for one view per step.
        ages: In steps, >= 1: 1 is the last step. See `stored_ages`.
        lost: Returns the items of which no view can be made any more; called after each walk.

    Returns:
        By age, ascending: `drift`. Ages without a stored row are left out. Where part of a step is
        overwritten, it is the drift of the rest.

    Raises:
        RangeError: If an age is below 1, or a view neither 0 nor 1.
        DataError: If rows of that age show other items than that step: not every step wrote, once.

    Source:
        As `drift`.
    """
    if not views or not set(views) <= {0, 1} or (ages and min(ages) < 1):
        raise RangeError(f"views must be 0 or 1 and ages at least 1, got {list(views)} and {list(ages)}")
    ids, age = dictionary.ids, dictionary.age()
    found: dict[int, float] = {}
    with undisturbed(module):
        for back in sorted(set(ages)):
            slots = _in_order((age == back - 1).nonzero()[:, 0])
            if back > step or not len(slots):
                continue
            for pair in images.walk(step - back, step - back + 1):
                slots = slots[~torch.isin(ids[slots], lost())]
                if not len(slots):
                    continue
                stored, places = _matched(ids[slots], pair.ids.repeat(len(views)), step - back)
                fresh = torch.cat([encode((pair.view_1, pair.view_2)[view], step - back) for view in views])
                found[back] = drift(dictionary.rows(slots)[stored], fresh[places])
    return found


def stored_ages(dictionary: CrossBatchMemory | MemoryBank, *, steps: int) -> tuple[int, ...]:
    """Ages to measure with `drift_of`: the newest, the oldest of which half is stored, and one between.

    Args:
        dictionary: Written once a step.
        steps: Steps since then: all, or those since a memory was prefilled.

    Returns:
        Up to three ages in steps, ascending, the newest 1; none of an empty dictionary.

    Example:
        >>> from querykey.dictionaries.cross_batch import CrossBatchMemory
        >>> memory = CrossBatchMemory(capacity=10, dim=1)
        >>> for step in range(9):
        ...     memory.enqueue(torch.ones(2, 1), torch.arange(2))
        >>> stored_ages(memory, steps=9)
        (1, 3, 5)
    """
    age = dictionary.age() + 1
    counts = torch.bincount(age[age <= steps])
    if not len(counts):
        return ()
    oldest = int((2 * counts >= counts[1]).logical_and(counts > 0).nonzero().max())
    return tuple(sorted({1, (1 + oldest) // 2, oldest}))


def _in_order(slots: Tensor) -> Tensor:
    """Slots of one write in the order of writing: where a ring has wrapped, its end comes first."""
    gaps = (slots.diff() > 1).nonzero()[:, 0]
    return slots.roll(-int(gaps[0]) - 1) if len(gaps) else slots


def _matched(stored: Tensor, made: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Match stored rows, in the order of writing, with those made again; the first may be overwritten."""
    candidates = torch.isin(made, stored).nonzero()[:, 0][-len(stored) :]
    stored_order, made_order = stored.sort(stable=True), made[candidates].sort(stable=True)
    if not torch.equal(stored_order.values, made_order.values):
        raise DataError(
            f"rows that step {step} should have written show other items than its images; give the number of "
            "steps taken, and ages since when every step has written once"
        )
    return stored_order.indices, candidates[made_order.indices]
