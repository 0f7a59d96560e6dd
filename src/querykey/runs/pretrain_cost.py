"""What a pretraining run takes, from a short trial: for `querykey doctor`."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from querykey.data.items import Source
from querykey.data.pixels.pixels import read_pixels
from querykey.distributed.process_group import default_torch_state
from querykey.encoders.frozen.model import usable_device
from querykey.pretraining.autotune import estimate_run
from querykey.pretraining.checkpoint import SAVE_SECONDS
from querykey.pretraining.settings.methods import given_settings
from querykey.pretraining.settings.settings import PretrainSettings
from querykey.pretraining.time_budget import Costs
from querykey.runs.pretrain import DECODED, resolve_for

__all__ = ["PretrainCost", "estimate_pretrain"]

LARGEST = 60_000
"""Images that are read for a trial at most; the time of reading more is in proportion."""


@dataclass(frozen=True)
class PretrainCost:
    """What a run takes.

    Args:
        costs: Seconds of its parts.
        settings: Resolved.
        steps_per_epoch: Of the images that are trained on.
    """

    costs: Costs
    settings: PretrainSettings
    steps_per_epoch: int

    def seconds(self, epochs: float) -> float:
        """Of a run of this length, with its evaluations and checkpoints."""
        steps = max(1, round(epochs * self.steps_per_epoch))
        return self.costs.total(steps, evaluations=self.settings.num_evals, save_every=SAVE_SECONDS)

    def epochs(self, seconds: float) -> float:
        """That fit into a time."""
        steps = self.costs.steps_in(seconds, evaluations=self.settings.num_evals, save_every=SAVE_SECONDS)
        return steps / self.steps_per_epoch


def estimate_pretrain(source: Source, *, device: str = "cpu", scratch: Path | None = None) -> PretrainCost:
    """Estimate the time of `pretrain` with its defaults from a short trial of the same steps.

    Args:
        source: The images.
        device: Device of the training.
        scratch: An existing folder on the disk of the run, for a checkpoint that is timed; None: not timed.

    Returns:
        The cost.

    Raises:
        QuerykeyError: As `pretrain` does.
    """
    started = time.perf_counter()

    def notify(_: str) -> None:
        """The run itself will say it."""

    given, place = given_settings(), usable_device(device)
    with default_torch_state():
        some = _at_most(source, LARGEST)
        share = len(some) / len(source)
        pixels = read_pixels(some, size=given.image_size or DECODED, notify=notify)
        resolved, split_data = resolve_for(given, some, pixels, notify)
        read = (time.perf_counter() - started) / share
        costs, per_epoch = estimate_run(resolved, pixels, split_data, device=place, scratch=scratch)
    return PretrainCost(replace(costs, once=costs.once + read), resolved, round(per_epoch / share))


def _at_most(source: Source, count: int) -> Source:
    """Some of the images, drawn at random; the source itself where it has no more."""
    if len(source) <= count:
        return source
    return source.select(np.sort(np.random.default_rng(0).permutation(len(source))[:count]))
