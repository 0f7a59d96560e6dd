"""A forward pass as a list of torch calls, so that any part of it can be recomputed.

What a network does between two batch norms has no name in its code: a residual block may have begun and not
ended. On the tape it is an interval of calls, with the live sets at its ends. See README.md.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.errors import ConfigError

__all__ = [
    "STATE",
    "Call",
    "Norm",
    "Slot",
    "Tape",
    "choose_cuts",
    "generator_states",
    "not_saved",
    "require_separate",
    "tensors_in",
    "with_tensors",
]

STATE = -1
"""Slot of a parameter or buffer among the outputs of a call: it is not stored on the tape."""


class Slot(NamedTuple):
    """The number of a tensor on the tape; the images are number 0."""

    number: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Call:
    """One torch call, its tensors replaced by slots; parameters and constants stand as they are.

    reads, writes: slots it takes, and those of them that it changes in place.
    outputs: the slot of each tensor it gives, in their order, or STATE.
    has_grad: whether gradients were on where it stood.
    is_random: whether it moved a generator.
    autocast: (whether it was on, its dtype) where it stood.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    outputs: tuple[int, ...]
    has_grad: bool
    is_random: bool
    autocast: tuple[bool, torch.dtype]


@dataclass(frozen=True, eq=False, kw_only=True)
class Norm:
    """Batch norm in train mode: all chunks wait for each other here, and for those of other processes."""

    rows: int
    output: int
    weight: Tensor | None
    bias: Tensor | None
    running: tuple[Tensor, Tensor] | None
    momentum: float
    eps: float
    processes: ProcessGroup = SINGLE_PROCESS

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.rows,)

    @property
    def writes(self) -> tuple[int, ...]:
        return ()

    @property
    def outputs(self) -> tuple[int, ...]:
        return (self.output,)


@dataclass(eq=False)
class Tape:
    """The calls of one forward pass, and the lifetime of its tensors.

    sizes: bytes of each slot.
    storages: which storage each slot lies in; views share one.
    needs: whether a slot has a gradient.
    result: the slot of z.
    born, dies: the call after which a slot exists, and the last one that reads it (-1: the images).
    """

    calls: list[Call | Norm] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    storages: list[int] = field(default_factory=list)
    needs: list[bool] = field(default_factory=list)
    result: int = -1
    born: list[int] = field(default_factory=list)
    dies: list[int] = field(default_factory=list)

    @property
    def norms(self) -> list[int]:
        """Where the batch norms are."""
        return [place for place, call in enumerate(self.calls) if isinstance(call, Norm)]

    def alive(self, place: int) -> frozenset[int]:
        """The live set: slots that exist before a call and are read by it or later."""
        return frozenset(
            slot for slot in range(len(self.sizes)) if self.born[slot] < place <= self.dies[slot]
        )

    def written(self, start: int, stop: int) -> frozenset[int]:
        """The slots that calls from start to stop change in place, and all views of the same storage."""
        storages = {self.storages[slot] for call in self.calls[start:stop] for slot in call.writes}
        return frozenset(slot for slot, storage in enumerate(self.storages) if storage in storages)

    def close(self, result: int) -> None:
        """Set the result, and the last call that reads each slot."""
        self.result = result
        self.dies = list(self.born)
        for place, call in enumerate(self.calls):
            for slot in call.reads:
                self.dies[slot] = place
        self.dies[result] = len(self.calls)


def generator_states(device: torch.device) -> list[tuple[Callable[[Tensor], None], Tensor]]:
    """The states of the generators that a call on this device may move, and how to set each back."""
    states: list[tuple[Callable[[Tensor], None], Tensor]] = [
        (torch.random.set_rng_state, torch.random.get_rng_state())
    ]
    if device.type != "cpu":
        own: Any = torch.get_device_module(device)
        states.append((lambda state: own.set_rng_state(state, device), own.get_rng_state(device)))
    return states


def tensors_in(value: Any) -> Iterator[Any]:
    """The tensors and slots of nested tuples, lists, dicts and slices, in order."""
    if isinstance(value, Tensor | Slot):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, slice):
        yield from tensors_in((value.start, value.stop, value.step))


def with_tensors(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same nested value, each tensor and slot changed."""
    if isinstance(value, Tensor | Slot):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(with_tensors(part, change) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(with_tensors(part, change) for part in value)
    if isinstance(value, dict):
        return {key: with_tensors(part, change) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(*(with_tensors(part, change) for part in (value.start, value.stop, value.step)))
    return value


_HALVINGS = 40


def choose_cuts(tape: Tape) -> list[int]:
    r"""The calls before which everything alive is kept during the forward.

    The tape is cut into segments. On the way back, one segment at a time is run again from its cut,
    and what is alive at its batch norms is kept until the gradient has passed. So while the gradient
    goes from the end of norm :math:`n` of segment :math:`j` to its start, memory holds the cuts so far,
    the norms of the segment so far and the gradient,

    .. math:: \sum_{i \le j} \text{alive}(\text{cut}_i)
              + \Big|\bigcup_{m \in j,\ m \le n} \text{alive}(m)\Big| + \text{alive}(n + 1),

    where :math:`n + 1` is the next norm or cut and the first norm of all does not count (see `not_saved`).
    The cuts are those for which the largest of these sums is smallest. Between two batch norms a
    cut is considered where the least is alive.

    Args:
        tape: Of one chunk; all chunks are cut alike.

    Returns:
        Cuts in order, 0 first; never empty.
    """
    candidates = _candidates(tape)
    alive = {place: tape.alive(place) - {0} for place in {*candidates, *tape.norms}}
    own = [_bytes(tape, alive[place]) for place in candidates]
    inside = {
        (start, stop): _inside(tape, alive, candidates[start], candidates[stop])
        for start, stop in combinations(range(len(candidates)), 2)
    }
    low, high = 0.0, float(sum(tape.sizes) * 2 + 1)
    best = _cuts_within(high, own, inside)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        cuts = _cuts_within(middle, own, inside)
        low, high = (low, middle) if cuts is not None else (middle, high)
        best = best if cuts is None else cuts
    assert best is not None
    return [candidates[place] for place in best]


def not_saved(tape: Tape, cuts: Sequence[int]) -> int | None:
    """The first norm: what is alive there is large, and soon computed again from the images.

    Args:
        tape: Of one chunk.
        cuts: In order, 0 first.

    Returns:
        Its place; None if a cut is there or before it, or there is none.
    """
    first = next(iter(tape.norms), 0)
    return first if first > 0 and (len(cuts) == 1 or first < cuts[1]) else None


def require_separate(tape: Tape, places: Sequence[int]) -> None:
    """Refuse a tape on which two kept tensors share memory that is changed later.

    Args:
        tape: Of one chunk.
        places: Before which tensors are kept.

    Raises:
        ConfigError: If there is such a pair.
    """
    for place in places:
        written = tape.written(place, len(tape.calls))
        storages = [tape.storages[slot] for slot in tape.alive(place) & written]
        if len(storages) != len(set(storages)):
            raise ConfigError(
                "the encoder holds two views of one tensor across a batch norm and changes one in place, "
                "which cannot be followed in chunks; make the change out of place, or use the whole batch"
            )


def _candidates(tape: Tape) -> list[int]:
    """The start, the place of least memory after each norm and not after the next, and the end."""
    ends = [*tape.norms[1:], len(tape.calls)] if tape.norms else []
    places = [0]
    for norm, end in zip(tape.norms, ends, strict=True):
        inner = range(norm + 1, end + 1 if end < len(tape.calls) else end)
        if inner:
            # of equals the last: what is changed in place has been changed by then
            places.append(min(reversed(inner), key=lambda place: _bytes(tape, tape.alive(place) - {0})))
    return [*places, len(tape.calls)]


def _bytes(tape: Tape, slots: frozenset[int]) -> int:
    """Of tensors; a view costs nothing beside what it is a view of."""
    largest = dict[int, int]()
    for slot in slots:
        storage = tape.storages[slot]
        largest[storage] = max(largest.get(storage, 0), tape.sizes[slot])
    return sum(largest.values())


def _inside(tape: Tape, alive: dict[int, frozenset[int]], start: int, stop: int) -> int:
    """Bytes that a segment needs while the gradient is in it, without the cuts up to its own."""
    places = [start, *(norm for norm in tape.norms if start < norm < stop), stop]
    kept, most = frozenset[int](), 0
    recomputed = tape.norms[:1] if start == 0 else []
    for place, after in pairwise(places):
        if place not in recomputed:
            kept |= alive[place] - alive[start]
        most = max(most, _bytes(tape, kept) + _bytes(tape, alive[after]))
    return most


def _cuts_within(most: float, own: list[int], inside: dict[tuple[int, int], int]) -> list[int] | None:
    """The cuts that keep least and hold each segment within `most` bytes; None if there are none."""
    end = len(own) - 1
    kept: list[float] = [0.0] + [float("inf")] * end
    before = [0] * len(own)
    for stop in range(1, end + 1):
        for start in range(stop):
            total = kept[start] + own[stop] * (stop < end)
            if kept[start] + inside[start, stop] <= most and total < kept[stop]:
                kept[stop], before[stop] = total, start
    if kept[end] == float("inf"):
        return None
    cuts = [before[end]]
    while cuts[-1] > 0:
        cuts.append(before[cuts[-1]])
    assert all(late > early for late, early in pairwise(cuts))
    return cuts[::-1]
