"""The training loop: steps, evaluation, checkpoint cadence, and the retry after a lack of memory."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from querykey.distributed.process_group import default_torch_state
from querykey.errors import CollapseError, OutOfMemoryError, is_out_of_memory
from querykey.lookup.lookup import Lookup
from querykey.pretraining.checkpoint import SAVE_SECONDS, latest_checkpoint
from querykey.pretraining.methods.step import StepOutput, ViewPair
from querykey.pretraining.resume import double_chunks
from querykey.pretraining.run import TrainingRun

__all__ = ["Callback", "Progress", "Trainer"]

RECORDS = 200
"""Steps of a run that are recorded, in addition to those with an evaluation."""


@dataclass(frozen=True)
class Progress:
    """What `on_step_end` gets.

    Args:
        step: Steps taken.
        steps: Of the whole run.
        loss: Of this step.
        learning_rate: Of this step.
        seconds: Of this step, without the views.
        view_seconds: Of decoding and augmentation.
        images_per_second: Since the step before; each image gives two views.
        knn: Accuracy on the validation images in the last evaluation; None without labels.
        is_recorded: Whether the step is one of those that a log records.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    seconds: float
    view_seconds: float
    images_per_second: float
    knn: float | None
    is_recorded: bool


class Callback:
    """Hooks of `Trainer.fit`; override those that are needed.

    With several processes each calls its own callbacks, after the same steps; use the main process to write.
    """

    def on_fit_start(self, trainer: "Trainer") -> None:
        """Before the first step."""

    def on_step_end(self, trainer: "Trainer", progress: Progress) -> None:
        """After each step, before its evaluation."""

    def on_evaluate(self, trainer: "Trainer", metrics: dict[str, float]) -> None:
        """After each evaluation; it raises CollapseError afterwards if the embeddings have collapsed."""

    def on_checkpoint(self, trainer: "Trainer", state: dict[str, Tensor]) -> None:
        """To save the state: after `save_every` seconds, before a stop, and after the last step."""

    def on_restart(self, trainer: "Trainer", reason: str) -> None:
        """After a lack of memory: `trainer` has restored the last checkpoint and uses more chunks."""

    def on_fit_end(self, trainer: "Trainer") -> None:
        """After the last step, and after an error."""


class Trainer:
    """Trains a run.

    Args:
        run: The run; its learner is trained in place.
        callbacks: Called in this order.
        start: Steps taken before.
        metrics: Of the last evaluation before; None: of the untrained encoder.
        seconds: Spent before.
        started_at: `time.monotonic()` at the start of the command; None: now.
        stop: Asked after each step; if any process says True, the state is saved and training ends.
        save_every: Seconds between two checkpoints.
        checkpoints: Folder of the checkpoints that a callback writes; None: no retry after a lack of memory.

    Attributes:
        run: As given, or with more chunks after a lack of memory.
        step: Steps taken.
        metrics: Of the last evaluation.
    """

    def __init__(
        self,
        run: TrainingRun,
        callbacks: Sequence[Callback] = (),
        *,
        start: int = 0,
        metrics: dict[str, float] | None = None,
        seconds: float = 0.0,
        started_at: float | None = None,
        stop: Callable[[], bool] = lambda: False,
        save_every: float = SAVE_SECONDS,
        checkpoints: Path | None = None,
    ) -> None:
        self.run, self.callbacks, self.step = run, tuple(callbacks), start
        self.metrics: dict[str, float] = dict(run.start if metrics is None else metrics)
        self._before, self._started_at = seconds, time.monotonic() if started_at is None else started_at
        self._stop, self._save_every, self._checkpoints = stop, save_every, checkpoints
        self._step_seconds = self._view_seconds = 0.0
        self._lookups: list[dict[str, float]] = []

    @property
    def seconds(self) -> float:
        """Since the start of the command, and before a resume."""
        return self._before + time.monotonic() - self._started_at

    def fit(self) -> int:
        """Take the steps that are left, in more chunks if a step does not fit into memory.

        A step that ran out of memory may have changed part of the state, so the last checkpoint is restored.

        Returns:
            Steps taken in all: fewer than those of the run if it was stopped.

        Raises:
            CollapseError: If a loss is not finite or the embeddings have collapsed; the last checkpoint is
                good.
            OutOfMemoryError: If a step does not fit into memory and cannot be cut into more chunks, or there
                is no checkpoint to restore.
        """
        with default_torch_state():
            try:
                for callback in self.callbacks:
                    callback.on_fit_start(self)
                while (reason := self._train()) is not None:
                    self._restart(reason)
            finally:
                for callback in self.callbacks:
                    callback.on_fit_end(self)
        return self.step

    def _train(self) -> str | None:
        """Steps until the end; the message if memory did not suffice, once nothing of the step is alive."""
        run, steps = self.run, self.run.steps
        every, last_saved, last_step = max(1, steps // RECORDS), time.monotonic(), time.perf_counter()
        for batch in run.images.walk(self.step, steps):
            before, is_evaluated = time.perf_counter(), self._is_evaluated(self.step + 1)
            try:
                if run.learner.needs_prefill(self.step):
                    run.learner.prefill_(run.images.walk, steps_per_epoch=run.images.steps_per_epoch)
                on_lookup = self._on_lookup if is_evaluated else None
                output = run.learner.training_step(self.step, batch, on_lookup)
            except CollapseError as error:
                raise CollapseError(f"step {self.step}: {error}") from error
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = f"step {self.step} needs more memory than there is"
                if self._checkpoints is None or run.learner.processes.world_size > 1:
                    raise OutOfMemoryError(f"{reason}; raise chunks, or lower batch_size") from error
                return reason
            self.step += 1
            now = time.perf_counter()
            self._end_step(output, batch, now - before, now - last_step, every)
            last_step = now
            if is_evaluated:
                self._evaluate(output)
            is_late = time.monotonic() - last_saved >= self._save_every
            is_stopping, is_late = self._any(self.step < steps and self._stop(), is_late)
            if is_stopping or is_late or self.step == steps:
                self._checkpoint()
                last_saved = time.monotonic()
            if is_stopping:
                break
        return None

    def _on_lookup(self, lookup: Lookup) -> None:
        self._lookups.append(self.run.lookup_metrics(lookup))

    def _is_evaluated(self, done: int) -> bool:
        evaluations, steps = self.run.settings.num_evals, self.run.steps
        if not evaluations:
            return False
        return done == steps or done % max(1, -(-steps // evaluations)) == 0

    def _end_step(
        self, output: StepOutput, batch: ViewPair, seconds: float, since_last: float, every: int
    ) -> None:
        self._step_seconds += seconds
        self._view_seconds += batch.seconds
        steps, settings = self.run.steps, self.run.settings
        progress = Progress(
            step=self.step,
            steps=steps,
            loss=output.loss,
            learning_rate=self.run.learner.optimizer.param_groups[0]["lr"],
            seconds=seconds,
            view_seconds=batch.seconds,
            images_per_second=settings.batch_size / since_last,
            knn=self.metrics.get("knn"),
            is_recorded=self.step % every == 0 or self.step == steps,
        )
        for callback in self.callbacks:
            callback.on_step_end(self, progress)

    def _evaluate(self, output: StepOutput) -> None:
        self.metrics = self.run.evaluate(output, step=self.step, lookups=self._lookups)
        self._lookups = []
        for callback in self.callbacks:
            callback.on_evaluate(self, self.metrics)
        if reason := self.run.check_collapse(self.metrics):
            raise CollapseError(f"step {self.step}: {reason}")

    def _checkpoint(self) -> None:
        self.run.learner.require_finite(self.step)
        state = self.run.learner.tensors()  # on all processes: shards go to the main process
        for callback in self.callbacks:
            callback.on_checkpoint(self, state)

    def _any(self, *flags: bool) -> list[bool]:
        """Each flag, if any process has it: all processes continue in the same way."""
        learner = self.run.learner
        if learner.processes.world_size == 1:
            return list(flags)
        return (learner.processes.sum(torch.tensor(flags, device=learner.device).long()) > 0).tolist()

    def _restart(self, reason: str) -> None:
        """Restore the last checkpoint, with twice as many chunks."""
        assert self._checkpoints is not None
        gc.collect()
        learner = self.run.learner.with_settings(double_chunks(self.run.settings, reason=reason))
        checkpoint = latest_checkpoint(self._checkpoints)
        learner.restore_(checkpoint.tensors)
        self.run, self.step, self._lookups = replace(self.run, learner=learner), checkpoint.step, []
        for callback in self.callbacks:
            callback.on_restart(self, reason)

    def report(self) -> dict[str, Any]:
        """A summary of the training so far."""
        total = max(self._step_seconds + self._view_seconds, 1e-9)
        return {
            "steps_taken": self.step, "seconds": self.seconds, "start": dict(self.run.start),
            "end": self.metrics if self.run.settings.num_evals else {},
            "views_share_of_step": self._view_seconds / total,
            "images_seen": self.step * self.run.settings.batch_size,
        }  # fmt: skip
