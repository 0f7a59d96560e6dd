"""A run of pretraining put together: what is trained, on which images, and how it is looked at."""

import copy
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from querykey.data.pixels.pixels import Pixels
from querykey.diagnostics.collapse import collapse_reason, monitor
from querykey.diagnostics.dictionary import KnowsIds, held_health, labels_of, lookup_health, words_of
from querykey.diagnostics.drift import drift_of, held_ages
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.encoders.projection import ViewEncoder
from querykey.errors import DataError, RangeError
from querykey.lookup.lookup import Lookup
from querykey.pretraining.autotune import Calibration, calibrate, steps_in
from querykey.pretraining.learner import Learner
from querykey.pretraining.loop import TrainingImages
from querykey.pretraining.methods.step import ViewStep
from querykey.pretraining.saved_encoder import SavedEncoder, encode_rows, identified, preparation
from querykey.pretraining.settings.memory_plan import key_half_life
from querykey.pretraining.settings.settings import PretrainSettings
from querykey.pretraining.split import DataSplit
from querykey.types import Labels

__all__ = ["Course", "build_run"]

DRIFT = "drift_"
"""With the age in steps: the name of a drift among what the monitors see."""
EARLY = 100
"""Steps before anything about a dictionary can be said to be off."""
TRIAL_STEPS = 1000
"""Of the run in the middle of which the measured steps are."""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(eq=False)
class Course:
    """A run that can be trained, looked at and saved.

    Args:
        settings: Resolved, and measured where they must be.
        learner: What is trained.
        images: What it is trained on.
        split_data: Which images are for what.
        untrained: The encoder as it was before the first step.
        start: What the monitors saw of it then.
        calibration: What was measured; None where nothing was left open.
    """

    settings: PretrainSettings
    learner: Learner
    images: TrainingImages
    split_data: DataSplit
    untrained: ViewEncoder
    start: dict[str, float] = field(default_factory=dict)
    calibration: Calibration | None = None

    @property
    def steps(self) -> int:
        """Of the whole run."""
        assert self.settings.steps is not None
        return self.settings.steps

    def look(self, taken: ViewStep, *, step: int, looked_up: Sequence[dict[str, float]]) -> dict[str, float]:
        """What the monitors see now, of the encoder and of its dictionary.

        Args:
            taken: The last step.
            step: Steps taken.
            looked_up: What `look_at` saw of it.
        """
        seen = _look(self.learner.encoder, self, taken)
        names = dict.fromkeys(name for one in looked_up for name in one)
        for name in names:
            values = [one[name] for one in looked_up if name in one]
            seen[name] = sum(values) / len(values)
        return seen | self._held(step)

    @torch.no_grad()
    def look_at(self, lookup: Lookup) -> dict[str, float]:
        """What a look-up of the step shows; where the dictionary is sharded, of this process's share of it.

        Args:
            lookup: Without gradient.
        """
        labels, pairs = self.split_data.train_labels, lookup.pairs
        classes: dict[str, Labels] = {}
        if labels is not None and isinstance(pairs, KnowsIds):
            classes = {
                "query_labels": labels_of(pairs.query_ids, labels),
                "key_labels": labels_of(pairs.key_ids, labels),
            }
        found = lookup_health(lookup, temperature=float(self.learner.temperature()), **classes)
        if self.settings.sharded and "candidates" in found:
            own_key = 0 if self.settings.method == "xbm" else 1
            shard_group = lookup.shard_group if self.settings.method == "xbm" else self.learner.processes
            others = shard_group.sum(torch.tensor(found["candidates"] - own_key, device=lookup.keys.device))
            found["candidates"] = own_key + float(others)
        return found

    def words(self, seen: Mapping[str, float], *, step: int) -> dict[str, str]:
        """What is off about the dictionary.

        Args:
            seen: What `look` gave.
            step: Steps taken.

        Returns:
            By name, a sentence each; nothing of the first `EARLY` steps.
        """
        if step < EARLY:
            return {}
        drift = {int(name.removeprefix(DRIFT)): seen[name] for name in seen if name.startswith(DRIFT)}
        return words_of(
            seen,
            drift=drift,
            half_life=key_half_life(self.settings),
            start=self.start,
            is_over=step == self.steps,
        )

    def _held(self, step: int) -> dict[str, float]:
        """Fill, age and drift of the dictionary after some steps; empty where the method has none."""
        learner, held = self.learner, self.learner.dictionary
        if held is None or not len(held):
            return {}
        since = step - (learner.memory_start(self.steps) if self.settings.method == "xbm" else 0)
        view = 1 if "key_encoder" in learner.parts else 0
        found = drift_of(
            held, self.images, learner.encode_stored, module=learner.encodes_stored, step=step,
            views=(1, 0) if self.settings.symmetric else (view,), ages=held_ages(held, steps=since),
            lost=self.images.lost,
        )  # fmt: skip
        capacity = self.settings.capacity or len(held)
        return held_health(held, capacity) | {f"{DRIFT}{age}": value for age, value in found.items()}

    def trouble(self, seen: dict[str, float]) -> str | None:
        """Why the run means nothing any more, or None."""
        return collapse_reason(seen, self.start or None)

    def saved(self, report: dict[str, Any]) -> SavedEncoder:
        """The encoder as it is now, for a folder."""
        encoder = copy.deepcopy(self.learner.encoder).cpu().eval().requires_grad_(requires_grad=False)
        return identified(SavedEncoder(encoder, self.settings, self.images.pixels.channels, report))


def build_run(
    encoder: ViewEncoder,
    settings: PretrainSettings,
    pixels: Pixels,
    split_data: DataSplit,
    *,
    device: torch.device,
    begun: float,
    measure: bool = True,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Course:
    """Put a run together, and measure what its settings leave open.

    Args:
        encoder: With its first weights.
        settings: Resolved.
        pixels: All images.
        split_data: Which of them are for what.
        device: Where it trains.
        begun: `time.monotonic()` when the user began to wait: minutes count from then.
        measure: Whether this is the start of a run; a run that goes on has measured already.
        processes: Among which each batch is parted; what the first measures holds for all.

    Returns:
        The `Course`, whose settings are complete.

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
    _require_same_images(split_data, device, processes)
    views = settings.make_views(pixels.channels), settings.make_second_views(pixels.channels)
    images = TrainingImages(
        pixels, split_data.train, views, settings, device=device, labels=split_data.train_labels,
        processes=processes,
    )  # fmt: skip
    if measure and settings.init is None:
        _start(encoder, images)
    learner = Learner(encoder, settings, device, items=len(split_data.train), processes=processes)
    course = Course(settings, learner, images, split_data, copy.deepcopy(encoder).cpu())
    if measure:
        _measure(course, device, begun)
    _use_layout(course.learner, images, course.settings.layout)
    return course


def _require_same_images(split_data: DataSplit, device: torch.device, processes: ProcessGroup) -> None:
    if processes.world_size == 1:
        return
    own = torch.tensor([[len(split_data.train), int(split_data.train.sum())]], device=device)
    every = processes.all_gather_with_grad(own, processes.world_size)
    if bool((every != every[0]).any()):
        raise DataError(
            f"the processes have found {every[:, 0].tolist()} images to train on, and not the same ones; "
            "give each machine all files"
        )


def _start(encoder: ViewEncoder, images: TrainingImages) -> None:
    """Show the backbone its first batch, for a network that starts from what images look like."""
    (pair,) = images.walk(0, 1)
    encoder.backbone.start_(images.processes.all_gather_with_grad(pair.view_1, len(pair.ids)).cpu())


def _measure(course: Course, device: torch.device, begun: float) -> None:
    """See what the encoder is before training, choose precision and layout, and count the steps."""
    settings, images, processes = course.settings, course.images, course.learner.processes
    trial = Learner(
        copy.deepcopy(course.learner.encoder), settings, device, items=len(images.rows), processes=processes
    )
    trial.fill_()
    (pair,) = images.walk(0, 1, views=2)
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)  # dropout
        untrained, views = copy.deepcopy(course.learner.encoder).train(), torch.cat(pair[:2])
        # norms over several processes meet as often on each
        parts = views.chunk(settings.chunks if processes.world_size == 1 else 1)
        z = torch.cat([untrained(part)[1] for part in parts])
    view_1, view_2 = (processes.all_gather_with_grad(view, len(pair.ids)) for view in z.float().chunk(2))
    before = time.perf_counter()
    course.start = _look(course.learner.encoder, course, ViewStep(0.0, view_1, view_2))
    look_seconds = time.perf_counter() - before

    pairs, place = images.walk(0, sys.maxsize), TRIAL_STEPS // 2

    def step(precision: torch.dtype, layout: Literal["contiguous", "channels_last"]) -> None:
        nonlocal place
        name: Literal["float32", "bfloat16"] = "bfloat16" if precision == torch.bfloat16 else "float32"
        # at rate 0 a step costs the same, and a rate that is too high breaks the run and not the trial
        trial.settings = replace(settings, precision=name, learning_rate=0.0)
        _use_layout(trial, images, layout)
        trial.take(place, next(pairs), steps=TRIAL_STEPS)
        place += 1

    found = calibrate(
        step, precision=settings.precision, layout=settings.layout, device=device,
        is_length_open=settings.steps is None and settings.epochs is None, processes=processes,
    )  # fmt: skip
    pairs.close()
    course.calibration = found
    steps = settings.steps
    if steps is None and settings.epochs is not None:
        steps = max(1, round(settings.epochs * images.steps_an_epoch))
    elif steps is None:
        assert settings.minutes is not None
        left = 60 * settings.minutes - (time.monotonic() - begun)
        steps = steps_in(left, step=found.seconds, look=look_seconds, looks=settings.looks)
        steps = processes.broadcast_object(steps)
    course.settings = replace(
        settings, steps=steps, epochs=steps / images.steps_an_epoch, precision=found.precision,
        layout=found.layout,
    )  # fmt: skip
    course.learner.settings = course.settings


def _use_layout(
    learner: Learner, images: TrainingImages, layout: Literal["auto", "contiguous", "channels_last"]
) -> None:
    kind = LAYOUTS["contiguous" if layout == "auto" else layout]
    if images.layout != kind or layout == "channels_last":
        learner.encoder.to(memory_format=kind)
    images.layout = kind


def _look(encoder: ViewEncoder, course: Course, taken: ViewStep) -> dict[str, float]:
    pixels, processes, sample = course.images.pixels, course.learner.processes, course.split_data.sample
    prepare = preparation(course.settings, pixels.channels)
    h, _ = encode_rows(encoder, prepare, pixels, sample[processes.local_slice(len(sample))])
    if processes.world_size > 1:
        h = processes.all_gather_with_grad(h.to(course.learner.device), len(sample)).cpu()
    seen = monitor(
        h, taken.view_1.cpu(), taken.view_2.cpu(), labels=course.split_data.labels,
        asking=course.split_data.asking, loss=taken.loss,
    )  # fmt: skip
    return processes.broadcast_object(seen)
