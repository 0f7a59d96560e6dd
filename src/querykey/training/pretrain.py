"""Pretraining: what is trained, the images it sees, and the loop over its steps."""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from querykey.data.batches import UniformBatches
from querykey.data.pixels import Pixels
from querykey.data.views import Views
from querykey.encoders.backbones import load_backbone_weights, make_backbone
from querykey.encoders.batchnorm import convert_batch_norm
from querykey.encoders.projection import ProjectionHead, ViewEncoder
from querykey.errors import CollapseError
from querykey.losses.temperature import LearnedTemperature
from querykey.optim import LARS, parameter_groups, warm_up_cosine
from querykey.training.checkpoint import optimizer_tensors, restore_optimizer_
from querykey.training.pretrain_settings import PretrainSettings
from querykey.training.simclr import simclr_step
from querykey.training.view_objectives import view_objective
from querykey.training.view_step import Computing, ViewStep
from querykey.types import Ids

__all__ = ["Learner", "Loop", "TrainingImages", "ViewPair", "make_encoder", "train"]

TEMPERATURE_RATE = 0.01
"""Of the learning rate: its gradient is of the size of the loss, and rates that suit weights blow it up."""
SAVE_SECONDS = 60.0
RECORDS = 200
"""Steps of a run that are recorded, besides those where the monitors look."""


def make_encoder(settings: PretrainSettings, *, channels: int) -> ViewEncoder:
    """The encoder that resolved settings describe, with its first weights.

    Args:
        settings: Resolved.
        channels: Of an image.

    Returns:
        Backbone and projection head, in train mode, on the CPU; the same bits for the same seed.
    """
    assert settings.image_size is not None
    backbone = make_backbone(
        settings.backbone, channels=channels, image_size=settings.image_size, stem=settings.stem,
        seed=settings.seed,
    )  # fmt: skip
    if settings.init is not None:
        load_backbone_weights(backbone, settings.init)
    head = ProjectionHead(
        backbone.dim, dim=settings.head_dim, kind=settings.head, layers=settings.head_layers,
        hidden=settings.head_hidden, batch_norm=settings.head_batch_norm, seed=settings.seed,
    )  # fmt: skip
    encoder = ViewEncoder(backbone, head)
    groups = settings.batch_norm_groups if settings.batch_norm == "split" else None
    convert_batch_norm(encoder, settings.batch_norm, groups=groups)
    return encoder.train()


class Learner:
    """What is trained: encoder, optimiser, and the temperature where it is learned.

    Args:
        encoder: Moved to the device.
        settings: Resolved.
        device: Where steps run.
    """

    def __init__(self, encoder: ViewEncoder, settings: PretrainSettings, device: torch.device) -> None:
        self.encoder, self.settings, self.device = encoder.to(device), settings, device
        self.temperature = (
            LearnedTemperature(initial=settings.temperature).to(device)
            if settings.learned_temperature
            else None
        )
        self.optimizer = _optimizer(encoder, settings)
        if self.temperature is not None:
            self.optimizer.add_param_group(
                {"params": [*self.temperature.parameters()], "weight_decay": 0.0,
                 "share_of_rate": TEMPERATURE_RATE}
            )  # fmt: skip

    def take(self, step: int, pair: "ViewPair", *, steps: int) -> ViewStep:
        """Take one step.

        Args:
            step: Its number, from 0; the learning rate follows from it.
            pair: Two views of a batch.
            steps: Of the whole run.

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
        tau = settings.temperature if self.temperature is None else self.temperature()
        # dropout and the like draw from torch's own generator: a key of its own for each step
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(settings.seed * 1_000_003 + step)
            return simclr_step(
                self.encoder, self.optimizer, (pair.view_1, pair.view_2), ids=pair.ids,
                loss=view_objective(settings.loss, tau, **settings.loss_options),
                computing=Computing(
                    precision=torch.bfloat16 if settings.precision == "bfloat16" else torch.float32,
                    chunks=settings.chunks, checkpointing=settings.checkpointing,
                    normalised=settings.normalised,
                ),
            )  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training changes, by name."""
        weights = {f"model.{name}": value for name, value in self._module().state_dict().items()}
        return weights | {f"optimizer.{name}": v for name, v in optimizer_tensors(self.optimizer).items()}

    def restore_(self, tensors: dict[str, Tensor]) -> None:
        """Put `tensors` back, in place.

        Args:
            tensors: Of a learner of the same settings.
        """
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
        self._module().load_state_dict(parts["model"])
        restore_optimizer_(self.optimizer, parts["optimizer"])

    def require_finite(self, step: int) -> None:
        """See that the state after a step is worth keeping.

        Args:
            step: Steps taken.

        Raises:
            CollapseError: If a number of it is not finite: the loss that shows it comes a step later.
        """
        for name, value in self.tensors().items():
            if not bool(value.isfinite().all()):
                raise CollapseError(
                    f"step {step}: {name} is not finite any more; lower the learning rate, or lengthen the "
                    "warm-up"
                )

    def _module(self) -> nn.Module:
        parts = {"encoder": self.encoder}
        return nn.ModuleDict(parts if self.temperature is None else parts | {"temperature": self.temperature})


class ViewPair(NamedTuple):
    """Two views of a batch of images."""

    view_1: Tensor
    view_2: Tensor
    ids: Ids
    seconds: float
    """That decoding and augmentation took."""


class TrainingImages:
    """The batches of a run: which images and which views, a function of the step alone.

    Args:
        pixels: All images.
        rows: Those that training sees.
        views: How they are augmented.
        batch_size: Images a step.
        seed: Of order and views.
        device: Where views are made.
        layout: Of the views in memory.
    """

    def __init__(
        self,
        pixels: Pixels,
        rows: Ids,
        views: Views,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.pixels, self.rows, self.views = pixels, rows, views
        self.seed, self.device, self.layout = seed, device, layout
        self.order = UniformBatches(len(rows), batch_size=batch_size, seed=seed)
        self.steps_an_epoch = len(rows) // batch_size

    def walk(self, start: int, stop: int) -> Generator[ViewPair]:
        """The pairs of steps start to stop."""
        wanted = (self.rows[self.order(step)] for step in range(start, stop))
        before = time.perf_counter()
        for step, (decoded, sizes, ids) in enumerate(self.pixels.stream(wanted), start):
            images = decoded.to(self.device)
            epoch, place = divmod(step, self.steps_an_epoch)
            view_1, view_2 = (
                self.views(
                    images,
                    ids,
                    seed=self.seed,
                    epoch=epoch,
                    view=view,
                    batch=place,
                    sizes=sizes,
                    memory_format=self.layout,
                )
                for view in (0, 1)
            )
            yield ViewPair(view_1, view_2, ids.to(self.device), time.perf_counter() - before)
            before = time.perf_counter()


@dataclass(frozen=True)
class Loop:
    """What happens between the steps; every callable gets the number of steps that are done.

    Args:
        look: Measures the run and raises CollapseError where it means nothing any more.
        record: Keeps a step's numbers.
        save: Keeps the state.
        shown: Is told how far the run is: (steps, loss).
        stop: Whether to stop now.
    """

    look: Callable[[int, ViewStep], None]
    record: Callable[[int, dict[str, Any]], None]
    save: Callable[[int], None]
    shown: Callable[[int, float], None]
    stop: Callable[[], bool]


def train(learner: Learner, images: TrainingImages, loop: Loop, *, start: int, steps: int) -> int:
    """Take the steps of a run from `start` on.

    Args:
        learner: Changed in place.
        images: Its batches.
        loop: What happens between the steps.
        start: Steps taken before.
        steps: Of the whole run.

    Returns:
        Steps taken in all: fewer than `steps` where it was asked to stop.

    Raises:
        CollapseError: If a loss is not finite or the embeddings have collapsed; the last state that
            was saved is the last good one.
    """
    every, look_every = max(1, steps // RECORDS), max(1, -(-steps // max(1, learner.settings.looks)))
    saved, done = time.monotonic(), start
    for pair in images.walk(start, steps):
        before = time.perf_counter()
        try:
            taken = learner.take(done, pair, steps=steps)
        except CollapseError as fault:
            raise CollapseError(f"step {done}: {fault}") from fault
        done += 1
        if done % every == 0 or done == steps:
            seconds = time.perf_counter() - before
            loop.record(done, {
                "loss": taken.loss, "learning_rate": learner.optimizer.param_groups[0]["lr"],
                "seconds": seconds, "view_seconds": pair.seconds,
            })  # fmt: skip
        loop.shown(done, taken.loss)
        if learner.settings.looks and (done % look_every == 0 or done == steps):
            loop.look(done, taken)
        is_stopping = done < steps and loop.stop()
        if is_stopping or done == steps or time.monotonic() - saved > SAVE_SECONDS:
            learner.require_finite(done)
            loop.save(done)
            saved = time.monotonic()
        if is_stopping:
            break
    return done


def _optimizer(module: nn.Module, settings: PretrainSettings) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    assert rate is not None
    assert decay is not None
    groups = parameter_groups(module, weight_decay=decay)
    match settings.optimizer:
        case "sgd":
            momentum = settings.sgd_momentum
            return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0)
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate)
        case "lars":
            return LARS(groups, lr=rate, sgd_momentum=settings.sgd_momentum)
