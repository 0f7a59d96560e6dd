"""A forward pass as a list of torch calls, so that any part of it can be recomputed.

The code between two batch norms need not be a module: the first may lie inside a residual block and the
second outside. On the tape it is an interval of calls, with the live sets at its ends. See README.md.
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
    """One torch call with tensors replaced by slots; parameters and constants are kept as they are.

    reads, writes: slots of its arguments, and those of them that it changes in place.
    outputs: the slot of each output in order, or STATE.
    has_grad: whether gradients were enabled.
    is_random: whether it advanced a generator.
    autocast: (whether it was enabled, its dtype).
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
    """Batch norm in train mode: all chunks of all processes are synchronised here."""

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
    needs: whether a slot requires a gradient.
    result: the slot of z.
    born, dies: indices of the call that makes a slot (-1 for the images) and of the last that reads it.
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
        """Indices of the batch norms."""
        return [place for place, call in enumerate(self.calls) if isinstance(call, Norm)]

    def live_set(self, place: int) -> frozenset[int]:
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
    """The RNG states that a call on this device may advance, each with the function that restores it."""
    states: list[tuple[Callable[[Tensor], None], Tensor]] = [
        (torch.random.set_rng_state, torch.random.get_rng_state())
    ]
    if device.type != "cpu":
        backend: Any = torch.get_device_module(device)
        states.append((lambda state: backend.set_rng_state(state, device), backend.get_rng_state(device)))
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
    r"""The calls before which the live set is stored in the forward pass.

    The tape is cut into segments. In the backward pass, one segment at a time is recomputed from its cut,
    and the live sets at its batch norms are stored until the gradient has passed. So while the gradient
    goes from the end of norm :math:`n` of segment :math:`j` to its start, memory holds the cuts so far,
    the norms of the segment so far and the gradient,

    .. math:: \sum_{i \le j} \text{live}(\text{cut}_i)
              + \Big|\bigcup_{m \in j,\ m \le n} \text{live}(m)\Big| + \text{live}(n + 1),

    where :math:`n + 1` is the next norm or cut and the first norm of all does not count (see `not_saved`).
    The cuts are those for which the largest of these sums is smallest. Between two batch norms a
    cut is considered where the live set is smallest.

    Args:
        tape: The tape of one chunk; all chunks are cut alike.

    Returns:
        Cuts in order, 0 first; never empty.
    """
    candidates = _candidates(tape)
    live = {place: tape.live_set(place) - {0} for place in {*candidates, *tape.norms}}
    cut_bytes = [_bytes(tape, live[place]) for place in candidates]
    segment_bytes = {
        (start, stop): _segment_bytes(tape, live, candidates[start], candidates[stop])
        for start, stop in combinations(range(len(candidates)), 2)
    }
    low, high = 0.0, float(sum(tape.sizes) * 2 + 1)
    best = _cuts_within(high, cut_bytes, segment_bytes)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        cuts = _cuts_within(middle, cut_bytes, segment_bytes)
        low, high = (low, middle) if cuts is not None else (middle, high)
        best = best if cuts is None else cuts
    assert best is not None
    return [candidates[place] for place in best]


def not_saved(tape: Tape, cuts: Sequence[int]) -> int | None:
    """The first norm: its live set is large, and cheap to recompute from the images.

    Args:
        tape: The tape of one chunk.
        cuts: In ascending order, 0 first.

    Returns:
        The index of its call; None if there is no norm, or a cut at it or before it.
    """
    first = next(iter(tape.norms), 0)
    return first if first > 0 and (len(cuts) == 1 or first < cuts[1]) else None


def require_separate(tape: Tape, places: Sequence[int]) -> None:
    """Refuse a tape on which two stored tensors share memory that is changed later.

    Args:
        tape: The tape of one chunk.
        places: Indices of calls before which the live set is stored.

    Raises:
        ConfigError: If there is such a pair.
    """
    for place in places:
        written = tape.written(place, len(tape.calls))
        storages = [tape.storages[slot] for slot in tape.live_set(place) & written]
        if len(storages) != len(set(storages)):
            raise ConfigError(
                "the encoder holds two views of one tensor across a batch norm and changes one in place, "
                "which cannot be followed in chunks; make the change out of place, or use the whole batch"
            )


def _candidates(tape: Tape) -> list[int]:
    """The start, the call with the smallest live set between each two norms, and the end."""
    ends = [*tape.norms[1:], len(tape.calls)] if tape.norms else []
    places = [0]
    for norm, end in zip(tape.norms, ends, strict=True):
        inner = range(norm + 1, end + 1 if end < len(tape.calls) else end)
        if inner:
            # the last of equals: in-place calls before it have been made
            places.append(min(reversed(inner), key=lambda place: _bytes(tape, tape.live_set(place) - {0})))
    return [*places, len(tape.calls)]


def _bytes(tape: Tape, slots: frozenset[int]) -> int:
    """Bytes of some tensors; those that share a storage count once."""
    largest = dict[int, int]()
    for slot in slots:
        storage = tape.storages[slot]
        largest[storage] = max(largest.get(storage, 0), tape.sizes[slot])
    return sum(largest.values())


def _segment_bytes(tape: Tape, live: dict[int, frozenset[int]], start: int, stop: int) -> int:
    """Peak bytes of a segment during its backward pass, without the cuts up to its own."""
    places = [start, *(norm for norm in tape.norms if start < norm < stop), stop]
    stored, peak = frozenset[int](), 0
    recomputed = tape.norms[:1] if start == 0 else []
    for place, after in pairwise(places):
        if place not in recomputed:
            stored |= live[place] - live[start]
        peak = max(peak, _bytes(tape, stored) + _bytes(tape, live[after]))
    return peak


def _cuts_within(
    limit: float, cut_bytes: list[int], segment_bytes: dict[tuple[int, int], int]
) -> list[int] | None:
    """The cuts that store least and keep each segment within `limit` bytes; None if there are none."""
    end = len(cut_bytes) - 1
    stored: list[float] = [0.0] + [float("inf")] * end
    before = [0] * len(cut_bytes)
    for stop in range(1, end + 1):
        for start in range(stop):
            total = stored[start] + cut_bytes[stop] * (stop < end)
            if stored[start] + segment_bytes[start, stop] <= limit and total < stored[stop]:
                stored[stop], before[stop] = total, start
    if stored[end] == float("inf"):
        return None
    cuts = [before[end]]
    while cuts[-1] > 0:
        cuts.append(before[cuts[-1]])
    assert all(late > early for late, early in pairwise(cuts))
    return cuts[::-1]
