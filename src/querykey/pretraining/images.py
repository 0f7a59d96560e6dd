"""Training images: which are trained on, which are evaluated, and the batches of views of each step."""

import time
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from querykey.data.augment.views import Views
from querykey.data.batches import Batches, ClassBatches, UniformBatches
from querykey.data.pixels.pixels import PixelBatch, Pixels
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.errors import DataError
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.pretraining.methods.step import ViewPair
from querykey.pretraining.settings.methods import ONE_VIEW
from querykey.pretraining.settings.settings import PretrainSettings
from querykey.types import Ids, Labels, Numbers, QueryIds

__all__ = ["DataSplit", "TrainingImages", "train_val_split"]

BANK = 5000
"""Training images that vote in the online kNN, at most."""


@dataclass(frozen=True, eq=False)
class DataSplit:
    """Which images are trained on, and which are evaluated during training.

    Args:
        train: Indices of the training images.
        sample: Indices of the images that are evaluated: some of `train`, then the validation images.
        queries: Positions in `sample` of the validation images.
        labels: Class of each of `sample`; None without labels.
        train_labels: Class of each of `train`, likewise.
    """

    train: Numbers
    sample: Ids
    queries: QueryIds
    labels: Labels | None
    train_labels: Numbers | None = None


def train_val_split(ids: Ids, labels: Labels | None, *, held_out: int, seed: int) -> DataSplit:
    """Choose the validation images of the online kNN; none without labels.

    Args:
        ids: All images.
        labels: Class of each, -1 where unknown, or None.
        held_out: Number of labelled images for validation, at most a tenth of all.
        seed: Of the draw.

    Returns:
        The split; the same for the same seed.
    """
    draw = np.random.default_rng([seed, len(ids)])
    order = torch.from_numpy(draw.permutation(len(ids)))
    if labels is None or not bool((labels != IGNORE_LABEL).any()):
        return DataSplit(ids, ids[order[:BANK]], torch.arange(0), None)
    labelled = order[labels[order] != IGNORE_LABEL]
    validation = labelled[: min(held_out, len(ids) // 10)]
    others = order[~torch.isin(order, validation)]
    bank = others[labels[others] != IGNORE_LABEL][:BANK]
    sample = torch.cat([bank, validation])
    trained = others.sort().values
    return DataSplit(
        ids[trained], ids[sample], torch.arange(len(bank), len(sample)), labels[sample], labels[trained]
    )


class TrainingImages:
    """The batches of a run: which images and which views, a function of the step alone.

    With several processes each decodes and augments its slice of a batch. A view depends on seed, epoch and
    image, not on the process that makes it.

    Args:
        pixels: All images.
        rows: Indices of the training images.
        views: Augmentation of the first view and of the second.
        settings: Resolved.
        device: On which views are made.
        labels: Class of each of `rows`, -1 where unknown; None without labels.
        layout: Memory format of the views.
        processes: Over which each batch is sliced.
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
        groups = settings.batch_norm.groups if settings.batch_norm.kind == "split" else 1
        self.groups = max(1, groups // processes.world_size)  # of this process's slice
        self.steps_per_epoch = len(rows) // settings.batch_size

    def lost(self) -> Ids:
        """Positions in `rows` of images that can no longer be decoded, by any process."""
        damaged = torch.tensor([row for row, _ in self.pixels.damaged], dtype=torch.int64)
        count = self.processes.sum(torch.isin(self.rows, damaged).long().to(self.device))
        return count.nonzero()[:, 0]

    def walk(self, start: int, stop: int, *, views: int | None = None) -> Generator[ViewPair]:
        """The batches of steps start to stop.

        Args:
            start: First step.
            stop: Last step, not included.
            views: 1 or 2 of each image; None: as many as the method needs.
        """
        wanted = (self.rows[self._local(self.order(step))] for step in range(start, stop))
        before = time.perf_counter()
        for step, given in enumerate(self.pixels.stream(wanted), start):
            found, places = self._without_lost(given, self.order(step))
            images = found.images.to(self.device)
            epoch, place = divmod(step, self.steps_per_epoch)
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

    def _local(self, places: Tensor) -> Tensor:
        return places[self.processes.local_slice(len(places))]

    def _without_lost(self, found: PixelBatch, places: Tensor) -> tuple[PixelBatch, Tensor]:
        """This process's images, as many as every other process has, and the positions of all."""
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
        local = self._local(places)
        local = local[torch.isin(self.rows[local], found.rows)]
        gathered = processes.all_gather_with_grad(local.to(self.device), least * processes.world_size)
        return found, gathered.cpu()


def _order(settings: PretrainSettings, rows: Ids, labels: Labels | None) -> Batches:
    if settings.method != "xbm":
        return UniformBatches(len(rows), batch_size=settings.batch_size, seed=settings.seed)
    assert labels is not None
    classes = len(torch.unique(labels[labels >= 0]))
    items = max(settings.dictionary.items_per_class, settings.batch_size // max(classes, 1))
    return ClassBatches(labels, classes=max(1, settings.batch_size // items), items=items, seed=settings.seed)
