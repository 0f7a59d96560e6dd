"""Batch norm over all chunks of a batch: the chunks advance together from one norm to the next."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from querykey.encoders.norm.sync_batchnorm import (
    BatchStatistics,
    SharedGradient,
    batch_statistics,
    combine_statistics,
    normalised,
    shared_gradient,
    subtract_shared,
    update_running_statistics,
)
from querykey.errors import ConfigError
from querykey.pretraining.chunked.recorder import record
from querykey.pretraining.chunked.tape import (
    STATE,
    Call,
    Norm,
    Slot,
    Tape,
    choose_cuts,
    generator_states,
    not_saved,
    require_separate,
    tensors_in,
    with_tensors,
)

__all__ = ["BatchNormReplay"]


def _affine_leaves(norm: Norm, statistics: BatchStatistics) -> tuple[Tensor, Tensor]:
    """Leaves for scale and shift: their gradients are the sums over rows that batch norm's gradient needs."""
    blank = torch.zeros_like(statistics.mean, dtype=statistics.dtype)
    weight = blank + 1 if norm.weight is None else norm.weight.detach().clone()
    bias = blank if norm.bias is None else norm.bias.detach().clone()
    return weight.requires_grad_(), bias.requires_grad_()


def _shared_term(norm: Norm, statistics: BatchStatistics, affine: tuple[Tensor, Tensor]) -> SharedGradient:
    """The term of the gradient that the rows of all chunks have in common; adds those of scale and shift.

    Args:
        norm: A batch norm of the tape.
        statistics: Of the whole batch.
        affine: The `_affine_leaves` that all chunks used in their backward pass.

    Returns:
        What to subtract from the gradient of each row.
    """
    scale, shift = (leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in affine)
    _add_gradient(norm.weight, scale)
    _add_gradient(norm.bias, shift)
    return shared_gradient(statistics, affine[0], norm.eps, (scale, shift), norm.processes)


def _add_gradient(parameter: Tensor | None, gradient: Tensor) -> None:
    if parameter is not None and parameter.requires_grad:
        parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)


_Tensors = dict[int, Tensor]
_States = list[tuple[Callable[[Tensor], None], Tensor]]


@dataclass(eq=False)
class _Chunk:
    tape: Tape
    images: Tensor
    stored: dict[int, _Tensors] = field(default_factory=dict)
    rng_states: dict[int, _States] = field(default_factory=dict)
    gradients: _Tensors = field(default_factory=dict)

    def run(
        self,
        tensors: _Tensors,
        start: int,
        stop: int,
        statistics: dict[int, BatchStatistics],
        affine: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Run calls `start` to `stop`: the live set before the first becomes that before `stop`, in place."""
        for slot in self.tape.written(start, stop) & tensors.keys():
            # an in-place call must not change a stored live set, which shares these tensors
            tensors[slot] = tensors[slot].clone()
        for place in range(start, stop):
            call = self.tape.calls[place]
            if isinstance(call, Norm):
                weight, bias = affine or (call.weight, call.bias)
                tensors[call.output] = normalised(
                    tensors[call.rows], statistics[place], weight, bias, call.eps
                )
            else:
                self._call(call, place, tensors)
            # freed at once: one chunk's activations are all that may be in memory
            for slot in {*call.reads, *call.outputs} - {STATE}:
                if self.tape.dies[slot] <= place:
                    del tensors[slot]

    def _call(self, call: Call, place: int, tensors: _Tensors) -> None:
        def tensor_of(value: Tensor | Slot) -> Tensor:
            return tensors[value.number] if isinstance(value, Slot) else value

        args, kwargs = with_tensors(call.args, tensor_of), with_tensors(dict(call.kwargs), tensor_of)
        with ExitStack() as stack:
            # a no_grad block of the encoder is not a call, so it is not on the tape
            if not call.has_grad and torch.is_grad_enabled():
                stack.enter_context(torch.no_grad())
            if call.is_random:
                stack.enter_context(_RestoredRng(self.rng_states, place, self.images.device))
            kind = self.images.device.type
            if call.autocast != (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)):
                stack.enter_context(torch.autocast(kind, dtype=call.autocast[1], enabled=call.autocast[0]))
            output = call.function(*args, **kwargs)
        tensors.update(zip(call.outputs, tensors_in(output), strict=True))
        tensors.pop(STATE, None)


class _RestoredRng:
    """Saves the RNG state of a call in its first run; restores it in later runs, for the call only."""

    def __init__(self, rng_states: dict[int, _States], place: int, device: torch.device) -> None:
        self.rng_states, self.place, self.device = rng_states, place, device
        self.current: _States = []

    def __enter__(self) -> None:
        now = generator_states(self.device)
        if self.place not in self.rng_states:
            self.rng_states[self.place] = now
            return
        self.current = now
        for set_state, state in self.rng_states[self.place]:
            set_state(state)

    def __exit__(self, *_: object) -> None:
        for set_state, state in self.current:
            set_state(state)


class BatchNormReplay:
    """One batch in chunks: forward without a graph, then backward from the gradient at z.

    With batch norm over all processes, they synchronise at each norm, whatever their numbers of chunks.

    Args:
        encoder: In train or eval mode; returns z, or a tuple that ends with z.
        chunks: Images, at least one in each.

    Raises:
        ConfigError: If the encoder has operations that cannot be replayed.
    """

    def __init__(self, encoder: nn.Module, chunks: Sequence[Tensor]) -> None:
        tapes = _tapes(encoder, chunks)
        self.chunks = [_Chunk(tapes[chunk.shape], chunk) for chunk in chunks]
        tape = self.chunks[0].tape
        self.norms: dict[int, Norm] = {
            place: call for place, call in enumerate(tape.calls) if isinstance(call, Norm)
        }
        self.end = len(tape.calls)
        self.cuts = choose_cuts(tape)
        self.recomputed = not_saved(tape, self.cuts)
        self.statistics: dict[int, BatchStatistics] = {}
        for each in tapes.values():
            require_separate(each, [*self.norms, *self.cuts])

    @torch.no_grad()
    def forward(self) -> list[Tensor]:
        """Each chunk's z. The running statistics are updated once, by those of the whole batch."""
        live: list[_Tensors] = [{0: chunk.images} for chunk in self.chunks]
        places = sorted({*self.norms, *self.cuts, self.end})
        for start, stop in pairwise(places):
            if start in self.norms:
                both = zip(self.chunks, live, strict=True)
                parts = [batch_statistics(tensors[self._rows(chunk, start)]) for chunk, tensors in both]
                self.statistics[start] = combine_statistics(parts, self.norms[start].processes)
                norm = self.norms[start]
                update_running_statistics(norm.running, norm.momentum, self.statistics[start])
            for chunk, tensors in zip(self.chunks, live, strict=True):
                # the last segment goes backward first, so its norms need no second run
                if start in self.cuts or (start > self.cuts[-1] and start != self.recomputed):
                    chunk.stored[start] = dict(tensors)
                chunk.run(tensors, start, stop, self.statistics)
        return [tensors[chunk.tape.result] for chunk, tensors in zip(self.chunks, live, strict=True)]

    def backward(self, gradients: Sequence[Tensor]) -> None:
        """Add the gradients of all parameters, from those of each chunk's z."""
        for chunk, gradient in zip(self.chunks, gradients, strict=True):
            chunk.gradients = {chunk.tape.result: gradient}
        shared: SharedGradient | None = None
        for start, stop in reversed(list(pairwise([*self.cuts, self.end]))):
            places = sorted({start, *(norm for norm in self.norms if start < norm < stop)})
            if stop < self.end:  # the last segment was stored in the forward pass
                self._recompute(places)
            for piece in reversed(list(pairwise([*places, stop]))):
                shared = self._backward_piece(*piece, shared)

    @torch.no_grad()
    def _recompute(self, places: list[int]) -> None:
        for chunk in self.chunks:
            tensors = dict(chunk.stored[places[0]])
            for start, stop in pairwise(places):
                chunk.run(tensors, start, stop, self.statistics)
                if stop != self.recomputed:
                    chunk.stored[stop] = dict(tensors)

    def _backward_piece(self, start: int, stop: int, shared: SharedGradient | None) -> SharedGradient | None:
        """Backpropagate the gradient from the end of a piece to its start, for all chunks.

        The rows of a batch norm are freed by the time its sums over all chunks are known. They are computed
        again as the end of the piece before it, where the shared term is subtracted.
        """
        norm = self.norms.get(start)
        affine = None if norm is None else _affine_leaves(norm, self.statistics[start])
        for chunk in self.chunks:
            rows = None if shared is None else (self._rows(chunk, stop), shared)
            _backward_chunk(chunk, start, stop, self.statistics, affine, rows)
        return None if norm is None or affine is None else _shared_term(norm, self.statistics[start], affine)

    @staticmethod
    def _rows(chunk: _Chunk, place: int) -> int:
        return chunk.tape.calls[place].reads[0]


def _tapes(encoder: nn.Module, chunks: Sequence[Tensor]) -> dict[torch.Size, Tape]:
    """A tape for each shape of a chunk; counters of the encoder (num_batches_tracked) are updated once."""
    tapes = dict[torch.Size, Tape]()
    for chunk in chunks:
        if chunk.shape in tapes:
            continue
        before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
        tapes[chunk.shape] = record(encoder, chunk)
        if len(tapes) > 1:
            with torch.no_grad():
                for name, buffer in encoder.named_buffers():
                    buffer.copy_(before[name])
    paths = [[getattr(call, "function", Norm) for call in tape.calls] for tape in tapes.values()]
    if any(path != paths[0] for path in paths):
        raise ConfigError(
            "the encoder makes other calls for a chunk of another size; give chunks of one size, or "
            "the whole batch"
        )
    return tapes


def _backward_chunk(
    chunk: _Chunk,
    start: int,
    stop: int,
    statistics: dict[int, BatchStatistics],
    affine: tuple[Tensor, Tensor] | None,
    shared: tuple[int, SharedGradient] | None,
) -> None:
    """Run a piece of one chunk with a graph, and backpropagate the gradient at its end to its start."""
    needs, stored = chunk.tape.needs, chunk.stored.pop(start, None)
    if stored is None:  # the first norm, whose live set is cheaper to compute from the images than to store
        stored = {0: chunk.images}
        with torch.no_grad():
            chunk.run(stored, 0, start, statistics)
    leaves = {slot: tensor.detach().requires_grad_(needs[slot]) for slot, tensor in stored.items()}
    tensors = dict(leaves)
    with torch.enable_grad():
        chunk.run(tensors, start, stop, statistics, affine)
    if shared is not None and shared[0] in chunk.gradients:
        subtract_shared(chunk.gradients[shared[0]], tensors[shared[0]].detach(), shared[1])
    # a slot that the piece only passes on is its own leaf: autograd would give it no gradient
    through = {slot for slot, leaf in leaves.items() if tensors.get(slot) is leaf}
    ends = {
        slot: tensor
        for slot, tensor in tensors.items()
        if slot in chunk.gradients and slot not in through and tensor.requires_grad
    }
    if ends:
        # one call for all ends: the graph is shared, and a second call would find it freed
        with torch.autocast(chunk.images.device.type, enabled=False):
            torch.autograd.backward(list(ends.values()), [chunk.gradients[slot] for slot in ends])
    gradients = _Tensors()
    for slot, leaf in leaves.items():
        parts = [leaf.grad, chunk.gradients.get(slot) if slot in through else None]
        given = [part for part in parts if part is not None]
        if given:
            gradients[slot] = given[0] if len(given) == 1 else given[0].add_(given[1])
    chunk.gradients = gradients
