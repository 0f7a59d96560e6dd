"""What a pretraining trains: each step is that of its method."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar, assert_never

import torch
from torch import Tensor, nn

from querykey.dictionaries.alignment import MomentAlignment
from querykey.dictionaries.bank import MemoryBank
from querykey.dictionaries.cross_batch import CrossBatchMemory
from querykey.dictionaries.queue import KeyQueue
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.distributed.sharding import gather_full
from querykey.encoders.momentum import MomentumEncoder, momentum_at
from querykey.encoders.norm.shuffle import spread_order
from querykey.encoders.projection import ViewEncoder
from querykey.errors import CollapseError
from querykey.lookup.lookup import Lookup
from querykey.losses.by_name import view_objective
from querykey.losses.temperature import LearnedTemperature
from querykey.optim import warm_up_cosine
from querykey.pretraining.checkpoint import optimizer_tensors, restore_optimizer_
from querykey.pretraining.methods.end_to_end import end_to_end_step
from querykey.pretraining.methods.memory_bank import bank_step
from querykey.pretraining.methods.moco import encode_keys, moco_step, moco_v3_step
from querykey.pretraining.methods.modules import TRAINED, make_optimizer, method_parts
from querykey.pretraining.methods.simclr import simclr_step
from querykey.pretraining.methods.step import (
    Computing,
    Seen,
    ViewPair,
    ViewStep,
    encode_preserving_buffers,
    projections,
)
from querykey.pretraining.methods.xbm import prefill, xbm_step
from querykey.pretraining.settings.settings import PretrainSettings
from querykey.types import PerQuery, Rows

__all__ = [
    "Learner",
    "not_finite",
    "restore_state_",
    "whole_state",
]

SHARDED_ROWS = "model.dictionary.vectors"
"""What each process has its share of, where the dictionary is sharded."""


def whole_state(
    parts: nn.ModuleDict, optimizer: torch.optim.Optimizer, processes: ProcessGroup
) -> dict[str, Tensor]:
    """Everything that training changes, by name.

    Args:
        parts: What is trained, and the dictionary.
        optimizer: Of it.
        processes: All call it, where the dictionary is sharded over them.

    Returns:
        The tensors themselves; what is sharded is whole on the first process, and nothing on the others.
    """
    state = _own_state(parts, optimizer)
    if (held := _dealt(parts)) is not None:
        state[SHARDED_ROWS] = gather_full(held.vectors, len(held.written), processes)
    return state


def restore_state_(
    parts: nn.ModuleDict, optimizer: torch.optim.Optimizer, processes: ProcessGroup, state: dict[str, Tensor]
) -> None:
    """Put a state back, in place.

    Args:
        parts: What is trained, and the dictionary.
        optimizer: Of it.
        processes: Over which the dictionary may be sharded; not those that kept the state, necessarily.
        state: Of `whole_state`, on every process.
    """
    kinds: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
    is_sharded = _dealt(parts) is not None  # an empty queue is false by itself
    for key, value in state.items():
        own = value[processes.rank :: processes.world_size] if is_sharded and key == SHARDED_ROWS else value
        kind, _, name = key.partition(".")
        kinds[kind][name] = own
    parts.load_state_dict(kinds["model"])
    restore_optimizer_(optimizer, kinds["optimizer"])


def not_finite(parts: nn.ModuleDict, optimizer: torch.optim.Optimizer, processes: ProcessGroup) -> str | None:
    """The name of a tensor with a number that is not finite; None if there is none on any process.

    Args:
        parts: What is trained, and the dictionary.
        optimizer: Of it.
        processes: All call it, where there are several.
    """
    state = _own_state(parts, optimizer)
    faults = [name for name, value in state.items() if not bool(value.isfinite().all())]
    device = next(iter(state.values())).device
    if processes.world_size > 1 and int(processes.sum(torch.tensor(len(faults), device=device))):
        return (faults or [SHARDED_ROWS])[0]
    return faults[0] if faults else None


def _own_state(parts: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    weights = {f"model.{name}": value for name, value in parts.state_dict().items()}
    return weights | {f"optimizer.{name}": value for name, value in optimizer_tensors(optimizer).items()}


def _dealt(parts: nn.ModuleDict) -> CrossBatchMemory | MemoryBank | None:
    held = dict(parts.items()).get("dictionary")
    if isinstance(held, CrossBatchMemory | MemoryBank) and held.processes != SINGLE_PROCESS:
        return held
    return None


Part = TypeVar("Part", bound=nn.Module)
Walk = Callable[[int, int], Iterable[ViewPair]]

TEMPERATURE_RATE = 0.01
"""Of the learning rate: its gradient is of the size of the loss, and rates that suit weights blow it up."""


class Learner:
    """What is trained: encoder, the other parts of its method, optimiser, a learned temperature.

    Args:
        encoder: Moved to the device.
        settings: Resolved.
        device: Where steps run.
        items: Images that are trained on.
        processes: Among which each batch is parted; what is trained is the same on all.
    """

    def __init__(
        self, encoder: ViewEncoder, settings: PretrainSettings, device: torch.device, *, items: int,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:  # fmt: skip
        self.encoder, self.settings, self.device = encoder.to(device), settings, device
        self.processes = processes
        others = method_parts(encoder, settings, items=items, processes=processes)
        self.parts = nn.ModuleDict({"encoder": self.encoder, **others}).to(device)
        trained = [part for name, part in self.parts.items() if name in TRAINED]
        self.optimizer = make_optimizer(nn.ModuleList(trained), settings)
        if settings.learned_temperature:
            self.parts["temperature"] = LearnedTemperature(initial=settings.temperature).to(device)
            self.optimizer.add_param_group(
                {"params": [*self.parts["temperature"].parameters()], "weight_decay": 0.0,
                 "share_of_rate": TEMPERATURE_RATE}
            )  # fmt: skip

    @property
    def dictionary(self) -> CrossBatchMemory | MemoryBank | None:
        """The queue, bank or memory; None where keys are the batch's own."""
        if "dictionary" not in self.parts:
            return None
        found = self.parts["dictionary"]
        assert isinstance(found, CrossBatchMemory | MemoryBank)
        return found

    def take(self, step: int, pair: ViewPair, *, steps: int, seen: Seen | None = None) -> ViewStep:
        """Take one step.

        Args:
            step: Its number, from 0; learning rate, momentum and all that is random follow from it.
            pair: Two views of a batch: of this process's part of it.
            steps: Of the whole run.
            seen: Shown what is looked up.

        Returns:
            What the step leaves for the monitors.

        Raises:
            CollapseError: If the loss is not finite.
        """
        settings = self.settings
        assert settings.learning_rate is not None
        warm_up = min(int(settings.warm_up * steps), steps - 1)
        rate = settings.learning_rate * warm_up_cosine(step, steps=steps, warm_up=warm_up)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("share_of_rate", 1.0)
        with self._drawing(step):
            return self._step(step, pair, steps, seen)

    def _step(self, step: int, pair: ViewPair, steps: int, seen: Seen | None) -> ViewStep:
        settings, parts, views = self.settings, self.parts, (pair.view_1, pair.view_2)
        computing = self._computing()
        momentum = momentum_at(
            step, steps=steps, momentum=settings.momentum, schedule=settings.momentum_schedule
        )
        permutation, loss = self._permutation(step, len(pair.ids)), self.loss
        match settings.method:
            case "simclr":
                return simclr_step(
                    self.encoder, self.optimizer, views, ids=pair.ids, loss=loss, computing=computing,
                    seen=seen,
                )  # fmt: skip
            case "moco" | "moco-v2":
                return moco_step(
                    self.encoder, self._part("key_encoder", MomentumEncoder), self.optimizer,
                    self._part("dictionary", KeyQueue), views,
                    ids=pair.ids, loss=loss, momentum=momentum, same_id=settings.same_id,
                    symmetric=settings.symmetric, permutation=permutation, computing=computing, seen=seen,
                )  # fmt: skip
            case "moco-v3":
                return moco_v3_step(
                    self.encoder, self._part("key_encoder", MomentumEncoder), parts["predictor"],
                    self.optimizer, views,
                    ids=pair.ids, loss=loss, momentum=momentum, temperature=settings.temperature,
                    permutation=permutation, computing=computing, seen=seen,
                )  # fmt: skip
            case "memory-bank":
                return bank_step(
                    self.encoder, self.optimizer, self._part("dictionary", MemoryBank), pair.view_1,
                    ids=pair.ids, temperature=self.temperature(), contrast=settings.contrast,
                    negatives=settings.negatives, generator=torch.Generator().manual_seed(self._key(step)),
                    form=settings.loss_options.get("form", "auto"), proximal=settings.proximal,
                    computing=computing, seen=seen,
                )  # fmt: skip
            case "end-to-end":
                keys = parts["trained_keys"] if settings.separate else self.encoder
                return end_to_end_step(
                    self.encoder, keys, self.optimizer, views, ids=pair.ids, loss=loss,
                    symmetric=settings.symmetric, permutation=permutation, computing=computing, seen=seen,
                )  # fmt: skip
            case "xbm":
                assert pair.labels is not None
                return xbm_step(
                    self.encoder, self.optimizer, self._part("dictionary", CrossBatchMemory), pair.view_1,
                    ids=pair.ids, labels=pair.labels, loss=loss, weight=settings.memory_weight,
                    is_warm=step >= self.memory_start(steps),
                    align=self._part("align", MomentAlignment) if "align" in parts else None,
                    computing=computing, seen=seen,
                )  # fmt: skip
            case never:
                assert_never(never)

    def temperature(self) -> float | Tensor:
        """As it is now."""
        learned: Tensor | None = self.parts["temperature"]() if "temperature" in self.parts else None
        return self.settings.temperature if learned is None else learned

    def loss(self, lookup: Lookup) -> PerQuery:
        """Loss of a `Lookup` at the current temperature.

        Each call builds a new autograd graph to a learned temperature, so two directions can be
        backpropagated separately.

        Args:
            lookup: Of one direction; it may run backward before the other is looked up.
        """
        cost = view_objective(self.settings.loss, self.temperature(), **self.settings.loss_options)
        return cost(lookup)

    def encode_stored(self, images: Tensor, step: int) -> Rows:
        """Rows as the dictionary would hold them, made by what encodes them as it is now.

        Args:
            images: Views that a step had: this process's part.
            step: Its number, from 0.

        Returns:
            [images of all processes, dim].
        """
        computing, rows = self._computing(), self.processes.total(images)
        with self._drawing(step):
            if "key_encoder" in self.parts:
                key_encoder = self._part("key_encoder", MomentumEncoder)
                permutation = self._permutation(step, rows)
                return encode_keys(key_encoder, images, permutation, computing, rows=rows)
            with computing.autocast(images.device):
                _, z = self.encoder(images)
            return self.processes.all_gather_with_grad(projections(z, normalised=computing.normalised), rows)

    @property
    def encodes_stored(self) -> nn.Module:
        """The module that `encode_stored` runs."""
        return self.parts["key_encoder" if "key_encoder" in self.parts else "encoder"]

    def memory_start(self, steps: int) -> int:
        """The step from which on a cross-batch memory is used."""
        return int(self.settings.memory_warm_up * steps)

    def _part(self, name: str, kind: type[Part]) -> Part:
        found = self.parts[name]
        assert isinstance(found, kind)
        return found

    @contextmanager
    def _drawing(self, step: int) -> Iterator[None]:
        """Dropout and the like draw from torch's own generator: here from a key of each step and process."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self._key(step) + self.processes.rank * 1_000_000_000_039)
            yield

    def _key(self, step: int) -> int:
        return self.settings.seed * 1_000_003 + step

    def _permutation(self, step: int, images: int) -> Tensor | None:
        draw, settings = torch.Generator().manual_seed(self._key(step)), self.settings
        processes, kind = self.processes.world_size, settings.batch_norm
        if not settings.shuffle or (processes > 1 and kind in ("global", "layer")):
            return None  # where the order makes no difference, no images are sent
        if kind == "split":
            return spread_order(images, groups=settings.batch_norm_groups, generator=draw)
        if processes > 1 and images % processes == 0:  # each is a group
            return spread_order(images, groups=processes, generator=draw)
        return torch.randperm(images, generator=draw)

    def _computing(self) -> Computing:
        settings = self.settings
        return Computing(
            precision=torch.bfloat16 if settings.precision == "bfloat16" else torch.float32,
            chunks=settings.chunks, checkpointing=settings.checkpointing, normalised=settings.normalised,
            processes=self.processes,
        )  # fmt: skip

    def needs_prefill(self, step: int, steps: int) -> bool:
        """Whether the dictionary is to be filled by today's encoder before a step."""
        settings = self.settings
        start = self.memory_start(steps) if settings.method == "xbm" else 0
        return settings.method in ("xbm", "memory-bank") and settings.prefill and step == start

    def prefill_(self, images: Walk, *, steps: int, steps_an_epoch: int) -> None:
        """Fill a memory or a bank with what the encoder makes of images today.

        Args:
            images: Gives the batches from one step to another; those after the run are taken.
            steps: Of the run.
            steps_an_epoch: Batches in which every image is once.
        """
        held, computing, size = self.dictionary, self._computing(), self.settings.batch_size
        with self._drawing(steps):
            if isinstance(held, MemoryBank):
                start = -(-steps // steps_an_epoch) * steps_an_epoch
                pairs = ((one.view_1, one.ids, None) for one in images(start, start + steps_an_epoch))
                for rows, ids, _ in encode_preserving_buffers(self.encoder, pairs, computing):
                    held.put(rows, ids)
            elif isinstance(held, CrossBatchMemory):
                pages = images(steps, steps + -(-held.capacity // size))
                known = ((one.view_1, one.ids, one.labels) for one in pages if one.labels is not None)
                prefill(self.encoder, held, known, computing=computing)

    def fill_(self) -> None:
        """Fill the dictionary with anything: a step is to be timed as it is when it is full."""
        held = self.dictionary
        if isinstance(held, CrossBatchMemory):
            rows = held.vectors.new_ones(held.capacity, held.vectors.shape[1])
            held.enqueue(rows / rows.shape[1] ** 0.5, torch.full((len(rows),), -1, device=rows.device))

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training changes, by name; what is sharded over processes whole, on the first."""
        return whole_state(self.parts, self.optimizer, self.processes)

    def restore_(self, tensors: dict[str, Tensor]) -> None:
        """Put `tensors` back, in place.

        Args:
            tensors: Of a learner of the same settings.
        """
        restore_state_(self.parts, self.optimizer, self.processes, tensors)

    def require_finite(self, step: int) -> None:
        """See that the state after a step is worth keeping.

        Args:
            step: Steps taken.

        Raises:
            CollapseError: If a number of it is not finite: the loss that shows it comes a step later.
        """
        if error := not_finite(self.parts, self.optimizer, self.processes):
            raise CollapseError(
                f"step {step}: {error} is not finite any more; lower the learning rate, or lengthen the "
                "warm-up"
            )
