"""A pretraining run: what is trained, on which images, and how it is evaluated."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from querykey.data.pixels.pixels import Pixels
from querykey.diagnostics.collapse import check_collapse, monitor
from querykey.diagnostics.dictionary import (
    PairsWithIds,
    dictionary_health,
    dictionary_warnings,
    item_labels,
    lookup_health,
)
from querykey.diagnostics.drift import drift_of, stored_ages
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.encoders.projection import ViewEncoder
from querykey.errors import DataError, RangeError
from querykey.lookup.lookup import Lookup
from querykey.pretraining.images import DataSplit, TrainingImages
from querykey.pretraining.learner import Learner
from querykey.pretraining.methods.modules import make_encoder
from querykey.pretraining.methods.step import StepOutput
from querykey.pretraining.saved_encoder import SavedEncoder, encode_rows, identified, preparation
from querykey.pretraining.settings.memory_plan import key_half_life
from querykey.pretraining.settings.settings import PretrainSettings
from querykey.types import Labels

__all__ = ["Calibration", "TrainingRun", "build_run"]

DRIFT = "drift_"
"""Prefix of the metrics of drift; the age in steps follows."""
EARLY = 100
"""Steps before which nothing is said about a dictionary."""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Calibration:
    """The result of the measurements of `autotune`.

    Args:
        precision: "float32" or "bfloat16".
        layout: "contiguous" or "channels_last".
        seconds: Of a whole step, views included: the shortest of several, or the mean of more where the
            number of steps follows from it.
        tried: Seconds of every combination that was tried.
        evaluation_seconds: Of an evaluation; None where nothing follows from it.
    """

    precision: Literal["float32", "bfloat16"]
    layout: Literal["contiguous", "channels_last"]
    seconds: float
    tried: dict[str, float]
    evaluation_seconds: float | None = None


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """A run that can be trained, evaluated and saved.

    Args:
        learner: What is trained.
        images: What it is trained on.
        split_data: Which images are trained on and which are evaluated.
        untrained: The encoder before the first step.
        start: Metrics of the untrained encoder.
        calibration: What `autotune` measured; None for a resumed run.
    """

    learner: Learner
    images: TrainingImages
    split_data: DataSplit
    untrained: ViewEncoder
    start: Mapping[str, float] = field(default_factory=dict)
    calibration: Calibration | None = None

    @property
    def settings(self) -> PretrainSettings:
        """Resolved, with everything that was measured."""
        return self.learner.settings

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.learner.steps

    def evaluate_rows(self, output: StepOutput) -> dict[str, float]:
        """Metrics of the encoder: online kNN, collapse of h and of the views' projections.

        Args:
            output: Of a step.

        Returns:
            By name; the same on all processes.
        """
        pixels, processes, sample = self.images.pixels, self.learner.processes, self.split_data.sample
        prepare = preparation(self.settings, pixels.channels)
        h, _ = encode_rows(self.learner.encoder, prepare, pixels, sample[processes.local_slice(len(sample))])
        if processes.world_size > 1:
            h = processes.all_gather_with_grad(h.to(self.learner.device), len(sample)).cpu()
        split, views = self.split_data, (output.view_1.cpu(), output.view_2.cpu())
        metrics = monitor(h, *views, labels=split.labels, queries=split.queries, loss=output.loss)
        return processes.broadcast_object(metrics)

    def evaluate(
        self, output: StepOutput, *, step: int, lookups: Sequence[Mapping[str, float]]
    ) -> dict[str, float]:
        """All metrics: of the encoder, of the lookups of the last step and of the dictionary.

        Args:
            output: Of the last step.
            step: Steps taken.
            lookups: What `lookup_metrics` gave for each lookup of that step; their mean is taken.

        Returns:
            By name.
        """
        metrics = self.evaluate_rows(output)
        for name in dict.fromkeys(name for one in lookups for name in one):
            values = [one[name] for one in lookups if name in one]
            metrics[name] = sum(values) / len(values)
        return metrics | self._dictionary_metrics(step)

    @torch.no_grad()
    def lookup_metrics(self, lookup: Lookup) -> dict[str, float]:
        """Metrics of a lookup: scores, candidates, false negatives; of the local shard if it is sharded.

        Args:
            lookup: Without gradient.

        Returns:
            By name.
        """
        labels, pairs = self.split_data.train_labels, lookup.pairs
        classes: dict[str, Labels] = {}
        if labels is not None and isinstance(pairs, PairsWithIds):
            classes = {
                "query_labels": item_labels(pairs.query_ids, labels),
                "key_labels": item_labels(pairs.key_ids, labels),
            }
        metrics = lookup_health(lookup, temperature=float(self.learner.temperature()), **classes)
        if self.settings.dictionary.sharded and "candidates" in metrics:
            own_key = 0 if self.settings.method == "xbm" else 1  # counted on every process
            group = lookup.shard_group if self.settings.method == "xbm" else self.learner.processes
            others = group.sum(torch.tensor(metrics["candidates"] - own_key, device=lookup.keys.device))
            metrics["candidates"] = own_key + float(others)
        return metrics

    def _dictionary_metrics(self, step: int) -> dict[str, float]:
        """Fill, age and drift of the dictionary after some steps; empty if the method has none."""
        learner, dictionary = self.learner, self.learner.dictionary
        if dictionary is None or not len(dictionary):
            return {}
        since = step - (learner.memory_start if self.settings.method == "xbm" else 0)
        view = 1 if "key_encoder" in learner.parts else 0
        drift = drift_of(
            dictionary,
            self.images,
            learner.encode_stored,
            module=learner.encodes_stored,
            step=step,
            views=(1, 0) if self.settings.key_encoder.symmetric else (view,),
            ages=stored_ages(dictionary, steps=since),
            lost=self.images.lost,
        )
        capacity = self.settings.dictionary.capacity or len(dictionary)
        health = dictionary_health(dictionary, capacity)
        return health | {f"{DRIFT}{age}": value for age, value in drift.items()}

    def warnings(self, metrics: Mapping[str, float], *, step: int) -> dict[str, str]:
        """Problems of the dictionary that the metrics show.

        Args:
            metrics: Of `evaluate`.
            step: Steps taken.

        Returns:
            By name, a message each; none in the first `EARLY` steps.
        """
        if step < EARLY:
            return {}
        drift = {int(name.removeprefix(DRIFT)): metrics[name] for name in metrics if name.startswith(DRIFT)}
        half_life, is_over = key_half_life(self.settings), step == self.steps
        return dictionary_warnings(
            metrics, drift=drift, half_life=half_life, start=self.start, is_over=is_over
        )

    def check_collapse(self, metrics: dict[str, float]) -> str | None:
        """Why the embeddings have collapsed; None if they have not."""
        return check_collapse(metrics, dict(self.start) or None)

    def saved_encoder(self, report: dict[str, Any]) -> SavedEncoder:
        """A copy of the encoder as it is now, for a folder."""
        encoder = copy.deepcopy(self.learner.encoder).cpu().eval().requires_grad_(requires_grad=False)
        return identified(SavedEncoder(encoder, self.settings, self.images.pixels.channels, report))


def build_run(
    settings: PretrainSettings,
    pixels: Pixels,
    split_data: DataSplit,
    *,
    device: torch.device,
    start: Mapping[str, float] | None = None,
    calibration: Calibration | None = None,
    is_restored: bool = False,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> TrainingRun:
    """Make the objects of a run.

    Args:
        settings: Resolved, and complete but for a run that `autotune` makes for its measurements.
        pixels: All images.
        split_data: Which of them are trained on and which are evaluated.
        device: On which it trains.
        start: Metrics of the untrained encoder.
        calibration: What `autotune` measured.
        is_restored: Whether the weights will be restored, so that initial ones need not be read or computed
            from the data.
        processes: Over which each batch is sliced.

    Returns:
        The run, before its first step.

    Raises:
        RangeError: If there are fewer images than a batch has, or a process would have fewer than 2 of one.
        DataError: If the processes have not found the same images.
    """
    if len(split_data.train) < settings.batch_size:
        raise RangeError(
            f"{len(split_data.train)} images to train on and batch_size {settings.batch_size}; "
            "lower batch_size or held_out"
        )
    if processes.world_size > 1 and settings.batch_size < 2 * processes.world_size:
        raise RangeError(
            f"a batch of {settings.batch_size} images over {processes.world_size} processes; each needs 2 at "
            "least: raise batch_size or start fewer processes"
        )
    # a restored backbone does not depend on the file that it was initialised from: it may be gone
    initial = settings.changed({"backbone.init": None}) if is_restored else settings
    encoder = make_encoder(initial, channels=pixels.channels, processes=processes)
    _require_same_images(split_data, device, processes)
    views = settings.make_views(pixels.channels), settings.make_second_views(pixels.channels)
    train, labels = split_data.train, split_data.train_labels
    images = TrainingImages(pixels, train, views, settings, device=device, labels=labels, processes=processes)
    if not is_restored and settings.backbone.init is None:
        _initialise_from_data(encoder, images)
    learner = Learner(encoder, settings, device, items=len(split_data.train), processes=processes)
    run = TrainingRun(
        learner, images, split_data, copy.deepcopy(encoder).cpu(), dict(start or {}), calibration
    )
    use_layout(run, settings.layout)
    return run


def use_layout(run: TrainingRun, layout: Literal["auto", "contiguous", "channels_last"]) -> None:
    """Bring weights and views to a memory format, in place; "auto" is contiguous."""
    kind = LAYOUTS["contiguous" if layout == "auto" else layout]
    if run.images.layout != kind or layout == "channels_last":
        run.learner.encoder.to(memory_format=kind)
    run.images.layout = kind


def _require_same_images(split_data: DataSplit, device: torch.device, processes: ProcessGroup) -> None:
    if processes.world_size == 1:
        return
    local = torch.tensor([[len(split_data.train), int(split_data.train.sum())]], device=device)
    gathered = processes.all_gather_with_grad(local, processes.world_size)
    if bool((gathered != gathered[0]).any()):
        raise DataError(
            f"the processes have found {gathered[:, 0].tolist()} images to train on, and not the same ones; "
            "give each machine all files"
        )


def _initialise_from_data(encoder: ViewEncoder, images: TrainingImages) -> None:
    """Give the backbone its first batch, for a network whose initial weights depend on the data."""
    (batch,) = images.walk(0, 1)
    encoder.backbone.start_(images.processes.all_gather_with_grad(batch.view_1, len(batch.ids)).cpu())
