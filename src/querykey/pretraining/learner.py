"""What is trained, and one training step of its method."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import assert_never

import torch
from torch import Tensor, nn

from querykey.dictionaries.bank import MemoryBank
from querykey.dictionaries.cross_batch import CrossBatchMemory
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup, gather_full
from querykey.encoders.momentum import momentum_at
from querykey.encoders.projection import ViewEncoder
from querykey.errors import CollapseError
from querykey.losses.temperature import LearnedTemperature
from querykey.optim import warm_up_cosine
from querykey.pretraining.checkpoint import optimizer_tensors, restore_optimizer_
from querykey.pretraining.methods.end_to_end import EndToEnd, end_to_end_step
from querykey.pretraining.methods.memory_bank import InstanceDiscrimination, bank_step
from querykey.pretraining.methods.moco import MoCo, MoCoV3, moco_step, moco_v3_step
from querykey.pretraining.methods.modules import (
    TRAINED,
    make_context,
    make_optimizer,
    method_parts,
    step_modules,
)
from querykey.pretraining.methods.simclr import SimCLR, simclr_step
from querykey.pretraining.methods.step import OnLookup, StepOutput, ViewPair, encode_preserving_buffers
from querykey.pretraining.methods.xbm import XBM, prefill, xbm_step
from querykey.pretraining.settings.settings import PretrainSettings
from querykey.types import Rows

__all__ = [
    "Learner",
    "not_finite",
    "restore_state_",
    "whole_state",
]

SHARDED_ROWS = "model.dictionary.vectors"
"""The tensor of which each process stores a shard, if the dictionary is sharded."""


def whole_state(
    parts: nn.ModuleDict, optimizer: torch.optim.Optimizer, processes: ProcessGroup
) -> dict[str, Tensor]:
    """Everything that training changes, by name.

    Args:
        parts: The trained modules and the dictionary.
        optimizer: Of the trained modules.
        processes: If the dictionary is sharded over them, all of them have to call this.

    Returns:
        The tensors themselves; a sharded one is complete on the main process and empty on the others.
    """
    state = _local_state(parts, optimizer)
    if (sharded := _sharded_dictionary(parts)) is not None:
        state[SHARDED_ROWS] = gather_full(sharded.vectors, len(sharded.written), processes)
    return state


def restore_state_(
    parts: nn.ModuleDict, optimizer: torch.optim.Optimizer, processes: ProcessGroup, state: dict[str, Tensor]
) -> None:
    """Restore a state, in place.

    Args:
        parts: The trained modules and the dictionary.
        optimizer: Of the trained modules.
        processes: Over which the dictionary may be sharded; may differ in number from those that saved it.
        state: Of `whole_state`, on every process.
    """
    kinds: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
    is_sharded = _sharded_dictionary(parts) is not None  # `is not None`: an empty queue has length 0
    for key, value in state.items():
        local = value[processes.rank :: processes.world_size] if is_sharded and key == SHARDED_ROWS else value
        kind, _, name = key.partition(".")
        kinds[kind][name] = local
    parts.load_state_dict(kinds["model"])
    restore_optimizer_(optimizer, kinds["optimizer"])


def not_finite(parts: nn.ModuleDict, optimizer: torch.optim.Optimizer, processes: ProcessGroup) -> str | None:
    """The name of a tensor with a number that is not finite; None if there is none on any process.

    Args:
        parts: The trained modules and the dictionary.
        optimizer: Of the trained modules.
        processes: All of them have to call this.
    """
    state = _local_state(parts, optimizer)
    found = [name for name, value in state.items() if not bool(value.isfinite().all())]
    device = next(iter(state.values())).device
    if processes.world_size > 1 and int(processes.sum(torch.tensor(len(found), device=device))):
        return (found or [SHARDED_ROWS])[0]
    return found[0] if found else None


def _local_state(parts: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    weights = {f"model.{name}": value for name, value in parts.state_dict().items()}
    return weights | {f"optimizer.{name}": value for name, value in optimizer_tensors(optimizer).items()}


def _sharded_dictionary(parts: nn.ModuleDict) -> CrossBatchMemory | MemoryBank | None:
    found = dict(parts.items()).get("dictionary")
    if isinstance(found, CrossBatchMemory | MemoryBank) and found.processes != SINGLE_PROCESS:
        return found
    return None


Walk = Callable[[int, int], Iterable[ViewPair]]

LONG_AGO = 1 << 40
"""In steps: no run is as long."""
TEMPERATURE_LR_SCALE = 0.01
"""The temperature's gradient is of the size of the loss; a learning rate that suits weights is too high."""


class Learner:
    """What is trained: encoder, the other modules of the method, optimizer, a learned temperature.

    Args:
        encoder: Moved to the device.
        settings: Resolved.
        device: On which steps run.
        items: Number of training images.
        processes: Over which each batch is sliced; weights and dictionary are the same on all.
    """

    def __init__(
        self,
        encoder: ViewEncoder,
        settings: PretrainSettings,
        device: torch.device,
        *,
        items: int,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.encoder, self.settings, self.device = encoder.to(device), settings, device
        self.processes = processes
        others = method_parts(encoder, settings, items=items, processes=processes)
        self.parts = nn.ModuleDict({"encoder": self.encoder, **others}).to(device)
        trained = [part for name, part in self.parts.items() if name in TRAINED]
        self.optimizer = make_optimizer(nn.ModuleList(trained), settings)
        if settings.loss.learned_temperature:
            learned = LearnedTemperature(initial=settings.loss.temperature).to(device)
            group = {"params": [*learned.parameters()], "weight_decay": 0.0, "lr_scale": TEMPERATURE_LR_SCALE}
            self.optimizer.add_param_group(group)
            self.parts["temperature"] = learned
        self._configure(settings)

    def _configure(self, settings: PretrainSettings) -> None:
        parts = dict(self.parts.items())
        self.settings = settings
        self.modules = step_modules(settings, parts, self.optimizer)
        self.context = make_context(settings, parts, self.processes)

    def with_settings(self, settings: PretrainSettings) -> "Learner":
        """A learner of the same modules and optimizer, whose steps are computed in another way.

        Args:
            settings: May differ in learning rate, number of steps, precision, chunks and checkpointing.

        Returns:
            The other learner; this one keeps its settings.
        """
        other = copy.copy(self)
        other._configure(settings)  # noqa: SLF001 -- of this class
        return other

    @property
    def dictionary(self) -> CrossBatchMemory | MemoryBank | None:
        """The queue, bank or memory; None if the keys are those of the batch."""
        if "dictionary" not in self.parts:
            return None
        found = self.parts["dictionary"]
        assert isinstance(found, CrossBatchMemory | MemoryBank)
        return found

    @property
    def steps(self) -> int:
        """Of the whole run."""
        assert self.settings.steps is not None
        return self.settings.steps

    @property
    def memory_start(self) -> int:
        """The step from which on a cross-batch memory is used."""
        return int(self.settings.dictionary.warm_up * self.steps)

    def training_step(self, step: int, batch: ViewPair, on_lookup: OnLookup | None = None) -> StepOutput:
        """One step of the method.

        Args:
            step: Its number, from 0; it determines learning rate, momentum and all random draws.
            batch: Two views of this process's slice of a batch.
            on_lookup: Called with each lookup of the step, without gradient.

        Returns:
            The loss and the rows that were looked up.

        Raises:
            CollapseError: If the loss is not finite.
        """
        self._set_learning_rate(step)
        context = self.context if on_lookup is None else replace(self.context, on_lookup=on_lookup)
        with self._seeded(step):
            match self.modules:
                case SimCLR() as modules:
                    return simclr_step(modules, batch, context)
                case MoCo() as modules:
                    return moco_step(modules, batch, context, self._momentum(step))
                case MoCoV3() as modules:
                    return moco_v3_step(modules, batch, context, self._momentum(step))
                case InstanceDiscrimination() as modules:
                    return bank_step(modules, batch, context)
                case EndToEnd() as modules:
                    return end_to_end_step(modules, batch, context)
                case XBM() as modules:
                    return xbm_step(modules, batch, context, step >= self.memory_start)
                case never:
                    assert_never(never)

    def _set_learning_rate(self, step: int) -> None:
        assert self.settings.optimizer.learning_rate is not None
        warm_up = min(int(self.settings.optimizer.warm_up * self.steps), self.steps - 1)
        rate = self.settings.optimizer.learning_rate * warm_up_cosine(step, steps=self.steps, warm_up=warm_up)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def _momentum(self, step: int) -> float:
        settings = self.settings
        return momentum_at(
            step,
            steps=self.steps,
            momentum=settings.key_encoder.momentum,
            schedule=settings.key_encoder.schedule,
        )

    @contextmanager
    def _seeded(self, step: int) -> Iterator[None]:
        """Draws follow from the step: those of torch's generator (dropout) from step and process."""
        key = self.settings.seed * 1_000_003 + step
        self.context.generator.manual_seed(key)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(key + self.processes.rank * 1_000_000_000_039)
            yield

    def temperature(self) -> float | Tensor:
        """The current value."""
        learned: Tensor | None = self.parts["temperature"]() if "temperature" in self.parts else None
        return self.settings.loss.temperature if learned is None else learned

    def encode_stored(self, images: Tensor, step: int) -> Rows:
        """Rows as a step would store them in the dictionary, made by the current encoder.

        Args:
            images: Views of a step: this process's slice.
            step: Its number, from 0.

        Returns:
            [images of all processes, dim].
        """
        rows = self.processes.total(images)
        with self._seeded(step):
            order = self.context.draw_key_order(rows) if "key_encoder" in self.parts else None
            return self.context.encode_keys(self.encodes_stored, images, order, rows)

    @property
    def encodes_stored(self) -> nn.Module:
        """The module that `encode_stored` runs."""
        return self.parts["key_encoder" if "key_encoder" in self.parts else "encoder"]

    def needs_prefill(self, step: int) -> bool:
        """Whether the dictionary has to be filled by the current encoder before a step."""
        settings = self.settings
        start = self.memory_start if settings.method == "xbm" else 0
        return settings.method in ("xbm", "memory-bank") and settings.dictionary.prefill and step == start

    def prefill_(self, images: Walk, *, steps_per_epoch: int) -> None:
        """Fill a memory or a bank with what the current encoder makes of images.

        Args:
            images: Gives the batches from one step to another; those after the last step are used.
            steps_per_epoch: Number of batches that contain every image once.
        """
        dictionary, steps, context = self.dictionary, self.steps, self.context
        with self._seeded(steps):
            if isinstance(dictionary, MemoryBank):
                start = -(-steps // steps_per_epoch) * steps_per_epoch
                pairs = ((one.view_1, one.ids, None) for one in images(start, start + steps_per_epoch))
                for rows, ids, _ in encode_preserving_buffers(self.encoder, pairs, context):
                    dictionary.put(rows, ids)
            elif isinstance(dictionary, CrossBatchMemory):
                batches = images(steps, steps + -(-dictionary.capacity // self.settings.batch_size))
                labelled = ((one.view_1, one.ids, one.labels) for one in batches if one.labels is not None)
                prefill(self.encoder, dictionary, labelled, context)

    def fill_(self) -> None:
        """Fill the dictionary with constant rows of no step, to measure a step with a full dictionary."""
        dictionary = self.dictionary
        if dictionary is None:
            return
        if isinstance(dictionary, CrossBatchMemory):
            rows = dictionary.vectors.new_ones(dictionary.capacity, dictionary.vectors.shape[1])
            ids = torch.full((len(rows),), -1, device=rows.device)
            dictionary.enqueue(rows / rows.shape[1] ** 0.5, ids)
        dictionary.written.fill_(-LONG_AGO)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training changes, by name; sharded tensors are complete on the main process."""
        return whole_state(self.parts, self.optimizer, self.processes)

    def restore_(self, tensors: dict[str, Tensor]) -> None:
        """Restore `tensors`, in place.

        Args:
            tensors: Of a learner of the same settings.
        """
        restore_state_(self.parts, self.optimizer, self.processes, tensors)

    def require_finite(self, step: int) -> None:
        """Check the state before it is saved.

        Args:
            step: Steps taken.

        Raises:
            CollapseError: If a number in it is not finite; the loss would show it only one step later.
        """
        if name := not_finite(self.parts, self.optimizer, self.processes):
            raise CollapseError(
                f"step {step}: {name} is not finite any more; lower the learning rate, or lengthen the "
                "warm-up"
            )
