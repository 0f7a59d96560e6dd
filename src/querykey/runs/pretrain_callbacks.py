"""Callbacks of a pretraining run: metrics, checkpoints, TensorBoard and warnings."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from querykey.errors import Notify
from querykey.pretraining.trainer import Callback, Progress, Trainer
from querykey.runs.pretrain_folder import BOARD, RunFolder

__all__ = ["CheckpointWriter", "DictionaryWarnings", "MetricsLog", "ProgressDisplay", "TensorBoard"]


def _numbers(progress: Progress) -> dict[str, Any]:
    return {name: getattr(progress, name) for name in ("loss", "learning_rate", "seconds", "view_seconds")}


class DictionaryWarnings(Callback):
    """Reports each problem of the dictionary once.

    Args:
        notify: Called with the messages.
    """

    def __init__(self, notify: Notify) -> None:
        self._notify, self._names = notify, set[str]()

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Report problems that the metrics show."""
        found = trainer.run.warnings(metrics, step=trainer.step)
        for name in found.keys() - self._names:
            self._notify(f"step {trainer.step:,}: {found[name]}")
        self._names |= found.keys()

    def on_restart(self, trainer: Trainer, reason: str) -> None:
        """Report the larger number of chunks."""
        self._notify(
            f"{reason}: restarted from the checkpoint after step {trainer.step}; steps are computed in "
            f"{trainer.run.settings.chunks} chunks, with the gradient of the full batch"
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
        """Record the step if it is one of those to record."""
        del trainer
        if progress.is_recorded:
            self._folder.record("step", step=progress.step, **_numbers(progress))

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Record each evaluation."""
        self._folder.record("look", step=trainer.step, **metrics)

    def on_restart(self, trainer: Trainer, reason: str) -> None:
        """Remove the records after the restored checkpoint, and store the new settings."""
        del reason
        self._folder.change(trainer.run.settings, step=trainer.step)
        trainer.metrics |= self._folder.cut_records(trainer.step)


class TensorBoard(Callback):
    """Writes the records for TensorBoard, if it is installed.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder.path / BOARD
        self._writer: Any = None
        self._resumed_from: int | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        """Write the metrics of the untrained encoder; in a resumed run, purge the steps that are repeated."""
        if trainer.step == 0:
            self._write("look", 0, trainer.metrics)
        else:
            self._resumed_from = trainer.step

    def on_step_end(self, trainer: Trainer, progress: Progress) -> None:
        """Write the recorded steps."""
        del trainer
        if progress.is_recorded:
            self._write("step", progress.step, _numbers(progress))

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Write each evaluation."""
        self._write("look", trainer.step, metrics)

    def on_restart(self, trainer: Trainer, reason: str) -> None:
        """Purge the steps that are repeated."""
        del reason
        self.on_fit_end(trainer)
        self._resumed_from = trainer.step

    def on_fit_end(self, trainer: Trainer) -> None:
        """Close the files."""
        del trainer
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, kind: str, step: int, numbers: Mapping[str, Any]) -> None:
        if self._writer is None and find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            purge = None if self._resumed_from is None else self._resumed_from + 1
            self._writer = SummaryWriter(str(self._folder), purge_step=purge)
        if self._writer is not None:
            for name, value in numbers.items():
                if isinstance(value, float):
                    self._writer.add_scalar(f"{kind}/{name}", value, step)


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
    """Calls a function after each step.

    Args:
        on_step: The function, or None.
    """

    def __init__(self, on_step: Callable[[Progress], None] | None) -> None:
        self._on_step = on_step

    def on_step_end(self, trainer: Trainer, progress: Progress) -> None:
        """Pass on the progress."""
        del trainer
        if self._on_step is not None:
            self._on_step(progress)
