"""A run of pretraining put together: what is trained, on which images, and how it is looked at."""

import copy
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from querykey.data.pixels import Pixels
from querykey.encoders.projection import ViewEncoder
from querykey.errors import RangeError
from querykey.lookup import UNLABELLED
from querykey.training.calibration import Calibration, calibrate, steps_in
from querykey.training.monitor import collapse_reason, monitor
from querykey.training.pretrain import Learner, TrainingImages
from querykey.training.pretrain_settings import PretrainSettings
from querykey.training.saved_encoder import SavedEncoder, encode_rows, identified, preparation
from querykey.training.view_step import ViewStep
from querykey.types import Ids, Labels, Numbers, QueryIds

__all__ = ["Course", "Parted", "part", "put_together"]

BANK = 5000
"""Training images that vote in the online kNN, at the most."""
TRIAL_STEPS = 1000
"""Of the run that the measured steps are the first of."""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True, eq=False)
class Parted:
    """Which images are trained on, and which are looked at.

    Args:
        train: Those that training sees.
        sample: Those that the monitors look at: some of `train`, then the ones held out.
        asking: Places in `sample` of those held out.
        labels: Class of each of `sample`; None where there are no labels.
    """

    train: Numbers
    sample: Ids
    asking: QueryIds
    labels: Labels | None


def part(ids: Ids, labels: Labels | None, *, held_out: int, seed: int) -> Parted:
    """Choose what is held out of training for the online kNN; nothing where there are no labels.

    Args:
        ids: All images.
        labels: Class of each, -1 where unknown, or None.
        held_out: Labelled images to hold out, at the most a tenth of all.
        seed: Of the draw.

    Returns:
        The parts; the same for the same seed.
    """
    draw = np.random.default_rng([seed, len(ids)])
    order = torch.from_numpy(draw.permutation(len(ids)))
    if labels is None or not bool((labels != UNLABELLED).any()):
        return Parted(ids, ids[order[:BANK]], torch.arange(0), None)
    known = order[labels[order] != UNLABELLED]
    held = known[: min(held_out, len(ids) // 10)]
    others = order[~torch.isin(order, held)]
    bank = others[labels[others] != UNLABELLED][:BANK]
    sample = torch.cat([bank, held])
    return Parted(
        ids[others.sort().values], ids[sample], torch.arange(len(bank), len(sample)), labels[sample]
    )


@dataclass(eq=False)
class Course:
    """A run that can be trained, looked at and saved.

    Args:
        settings: Resolved, and measured where they must be.
        learner: What is trained.
        images: What it is trained on.
        parted: Which images are for what.
        untrained: The encoder as it was before the first step.
        start: What the monitors saw of it then.
        calibration: What was measured; None where nothing was left open.
    """

    settings: PretrainSettings
    learner: Learner
    images: TrainingImages
    parted: Parted
    untrained: ViewEncoder
    start: dict[str, float] = field(default_factory=dict)
    calibration: Calibration | None = None

    @property
    def steps(self) -> int:
        """Of the whole run."""
        assert self.settings.steps is not None
        return self.settings.steps

    def look(self, taken: ViewStep) -> dict[str, float]:
        """What the monitors see now.

        Args:
            taken: The last step.
        """
        return _look(self.learner.encoder, self, taken)

    def trouble(self, seen: dict[str, float]) -> str | None:
        """Why the run means nothing any more, or None."""
        return collapse_reason(seen, self.start or None)

    def saved(self, report: dict[str, Any]) -> SavedEncoder:
        """The encoder as it is now, for a folder."""
        encoder = copy.deepcopy(self.learner.encoder).cpu().eval().requires_grad_(requires_grad=False)
        return identified(SavedEncoder(encoder, self.settings, self.images.pixels.channels, report))


def put_together(
    encoder: ViewEncoder,
    settings: PretrainSettings,
    pixels: Pixels,
    parted: Parted,
    *,
    device: torch.device,
    begun: float,
    measure: bool = True,
) -> Course:
    """Put a run together, and measure what its settings leave open.

    Args:
        encoder: With its first weights.
        settings: Resolved.
        pixels: All images.
        parted: Which of them are for what.
        device: Where it trains.
        begun: `time.monotonic()` when the user began to wait: minutes count from then.
        measure: Whether this is the start of a run; a run that goes on has measured already.

    Returns:
        The `Course`, whose settings are complete.
    """
    if len(parted.train) < settings.batch_size:
        raise RangeError(
            f"{len(parted.train)} images to train on and batch_size {settings.batch_size}; "
            "lower batch_size or held_out"
        )
    images = TrainingImages(
        pixels, parted.train, settings.make_views(pixels.channels), batch_size=settings.batch_size,
        seed=settings.seed, device=device,
    )  # fmt: skip
    if measure and settings.init is None:
        _start(encoder, images)
    course = Course(
        settings, Learner(encoder, settings, device), images, parted, copy.deepcopy(encoder).cpu()
    )
    if measure:
        _measure(course, device, begun)
    _use_layout(course.learner, images, course.settings.layout)
    return course


def _start(encoder: ViewEncoder, images: TrainingImages) -> None:
    """Show the backbone its first batch, for a network that starts from what images look like."""
    (pair,) = images.walk(0, 1)
    encoder.backbone.start_(pair.view_1.cpu())


def _measure(course: Course, device: torch.device, begun: float) -> None:
    """See what the encoder is before training, choose precision and layout, and count the steps."""
    settings, images = course.settings, course.images
    trial = Learner(copy.deepcopy(course.learner.encoder), settings, device)
    (pair,) = images.walk(0, 1)
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)  # dropout
        _, z = copy.deepcopy(course.learner.encoder).train()(torch.cat([pair.view_1, pair.view_2]))
    view_1, view_2 = z.float().chunk(2)
    before = time.perf_counter()
    course.start = _look(course.learner.encoder, course, ViewStep(0.0, view_1, view_2))
    look_seconds = time.perf_counter() - before

    pairs, place = images.walk(0, sys.maxsize), 0

    def step(precision: torch.dtype, layout: Literal["contiguous", "channels_last"]) -> None:
        nonlocal place
        name: Literal["float32", "bfloat16"] = "bfloat16" if precision == torch.bfloat16 else "float32"
        # at rate 0 a step costs the same, and a rate that is too high breaks the run and not the trial
        trial.settings = replace(settings, precision=name, learning_rate=0.0)
        _use_layout(trial, images, layout)
        trial.take(place, next(pairs), steps=TRIAL_STEPS)
        place += 1

    found = calibrate(step, precision=settings.precision, layout=settings.layout, device=device)
    pairs.close()
    course.calibration = found
    steps = settings.steps
    if steps is None and settings.epochs is not None:
        steps = max(1, round(settings.epochs * images.steps_an_epoch))
    elif steps is None:
        assert settings.minutes is not None
        left = 60 * settings.minutes - (time.monotonic() - begun)
        steps = steps_in(left, step=found.seconds, look=look_seconds, looks=settings.looks)
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
    pixels = course.images.pixels
    prepare = preparation(course.settings, pixels.channels)
    h, _ = encode_rows(encoder, prepare, pixels, course.parted.sample)
    return monitor(
        h, taken.view_1.cpu(), taken.view_2.cpu(), labels=course.parted.labels, asking=course.parted.asking,
        loss=taken.loss,
    )  # fmt: skip
