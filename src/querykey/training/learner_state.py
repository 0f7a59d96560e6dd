"""The state of what is trained as named tensors: to be kept, put back, and seen to be finite."""

import torch
from torch import Tensor, nn

from querykey.dealing import whole_of_dealt
from querykey.dictionaries.bank import MemoryBank
from querykey.dictionaries.cross_batch import CrossBatchMemory
from querykey.processes import ALONE, Processes
from querykey.training.checkpoint import optimizer_tensors, restore_optimizer_

__all__ = ["not_finite", "restore_state_", "whole_state"]

DEALT = "model.dictionary.vectors"
"""What each process has its share of, where the dictionary is dealt out."""


def whole_state(
    parts: nn.ModuleDict, optimizer: torch.optim.Optimizer, processes: Processes
) -> dict[str, Tensor]:
    """Everything that training changes, by name.

    Args:
        parts: What is trained, and the dictionary.
        optimizer: Of it.
        processes: All call it, where the dictionary is dealt out over them.

    Returns:
        The tensors themselves; what is dealt out is whole on the first process, and nothing on the others.
    """
    state = _own_state(parts, optimizer)
    if (held := _dealt(parts)) is not None:
        state[DEALT] = whole_of_dealt(held.vectors, len(held.written), processes)
    return state


def restore_state_(
    parts: nn.ModuleDict, optimizer: torch.optim.Optimizer, processes: Processes, state: dict[str, Tensor]
) -> None:
    """Put a state back, in place.

    Args:
        parts: What is trained, and the dictionary.
        optimizer: Of it.
        processes: Over which the dictionary may be dealt out; not those that kept the state, necessarily.
        state: Of `whole_state`, on every process.
    """
    kinds: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
    is_dealt = _dealt(parts) is not None  # an empty queue is false by itself
    for key, value in state.items():
        own = value[processes.rank :: processes.count] if is_dealt and key == DEALT else value
        kind, _, name = key.partition(".")
        kinds[kind][name] = own
    parts.load_state_dict(kinds["model"])
    restore_optimizer_(optimizer, kinds["optimizer"])


def not_finite(parts: nn.ModuleDict, optimizer: torch.optim.Optimizer, processes: Processes) -> str | None:
    """The name of a tensor with a number that is not finite; None if there is none on any process.

    Args:
        parts: What is trained, and the dictionary.
        optimizer: Of it.
        processes: All call it, where there are several.
    """
    state = _own_state(parts, optimizer)
    faults = [name for name, value in state.items() if not bool(value.isfinite().all())]
    device = next(iter(state.values())).device
    if processes.count > 1 and int(processes.sum(torch.tensor(len(faults), device=device))):
        return (faults or [DEALT])[0]
    return faults[0] if faults else None


def _own_state(parts: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    weights = {f"model.{name}": value for name, value in parts.state_dict().items()}
    return weights | {f"optimizer.{name}": value for name, value in optimizer_tensors(optimizer).items()}


def _dealt(parts: nn.ModuleDict) -> CrossBatchMemory | MemoryBank | None:
    held = dict(parts.items()).get("dictionary")
    if isinstance(held, CrossBatchMemory | MemoryBank) and held.processes != ALONE:
        return held
    return None
