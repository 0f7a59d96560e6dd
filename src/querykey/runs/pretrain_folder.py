"""The folder of a pretraining: what was chosen, records, checkpoints, and in the end the encoder."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from querykey.data.items import Source
from querykey.distributed.process_group import current_process_group
from querykey.errors import MissingPathError, QuerykeyError, StoreError
from querykey.io.atomic import (
    file_lock,
    new_folder,
    raises_store_error,
    remove_temp_files,
    sync_file,
    write_aside,
)
from querykey.io.records import Records, versions
from querykey.io.scratch import remove_abandoned
from querykey.io.tensorboard import TensorBoardLogger
from querykey.pretraining.checkpoint import Saving, write_checkpoint
from querykey.pretraining.resume import reproducibility_warnings, require_unchanged
from querykey.pretraining.saved_encoder import SavedEncoder, put_encoder, put_untrained, read_encoder
from querykey.pretraining.settings.settings import PretrainSettings
from querykey.pretraining.trainer import Course

__all__ = ["CHECKPOINTS", "RUN", "RunFolder", "is_pretraining"]

RUN, METRICS, CHECKPOINTS, BOARD = "run.json", "metrics.jsonl", "checkpoints", "tensorboard"
FORMAT, VERSION = "querykey pretraining", 1
_FIXED = ("settings", "asked", "views", "device", "threads")
"""What the numbers of a run follow from, beside its images."""


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
        self._board = TensorBoardLogger(self.path / BOARD)

    @classmethod
    def new(
        cls, path: Path, course: Course, state: Mapping[str, Tensor], *, source: Source,
        at: dict[str, Any] | None, asked: PretrainSettings, device: str, saving: Saving, seconds: float,
    ) -> "RunFolder":  # fmt: skip
        """Make the folder of a run that begins, with the state before its first step.

        It is there whole, and can be gone on from, or is not there.

        Args:
            path: Must not be there yet.
            course: The run.
            state: Of its learner, whole.
            source: Its images.
            at: How the user named them; None where they were handed over as an object.
            asked: The settings as they were given.
            device: Where it runs.
            saving: How often the state is saved.
            seconds: That the user has waited so far.
        """
        found = course.calibration
        described = {
            "format": FORMAT, "version": VERSION,
            "asked": asked.as_dict(), "settings": course.settings.as_dict(), "changes": [],
            "views": [asdict(one) for one in course.images.views],
            "data": {"at": _absolute(at), "name": source.name, "fingerprint": source.fingerprint,
                     "images": len(course.images.pixels), "trained_on": len(course.split_data.train)},
            "device": device, "threads": torch.get_num_threads(),
            "processes": current_process_group().world_size, "saving": asdict(saving),
            "calibration": None if found is None else asdict(found),
            "versions": versions(),
        }  # fmt: skip
        with new_folder(path) as tmp_path:
            folder = cls(tmp_path, described)
            folder._write()
            put_untrained(course.untrained, tmp_path)
            folder.save(0, course, state, seconds=seconds)
        return cls(path, described)

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
        with raises_store_error(str(file), "start a new run"):
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
            _ = (folder.fingerprint, folder.device, folder.threads, folder.decoded_size, folder.saving,
                 folder.changes, folder.versions, folder.processes,
                 described["data"]["at"] is None or folder.at)  # fmt: skip
            if folder.settings.steps is None or folder.settings.epochs is None:
                raise StoreError(f"{file} is damaged: it does not say how long the run is")
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
    def processes(self) -> int:
        """How many it began with."""
        return int(self.described.get("processes", 1))

    @property
    def versions(self) -> dict[str, str]:
        """Of what it began with, by name."""
        return {str(name): str(value) for name, value in self.described.get("versions", {}).items()}

    @property
    def changes(self) -> list[dict[str, Any]]:
        """Settings that the run has changed itself, and from which step on."""
        return [dict(change) for change in self.described.get("changes", [])]

    @property
    def saving(self) -> Saving:
        """How often the state is saved."""
        return Saving(**self.described.get("saving", {}))

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
        named = {n: None if at[n] is None else str(at[n]) for n in ("column", "label_column", "split")}
        return {"spec": str(at["spec"]), **named}

    def record(self, kind: str, **numbers: Any) -> None:
        """Keep numbers of a step, and show them to TensorBoard where that is installed."""
        self._records.append(kind, **numbers)
        self._board.show(kind, numbers)

    def cut_records(self, step: int) -> dict[str, Any]:
        """Forget what was recorded after a step: a run that goes on from there records it again.

        Args:
            step: Steps taken.

        Returns:
            What the monitors saw last before it; empty if nothing.
        """
        with raises_store_error(str(self.path / METRICS), "take out the line that is no record of a step"):
            kept = [record for record in self._records.read() if record["step"] <= step]
        lines = [json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in kept]
        write_aside(self.path / METRICS, lines)
        self._records = Records(self.path / METRICS)
        self._board.gone_on_from = step
        looks = [record for record in kept if record["kind"] == "look"]
        last = looks[-1] if looks else {}
        return {name: value for name, value in last.items() if name not in ("kind", "step")}

    def kept_for_writing(self) -> AbstractContextManager[None]:
        """While this lasts no other process may write here.

        Raises:
            OutputError: If another process does.
        """
        return file_lock(self.path / CHECKPOINTS / "lock")

    def require_unchanged(self, about: dict[str, Any]) -> None:
        """See that a run that goes on is the same run.

        Args:
            about: What the checkpoint says that it goes on from.

        Raises:
            ConfigError: If settings were changed since that checkpoint.
        """
        found = {name: self.described.get(name) for name in _FIXED}
        if "run" in about:  # checkpoints of the first version have none
            require_unchanged(about["run"], found, self.changes, where=str(self.path / RUN))

    def go_on(self, *, save_every: float | None) -> list[str]:
        """Make the folder ready for a run that goes on.

        Args:
            save_every: Seconds between two checkpoints from now on; None: as before.

        Returns:
            What may keep the run from ending with the bits of one that never stopped; a sentence each.
        """
        if save_every is not None:
            self.described["saving"] = asdict(Saving(seconds=save_every, keep=self.saving.keep))
            self._write()
        for folder in (self.path, self.path / CHECKPOINTS):
            remove_temp_files(folder)
        remove_abandoned(self.path)
        return reproducibility_warnings(
            self.versions, threads=self.threads, processes=self.processes, settings=self.settings
        )

    def change(self, settings: PretrainSettings, *, step: int) -> None:
        """Write down settings that are others from a step on.

        Args:
            settings: From now on.
            step: Steps taken.
        """
        before, now = self.settings.as_dict(), settings.as_dict()
        changed = {f"settings.{name}": value for name, value in now.items() if value != before[name]}
        if changed:
            self.described["settings"] = now
            self.described["changes"] = [*self.changes, {"step": step, **changed}]
            self._write()

    @property
    def is_finished(self) -> bool:
        """Whether the encoder is there whole, after all steps."""
        try:
            saved = read_encoder(self.path)
        except QuerykeyError:
            return False
        return bool(saved.report.get("steps_taken") == self.settings.steps)

    def save(self, step: int, course: Course, state: Mapping[str, Tensor], *, seconds: float) -> None:
        """Write a checkpoint; what was recorded before is on the disk when it is."""
        sync_file(self.path / METRICS)
        fixed = {name: self.described.get(name) for name in _FIXED} | {"settings": course.settings.as_dict()}
        about = {"start": course.start, "seconds": seconds, "run": fixed}
        write_checkpoint(self.path / CHECKPOINTS, step, state, about, keep=self.saving.keep)

    def finish(self, saved: SavedEncoder) -> None:
        """Write the encoder; with it the folder is a model."""
        put_encoder(saved, self.path)

    def close(self) -> None:
        """Let go of what is open, when the run ends in whatever way."""
        self._board.close()

    def _write(self) -> None:
        write_aside(self.path / RUN, [json.dumps(self.described, indent=2).encode() + b"\n"])


def is_pretraining(path: str | Path) -> bool:
    """Whether a folder is a pretraining, finished or not."""
    file = Path(path) / RUN
    if not file.is_file():
        return False
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(described, dict) and described.get("format") == FORMAT


def _absolute(at: dict[str, Any] | None) -> dict[str, Any] | None:
    if at is None:
        return None
    path = Path(at["spec"]).expanduser()
    return at | {"spec": str(path.resolve()) if path.exists() else at["spec"]}
