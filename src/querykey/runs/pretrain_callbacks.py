"""Callbacks of a pretraining: metrics, checkpoints, TensorBoard and warnings."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from querykey.errors import Notify
from querykey.io.tensorboard import TensorBoardLogger
from querykey.pretraining.run import TrainingRun
from querykey.pretraining.trainer import Callback, Progress, Trainer
from querykey.runs.pretrain_folder import BOARD, RunFolder

__all__ = ["CheckpointWriter", "DictionaryWarnings", "MetricsLog", "ProgressDisplay", "TensorBoard"]


def _numbers(progress: Progress) -> dict[str, Any]:
    return {
        "loss": progress.loss, "learning_rate": progress.learning_rate, "seconds": progress.seconds,
        "view_seconds": progress.view_seconds,
    }  # fmt: skip


class DictionaryWarnings(Callback):
    """Warns of each problem of the dictionary once.

    Args:
        notify: Called with the messages.
    """

    def __init__(self, notify: Notify) -> None:
        self._notify, self._names = notify, set[str]()

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Warn of what the metrics show."""
        found = trainer.run.warnings(metrics, step=trainer.step)
        for name in found.keys() - self._names:
            self._notify(f"step {trainer.step:,}: {found[name]}")
        self._names |= found.keys()

    def on_restart(self, trainer: Trainer, reason: str) -> None:
        """Say that the run uses more chunks."""
        self._notify(
            f"{reason}: from step {trainer.step} on, which was kept, steps are computed in "
            f"{trainer.run.settings.chunks} parts, with the gradient of the whole batch"
        )


class MetricsLog(Callback):
    """Writes metrics.jsonl.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def on_fit_start(self, trainer: Trainer) -> None:
        """Record the metrics of the untrained encoder."""
        if trainer.step == 0:
            self._folder.record("look", step=0, **trainer.metrics)

    def on_step_end(self, trainer: Trainer, progress: Progress) -> None:
        """Record some of the steps."""
        del trainer
        if progress.is_recorded:
            self._folder.record("step", step=progress.step, **_numbers(progress))

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Record each evaluation."""
        self._folder.record("look", step=trainer.step, **metrics)

    def on_restart(self, trainer: Trainer, reason: str) -> None:
        """Remove the records after the restored checkpoint, and write down the new settings."""
        del reason
        self._folder.change(trainer.run.settings, step=trainer.step)
        trainer.metrics |= self._folder.cut_records(trainer.step)


class TensorBoard(Callback):
    """Shows the records to TensorBoard, if it is installed.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._logger = TensorBoardLogger(folder.path / BOARD)

    def on_fit_start(self, trainer: Trainer) -> None:
        """Show the metrics of the untrained encoder, or remove what is shown again."""
        if trainer.step == 0:
            self._logger.show("look", {"step": 0, **trainer.metrics})
        else:
            self._logger.resumed_from = trainer.step

    def on_step_end(self, trainer: Trainer, progress: Progress) -> None:
        """Show the recorded steps."""
        del trainer
        if progress.is_recorded:
            self._logger.show("step", {"step": progress.step, **_numbers(progress)})

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Show each evaluation."""
        self._logger.show("look", {"step": trainer.step, **metrics})

    def on_restart(self, trainer: Trainer, reason: str) -> None:
        """Remove what is shown again."""
        del reason
        self._logger.close()
        self._logger.resumed_from = trainer.step

    def on_fit_end(self, trainer: Trainer) -> None:
        """Close the files."""
        del trainer
        self._logger.close()


class CheckpointWriter(Callback):
    """Writes the checkpoints.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def on_checkpoint(self, trainer: Trainer, state: dict[str, Tensor]) -> None:
        """Write the state."""
        self._folder.save(trainer.step, trainer.run, state, seconds=trainer.seconds)


class ProgressDisplay(Callback):
    """Calls two functions, for a display.

    Args:
        on_start: Called with the run before the first step.
        on_step: Called after each step.
    """

    def __init__(
        self,
        on_start: Callable[[TrainingRun], None] | None = None,
        on_step: Callable[[Progress], None] | None = None,
    ) -> None:
        self._on_start, self._on_step = on_start, on_step

    def on_fit_start(self, trainer: Trainer) -> None:
        """Show the run."""
        if self._on_start is not None:
            self._on_start(trainer.run)

    def on_step_end(self, trainer: Trainer, progress: Progress) -> None:
        """Show the step."""
        del trainer
        if self._on_step is not None:
            self._on_step(progress)
