"""Pretraining: the encoder as it begins, the images it sees, and the loop over its steps."""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from querykey.data.augment.views import Views
from querykey.data.batches import Batches, ClassBatches, UniformBatches
from querykey.data.pixels.pixels import PixelBatch, Pixels
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.encoders.backbones import load_backbone_weights, make_backbone
from querykey.encoders.projection import ProjectionHead, ViewEncoder
from querykey.errors import CollapseError, DataError, OutOfMemoryError, is_out_of_memory
from querykey.lookup.lookup import Lookup
from querykey.pretraining.checkpoint import SAVE_SECONDS
from querykey.pretraining.learner import Learner
from querykey.pretraining.methods.modules import with_batch_norm
from querykey.pretraining.methods.step import ViewPair, ViewStep
from querykey.pretraining.settings.methods import ONE_VIEW
from querykey.pretraining.settings.settings import PretrainSettings
from querykey.types import Ids, Labels

__all__ = ["Loop", "TrainingImages", "make_encoder", "train"]

RECORDS = 200
"""Steps of a run that are recorded, besides those where the monitors look."""


def make_encoder(
    settings: PretrainSettings, *, channels: int, processes: ProcessGroup = SINGLE_PROCESS
) -> ViewEncoder:
    """The encoder that resolved settings describe, with its first weights.

    Args:
        settings: Resolved.
        channels: Of an image.
        processes: Among which each batch will be parted.

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
        hidden=settings.head_hidden, batch_norm=settings.head_batch_norm, last_norm=settings.head_last_norm,
        seed=settings.seed,
    )  # fmt: skip
    encoder = ViewEncoder(backbone, head)
    with_batch_norm(encoder, settings, processes)
    return encoder.train()


class TrainingImages:
    """The batches of a run: which images and which views, a function of the step alone.

    Each of several processes decodes and augments its part of a batch. What a view is depends on seed,
    epoch and image, and not on who makes it.

    Args:
        pixels: All images.
        rows: Those that training sees.
        views: How they are augmented: the first view and the second.
        settings: Resolved.
        device: Where views are made.
        labels: Class of each of `rows`, -1 where unknown; None where there are none.
        layout: Of the views in memory.
        processes: Among which each batch is parted.
    """

    def __init__(
        self,
        pixels: Pixels,
        rows: Ids,
        views: tuple[Views, Views],
        settings: PretrainSettings,
        *,
        device: torch.device,
        labels: Labels | None = None,
        layout: torch.memory_format = torch.contiguous_format,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.processes = processes
        self.pixels, self.rows, self.views, self.labels = pixels, rows, views, labels
        self.seed, self.device, self.layout = settings.seed, device, layout
        self.view_count = 1 if settings.method in ONE_VIEW else 2
        self.order = _order(settings, rows, labels)
        groups = settings.batch_norm_groups if settings.batch_norm == "split" else 1
        self.groups = max(1, groups // processes.world_size)  # of this process's part
        self.steps_an_epoch = len(rows) // settings.batch_size

    def lost(self) -> Ids:
        """The items that can no longer be decoded."""
        damaged = torch.tensor([row for row, _ in self.pixels.damaged], dtype=torch.int64)
        found_by = self.processes.sum(torch.isin(self.rows, damaged).long().to(self.device))
        return found_by.nonzero()[:, 0]

    def walk(self, start: int, stop: int, *, views: int | None = None) -> Generator[ViewPair]:
        """The pairs of steps start to stop.

        Args:
            start: First step.
            stop: Last step, not included.
            views: 1 or 2 of each image; None: as many as the method needs.
        """
        wanted = (self.rows[self._own(self.order(step))] for step in range(start, stop))
        before = time.perf_counter()
        for step, given in enumerate(self.pixels.stream(wanted), start):
            found, places = self._without_lost(given, self.order(step))
            images = found.images.to(self.device)
            epoch, place = divmod(step, self.steps_an_epoch)
            made = [
                self.views[view](
                    images,
                    found.rows,
                    seed=self.seed,
                    epoch=epoch,
                    view=view,
                    batch=place,
                    sizes=found.sizes,
                    memory_format=self.layout,
                )
                for view in range(views or self.view_count)
            ]
            labels = None if self.labels is None else self.labels[places].to(self.device)
            seconds = time.perf_counter() - before
            yield ViewPair(made[0], made[-1], places.to(self.device), labels, seconds)
            before = time.perf_counter()

    def _own(self, places: Tensor) -> Tensor:
        return places[self.processes.local_slice(len(places))]

    def _without_lost(self, found: PixelBatch, places: Tensor) -> tuple[PixelBatch, Tensor]:
        """The images of this process, as many as every other has, and the places of those of all."""
        processes, count = self.processes, torch.tensor([len(found.rows)])
        if processes.world_size > 1:
            count = processes.all_gather_with_grad(count.to(self.device), processes.world_size).cpu()
        if int(count.sum()) == len(places):
            return found, places
        least = int(count.min())
        least -= least % self.groups
        if not least:
            raise DataError("a batch has lost so many images that a process has none; mend or restore them")
        sizes = None if found.sizes is None else found.sizes[:least]
        found = PixelBatch(found.images[:least], sizes, found.rows[:least])
        own = self._own(places)
        own = own[torch.isin(self.rows[own], found.rows)]
        return found, processes.all_gather_with_grad(own.to(self.device), least * processes.world_size).cpu()


@dataclass(frozen=True)
class Loop:
    """What happens between the steps; every callable gets the number of steps that are done.

    Of several processes each calls its own, at the same steps: `look` and `seen` compute together, while
    `record`, `save` and `shown` are for the first to write. One that asks to stop, or to save, asks for all.

    Args:
        look: Measures the run and raises CollapseError where it means nothing any more.
        seen: Is shown what is looked up in a step after which the monitors look.
        record: Keeps a step's numbers.
        save: Keeps the state.
        shown: Is told how far the run is: (steps, loss).
        stop: Whether to stop now.
        save_every: Seconds between two savings of the state.
    """

    look: Callable[[int, ViewStep], None]
    seen: Callable[[Lookup], None]
    record: Callable[[int, dict[str, Any]], None]
    save: Callable[[int], None]
    shown: Callable[[int, float], None]
    stop: Callable[[], bool]
    save_every: float = SAVE_SECONDS


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
        OutOfMemoryError: If the memory is too small for a step, which may be half taken.
    """
    every, look_every = max(1, steps // RECORDS), max(1, -(-steps // max(1, learner.settings.looks)))
    saved, done = time.monotonic(), start
    for pair in images.walk(start, steps):
        before = time.perf_counter()
        is_look = bool(learner.settings.looks) and ((done + 1) % look_every == 0 or done + 1 == steps)
        if learner.needs_prefill(done, steps):
            learner.prefill_(images.walk, steps=steps, steps_an_epoch=images.steps_an_epoch)
        try:
            taken = learner.take(done, pair, steps=steps, seen=loop.seen if is_look else None)
        except CollapseError as error:
            raise CollapseError(f"step {done}: {error}") from error
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise OutOfMemoryError(f"step {done} needs more memory than there is") from error
            raise
        done += 1
        if done % every == 0 or done == steps:
            seconds = time.perf_counter() - before
            loop.record(done, {
                "loss": taken.loss, "learning_rate": learner.optimizer.param_groups[0]["lr"],
                "seconds": seconds, "view_seconds": pair.seconds,
            })  # fmt: skip
        loop.shown(done, taken.loss)
        if is_look:
            loop.look(done, taken)
        is_stopping, is_late = _any(
            learner, done < steps and loop.stop(), time.monotonic() - saved >= loop.save_every
        )
        if is_stopping or done == steps or is_late:
            learner.require_finite(done)
            loop.save(done)
            saved = time.monotonic()
        if is_stopping:
            break
    return done


def _any(learner: Learner, *flags: bool) -> list[bool]:
    """Each flag, whether one process or more have it: all take the same way."""
    if learner.processes.world_size == 1:
        return list(flags)
    return (learner.processes.sum(torch.tensor(flags, device=learner.device).long()) > 0).tolist()


def _order(settings: PretrainSettings, rows: Ids, labels: Labels | None) -> Batches:
    if settings.method != "xbm":
        return UniformBatches(len(rows), batch_size=settings.batch_size, seed=settings.seed)
    assert labels is not None
    found = len(torch.unique(labels[labels >= 0]))
    items = max(settings.items_per_class, settings.batch_size // max(found, 1))
    return ClassBatches(labels, classes=max(1, settings.batch_size // items), items=items, seed=settings.seed)
