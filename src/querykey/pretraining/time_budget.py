"""The number of steps for a time limit: what the parts of a run cost, measured in a trial before step 0."""

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from querykey.errors import OutputError
from querykey.pretraining.checkpoint import write_checkpoint
from querykey.pretraining.methods.step import ViewPair
from querykey.pretraining.run import TrainingRun
from querykey.pretraining.saved_encoder import put_encoder

__all__ = ["Costs", "prefill_seconds", "saving_seconds", "steady_limit"]

BUSY = 0.98
"""Share of the time limit that is planned: the rest is for records, and for other load on the machine."""
STEADY_SHARE, STEADY_SECONDS = 0.03, 10.0
"""Steps are measured for this share of the time limit, for this many seconds at most."""

SecondsOf = Callable[[Callable[[], object]], float]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds that the parts of a run take on a warm machine.

    Args:
        step: A step, with decoding and augmentation.
        evaluation: An evaluation, with the metrics of lookups and dictionary.
        checkpoint: A checkpoint; 0 if none is written.
        once: What is done once after the trial: building the run, filling the dictionary, the first and the
            last checkpoint, and the encoder's files.

    Example:
        >>> costs = Costs(step=0.5, evaluation=2.0, checkpoint=1.0, once=10.0)
        >>> costs.steps_in(120.0, evaluations=10, save_every=60.0)
        172
        >>> costs.total(172, evaluations=10, save_every=60.0)
        117.0
    """

    step: float
    evaluation: float = 0.0
    checkpoint: float = 0.0
    once: float = 0.0

    def steps_in(self, seconds: float, *, evaluations: int, save_every: float) -> int:
        """The number of steps that fit into a time limit, at least 1.

        Args:
            seconds: The time limit, from now on.
            evaluations: Number of evaluations; no step is evaluated twice.
            save_every: Seconds between two checkpoints; 0: one after each step.

        Returns:
            Steps.
        """
        left = BUSY * seconds - self.once
        step = self.step + self.checkpoint * min(1.0, self.step / save_every if save_every else 1.0)
        steps = (left - evaluations * self.evaluation) / step
        if steps < evaluations:
            steps = left / (step + self.evaluation)
        return max(1, math.floor(steps + 1e-9))

    def total(self, steps: int, *, evaluations: int, save_every: float) -> float:
        """Seconds of a run after the trial.

        Args:
            steps: Of the run.
            evaluations: Number of evaluations.
            save_every: Seconds between two checkpoints.
        """
        seconds = steps * self.step + min(evaluations, steps) * self.evaluation
        saved = steps if not save_every else math.floor(min(steps, steps * self.step / save_every))
        return seconds + saved * self.checkpoint + self.once


def steady_limit(seconds: float) -> float:
    """For how long steps are measured, given the time limit of a run."""
    return min(STEADY_SECONDS, STEADY_SHARE * max(0.0, seconds))


def saving_seconds(run: TrainingRun, scratch: Path | None, seconds_of: SecondsOf) -> tuple[float, float]:
    """Seconds of a checkpoint and of the encoder's files.

    Args:
        run: Any state of it.
        scratch: An existing folder of the main process on the disk of the run; None on the main process:
            nothing is written there.
        seconds_of: Times a call.

    Returns:
        (checkpoint, encoder); (0, seconds of the encoder's copy) if nothing is written.
    """
    learner, processes = run.learner, run.learner.processes
    is_written = processes.broadcast_object(scratch is not None)

    def checkpoint() -> None:
        learner.require_finite(0)
        state = learner.tensors()  # on all processes: shards go to the main process
        if scratch is not None:
            with suppress(OutputError):  # the run's own folder will meet it too, and name it
                write_checkpoint(Path(folder), 0, state, {})

    def encoder() -> None:
        saved = run.saved_encoder({})
        if scratch is not None:
            with suppress(OutputError):
                put_encoder(saved, Path(folder))

    with TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as folder:
        return seconds_of(checkpoint) if is_written else 0.0, seconds_of(encoder)


def prefill_seconds(run: TrainingRun, seconds_of: SecondsOf) -> float:
    """Seconds of filling a memory or a bank by the encoder, from those of one batch; 0 if it is not filled.

    Args:
        run: Of a trial: rows of its dictionary change.
        seconds_of: Times a call.
    """
    learner, settings = run.learner, run.settings
    start = learner.memory_start if settings.method == "xbm" else 0
    if not learner.needs_prefill(start) or start >= learner.steps:
        return 0.0
    capacity = settings.dictionary.capacity or 0
    batches = -(-capacity // settings.batch_size) if settings.method == "xbm" else run.images.steps_per_epoch

    def first(start: int, _: int) -> Iterable[ViewPair]:
        return run.images.walk(start, start + 1)

    return batches * seconds_of(lambda: learner.prefill_(first, steps_per_epoch=1))
