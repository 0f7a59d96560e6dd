"""The folder of a pretraining: what was chosen, records, checkpoints, and in the end the encoder."""

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from querykey.data.durable import make_folder, write_aside
from querykey.data.items import Source
from querykey.errors import MissingPathError, StoreError
from querykey.records import Records
from querykey.training.checkpoint import write_checkpoint
from querykey.training.pretrain_course import Course
from querykey.training.pretrain_settings import PretrainSettings
from querykey.training.saved_encoder import SavedEncoder, put_encoder, put_untrained

__all__ = ["CHECKPOINTS", "RUN", "RunFolder", "is_pretraining"]

RUN, METRICS, CHECKPOINTS, BOARD = "run.json", "metrics.jsonl", "checkpoints", "tensorboard"
FORMAT, VERSION = "querykey pretraining", 1
_KEYS = ("kind", "step")


@dataclass(eq=False)
class RunFolder:
    """A run on the disk.

    Args:
        path: The folder.
        described: What run.json says.
    """

    path: Path
    described: dict[str, Any]

    def __post_init__(self) -> None:
        self._records = Records(self.path / METRICS)
        self._board: Any = None
        self._gone_on_from: int | None = None

    @classmethod
    def new(
        cls, path: Path, course: Course, *, source: Source, at: dict[str, Any] | None,
        asked: PretrainSettings, device: str,
    ) -> "RunFolder":  # fmt: skip
        """Make the folder of a run that begins.

        Args:
            path: Must not be there yet.
            course: The run.
            source: Its images.
            at: How the user named them; None where they were handed over as an object.
            asked: The settings as they were given.
            device: Where it runs.
        """
        make_folder(path)
        found = course.calibration
        packages = ("querykey", "torch", "numpy")
        described = {
            "format": FORMAT,
            "version": VERSION,
            "asked": asked.as_dict(),
            "settings": course.settings.as_dict(),
            "views": asdict(course.settings.make_views(course.images.pixels.channels)),
            "data": {"at": _absolute(at), "name": source.name, "fingerprint": source.fingerprint,
                     "images": len(course.images.pixels), "trained_on": len(course.parted.train)},
            "device": device,
            "threads": torch.get_num_threads(),
            "calibration": None if found is None else asdict(found),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        }  # fmt: skip
        folder = cls(path, described)
        folder._write()
        put_untrained(course.untrained, path)
        return folder

    @classmethod
    def read(cls, path: Path) -> "RunFolder":
        """The folder of a run that was begun.

        Raises:
            MissingPathError: If there is none.
            StoreError: If its run.json is damaged.
        """
        file = path / RUN
        if not file.is_file():
            raise MissingPathError(f"{path}: no run here; make one with querykey pretrain --out {path}")
        try:
            described = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(described, dict) or described.get("format") != FORMAT:
                raise StoreError(
                    f"{path}: this is not the run of a pretraining, so it cannot be gone on with"
                )
            if described["version"] != VERSION:
                raise StoreError(
                    f"{path}: written as version {described['version']}; this querykey reads {VERSION}"
                )
            folder = cls(path, described)
            _ = (folder.fingerprint, folder.device, folder.threads, folder.decoded_size)
            if folder.settings.steps is None or folder.settings.epochs is None:
                raise StoreError(f"{file} is damaged: it does not say how long the run is")
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            if isinstance(fault, StoreError):
                raise
            raise StoreError(f"{file} is damaged ({type(fault).__name__}: {fault})") from fault
        return folder

    @property
    def settings(self) -> PretrainSettings:
        """As resolved."""
        return PretrainSettings.from_dict(self.described["settings"])

    @property
    def decoded_size(self) -> int | None:
        """The image size that was asked for: what was decoded follows from it. None: none."""
        size = self.described["asked"]["image_size"]
        return None if size is None else int(size)

    @property
    def fingerprint(self) -> str:
        """Of the images."""
        return str(self.described["data"]["fingerprint"])

    @property
    def device(self) -> str:
        """Where the run began."""
        return str(self.described["device"])

    @property
    def threads(self) -> int:
        """With which the run began."""
        return int(self.described["threads"])

    @property
    def at(self) -> dict[str, Any]:
        """How the images were named.

        Raises:
            StoreError: If they were handed over as an object, which has no name.
        """
        at = self.described["data"]["at"]
        if at is None:
            raise StoreError(
                f"{self.path}: its images came as an object, not by a path or name, so they cannot be read "
                "again; pretrain from a path to be able to go on"
            )
        return dict(at)

    def record(self, kind: str, **numbers: Any) -> None:
        """Keep numbers of a step, and show them to TensorBoard where that is installed."""
        self._records.append(kind, **numbers)
        board = self._open_board()
        if board is not None:
            for name, value in numbers.items():
                if isinstance(value, float):
                    board.add_scalar(f"{kind}/{name}", value, numbers["step"])

    def cut_records(self, step: int) -> dict[str, Any]:
        """Forget what was recorded after a step: a run that goes on from there records it again.

        Args:
            step: Steps taken.

        Returns:
            What the monitors saw last before it; empty if nothing.
        """
        kept = [record for record in self._records.read() if record["step"] <= step]
        lines = [json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in kept]
        write_aside(self.path / METRICS, lines)
        self._records = Records(self.path / METRICS)
        self._gone_on_from = step
        looks = [record for record in kept if record["kind"] == "look"]
        return {name: value for name, value in looks[-1].items() if name not in _KEYS} if looks else {}

    def lengthen(self, settings: PretrainSettings) -> None:
        """Write down that the run is longer than planned."""
        if settings != self.settings:
            self.described["settings"] = settings.as_dict()
            self._write()

    def save(self, step: int, course: Course, *, seconds: float) -> None:
        """Write a checkpoint."""
        about = {"start": course.start, "seconds": seconds}
        write_checkpoint(self.path / CHECKPOINTS, step, course.learner.tensors(), about)

    def finish(self, saved: SavedEncoder) -> None:
        """Write the encoder; with it the folder is a model."""
        put_encoder(saved, self.path)

    def close(self) -> None:
        """Let go of what is open, when the run ends in whatever way."""
        if self._board is not None:
            self._board.close()
            self._board = None

    def _write(self) -> None:
        write_aside(self.path / RUN, [json.dumps(self.described, indent=2).encode() + b"\n"])

    def _open_board(self) -> Any:
        if self._board is None and find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            # what a killed run showed after its last checkpoint is shown again
            purge = None if self._gone_on_from is None else self._gone_on_from + 1
            self._board = SummaryWriter(str(self.path / BOARD), purge_step=purge)
        return self._board


def is_pretraining(path: str | Path) -> bool:
    """Whether a folder is a pretraining, finished or not."""
    file = Path(path) / RUN
    if not file.is_file():
        return False
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(described, dict) and described.get("format") == FORMAT


def _absolute(at: dict[str, Any] | None) -> dict[str, Any] | None:
    if at is None:
        return None
    path = Path(at["spec"]).expanduser()
    return at | {"spec": str(path.resolve()) if path.exists() else at["spec"]}
