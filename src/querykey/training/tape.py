"""A forward written down as a list of torch calls, so that any part of it can be run again.

What a network does between two batch norms has no name in its code: a residual block has begun and not
ended. On the tape it is an interval of calls, with the tensors that are alive at its ends.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from querykey.processes import ALONE, Processes

__all__ = [
    "STATE",
    "Call",
    "Norm",
    "Slot",
    "Tape",
    "generator_states",
    "tensors_in",
    "with_tensors",
]

STATE = -1
"""Stands for a parameter or buffer among the outputs of a call."""


class Slot(NamedTuple):
    """The place of a tensor on the tape; the images are in place 0."""

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
    """Batch norm in train mode: where all chunks wait for each other, and for those of other processes."""

    rows: int
    output: int
    weight: Tensor | None
    bias: Tensor | None
    running: tuple[Tensor, Tensor] | None
    momentum: float
    eps: float
    processes: Processes = ALONE

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
    """The calls of one forward, and what is known of its tensors.

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
        """The slots that exist before a call and are read by it or later."""
        return frozenset(
            slot for slot in range(len(self.sizes)) if self.born[slot] < place <= self.dies[slot]
        )

    def written(self, start: int, stop: int) -> frozenset[int]:
        """The slots that calls from start to stop change in place, views of theirs included."""
        storages = {self.storages[slot] for call in self.calls[start:stop] for slot in call.writes}
        return frozenset(slot for slot, storage in enumerate(self.storages) if storage in storages)

    def close(self, result: int) -> None:
        """Note the result, and until when each slot is read."""
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
