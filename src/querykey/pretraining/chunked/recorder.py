"""Records a forward pass as a tape, while it runs."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup, current_process_group
from querykey.encoders.norm.sync_batchnorm import global_batch_norm
from querykey.errors import ConfigError
from querykey.pretraining.chunked.tape import (
    STATE,
    Call,
    Norm,
    Slot,
    Tape,
    generator_states,
    tensors_in,
    with_tensors,
)

__all__ = ["record"]

_READS_VALUES = frozenset(
    {"item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__", "__contains__"}
)


def record(encoder: nn.Module, images: Tensor) -> Tape:
    """Run an encoder once and record its torch calls.

    State that does not depend on the images, such as num_batches_tracked, is updated in this run only;
    running statistics are not updated. The RNG state is restored.

    Args:
        encoder: Returns z, or a tuple that ends with z.
        images: One chunk.

    Returns:
        The tape, which is valid for chunks of this shape.

    Raises:
        ConfigError: If the encoder has operations that cannot be replayed.
    """
    states = generator_states(images.device)
    recorder = _Recorder(encoder, images.device)
    with torch.enable_grad():
        start = images.detach()
        if images.is_floating_point():
            # requires a gradient, so that a tensor not made by torch functions has a grad_fn; a clone, as the
            # encoder may change its input in place, which a leaf refuses
            start = start.requires_grad_().clone()
        recorder.add(start, needs=False)
        with recorder:
            output = encoder(start)
    for set_state, state in states:
        set_state(state)
    z = output[-1] if isinstance(output, tuple) else output
    if not isinstance(z, Tensor) or recorder.slot_of(z) is None:
        raise ConfigError(
            f"{type(encoder).__name__} gave a {type(z).__name__} that torch's functions did not make of "
            "the images; a forward has to return z, or a tuple that ends with z"
        )
    tape = recorder.tape
    tape.close(recorder.slots[id(z)])
    return tape


class _Recorder(TorchFunctionMode):
    def __init__(self, encoder: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.tape = Tape()
        self.slots: dict[int, int] = {}
        self._had_grad: list[bool] = []
        self.device = device
        self._references: list[Tensor] = []  # keeps tensors alive, as Python reuses the id of a freed one
        self._state = {id(tensor) for tensor in (*encoder.parameters(), *encoder.buffers())}

    def slot_of(self, tensor: Tensor) -> int | None:
        """The slot of a tensor, None for parameters and constants."""
        slot = self.slots.get(id(tensor))
        had_grad = id(tensor) in self._state if slot is None else self._had_grad[slot]
        if tensor.grad_fn is not None and not had_grad:
            raise ConfigError(
                f"the encoder computes a tensor of shape {list(tensor.shape)} by other means than torch's "
                "functions (an autograd.Function, torch.compile or torch.jit), which cannot be run in "
                "chunks with batch norm; use the whole batch, or batch norm of another kind"
            )
        return slot

    def add(self, tensor: Tensor, *, needs: bool) -> int:
        """The slot of an output of a call: a new one, or that of the argument it changed in place."""
        if id(tensor) not in self.slots:
            self.slots[id(tensor)] = len(self.tape.sizes)
            self.tape.sizes.append(tensor.numel() * tensor.element_size())
            self.tape.storages.append(tensor.untyped_storage().data_ptr())
            self.tape.needs.append(False)
            self._had_grad.append(False)
            self.tape.born.append(len(self.tape.calls) - 1)
        self._references.append(tensor)
        slot = self.slots[id(tensor)]
        self.tape.needs[slot] |= needs and tensor.is_floating_point()
        self._had_grad[slot] |= tensor.requires_grad
        return slot

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = dict(kwargs or {})
        if func in (F.batch_norm, global_batch_norm):
            names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
            given = dict(zip(names, args, strict=False)) | kwargs
            if func is global_batch_norm:
                return self._norm(**given, processes=current_process_group())
            if given.pop("training", False):
                return self._norm(**given)
        return self._call(func, args, kwargs)

    def _norm(
        self,
        *,
        input: Tensor,  # noqa: A002 -- torch's name
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        momentum: float = 0.1,
        eps: float = 1e-5,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> Tensor:
        rows = self.slot_of(input)
        affine = [tensor for tensor in (weight, bias) if tensor is not None]
        if rows is None or not all(tensor.is_leaf and id(tensor) not in self.slots for tensor in affine):
            raise ConfigError(
                "a batch norm of something else than the images' features, or whose scale and shift are "
                "computed, cannot be run in chunks; use the whole batch"
            )
        none, one = (torch.full((input.shape[1],), value).to(self.device) for value in (0.0, 1.0))
        # the values do not matter in this run, and eval mode also works for a chunk of one row
        output = F.batch_norm(input, none.to(input.dtype), one.to(input.dtype), eps=eps)
        needs = self.tape.needs[rows] or any(tensor.requires_grad for tensor in affine)
        place = len(self.tape.sizes)
        running = None if running_mean is None or running_var is None else (running_mean, running_var)
        self.tape.calls.append(
            Norm(
                rows=rows,
                output=place,
                weight=weight,
                bias=bias,
                running=running,
                momentum=momentum,
                eps=eps,
                processes=processes,
            )
        )
        self.add(output, needs=needs)
        return output

    def _call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = list(tensors_in((args, kwargs)))
        read = [slot for tensor in inputs if (slot := self.slot_of(tensor)) is not None]
        name = getattr(function, "__name__", "")
        if name in _READS_VALUES and read:
            raise ConfigError(
                f"the encoder reads the values of its activations ({name}), so that chunks may go other "
                "ways than the whole batch; use the whole batch, or batch norm of another kind"
            )
        versions = [tensor._version for tensor in inputs]  # noqa: SLF001 -- torch counts changes there
        states_before = [state for _, state in generator_states(self.device)]
        output = function(*args, **kwargs)
        states_after = [state for _, state in generator_states(self.device)]
        changed = [t for t, version in zip(inputs, versions, strict=True) if t._version != version]  # noqa: SLF001
        outputs = list(tensors_in(output))

        if any(id(tensor) not in self.slots for tensor in changed):
            if read:
                raise ConfigError(
                    f"the encoder keeps something of its activations ({name}), other than batch norm does; "
                    "what it would keep of a batch in chunks is not known: use the whole batch"
                )
            return output
        if changed or any(id(tensor) not in self._state for tensor in outputs):
            is_random = not all(map(torch.equal, states_before, states_after))
            self._write(function, args, kwargs, read, changed, outputs, is_random=is_random)
        return output

    def _write(
        self,
        function: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        read: list[int],
        changed: list[Tensor],
        outputs: Iterable[Tensor],
        *,
        is_random: bool,
    ) -> None:
        def placed(tensor: Tensor) -> Tensor | Slot:
            slot = self.slots.get(id(tensor))
            return tensor if slot is None else Slot(slot)

        kind = self.device.type
        learned = any(tensor.requires_grad and tensor.is_leaf for tensor in tensors_in((args, kwargs)))
        needs = torch.is_grad_enabled() and (learned or any(self.tape.needs[slot] for slot in read))
        before = {"args": with_tensors(args, placed), "kwargs": with_tensors(kwargs, placed)}
        # the entry first: `add` notes the number of the call that a slot comes from
        place = len(self.tape.calls)
        self.tape.calls.append(None)  # type: ignore[arg-type]
        self.tape.calls[place] = Call(
            function=function,
            **before,
            reads=tuple(read),
            writes=tuple(self.add(tensor, needs=needs) for tensor in changed),
            outputs=tuple(STATE if id(one) in self._state else self.add(one, needs=needs) for one in outputs),
            has_grad=torch.is_grad_enabled(),
            is_random=is_random,
            autocast=(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)),
        )
