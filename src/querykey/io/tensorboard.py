"""What a run shows to TensorBoard, where that is installed."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger:
    """Numbers of a run for TensorBoard; nothing is written where there is none, or nothing to show.

    Args:
        folder: Where its files go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: Any = None
        self.resumed_from: int | None = None
        """Steps taken when the run was resumed: later ones are shown again."""

    def show(self, kind: str, numbers: Mapping[str, Any]) -> None:
        """Show the numbers of a step.

        Args:
            kind: Of record.
            numbers: With its "step"; what is no float is left out.
        """
        if self._open is None and find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            purge = None if self.resumed_from is None else self.resumed_from + 1
            self._open = SummaryWriter(str(self._folder), purge_step=purge)
        if self._open is not None:
            for name, value in numbers.items():
                if isinstance(value, float):
                    self._open.add_scalar(f"{kind}/{name}", value, numbers["step"])

    def close(self) -> None:
        """Let go of what is open."""
        if self._open is not None:
            self._open.close()
            self._open = None
