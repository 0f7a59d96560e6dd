"""The folder of a pretraining run: settings, records, checkpoints, and in the end the encoder."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from querykey.config.old_names import PRETRAINING
from querykey.config.settings import current, flat
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
from querykey.pretraining.checkpoint import Saving, write_checkpoint
from querykey.pretraining.resume import reproducibility_warnings, require_unchanged
from querykey.pretraining.run import TrainingRun
from querykey.pretraining.saved_encoder import SavedEncoder, put_encoder, put_untrained, read_encoder
from querykey.pretraining.settings.settings import PretrainSettings

__all__ = ["BOARD", "CHECKPOINTS", "RUN", "RunFolder", "is_pretraining"]

RUN, METRICS, CHECKPOINTS, BOARD = "run.json", "metrics.jsonl", "checkpoints", "tensorboard"
FORMAT, VERSION = "querykey pretraining", 1
_FIXED = ("settings", "asked", "views", "device", "threads")
"""What the numbers of a run depend on, in addition to its images."""


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

    @classmethod
    def new(
        cls, path: Path, run: TrainingRun, state: Mapping[str, Tensor], *, source: Source,
        at: dict[str, Any] | None, asked: PretrainSettings, device: str, saving: Saving, seconds: float,
    ) -> "RunFolder":  # fmt: skip
        """Make the folder of a new run, with the state before its first step.

        The folder appears complete, so that the run can be resumed from it, or not at all.

        Args:
            path: Must not exist.
            run: The run.
            state: Of its learner, complete.
            source: Its images.
            at: Path or name of the images, with column and split; None if they were given as an object.
            asked: The settings as they were given.
            device: On which it trains.
            saving: How often the state is saved.
            seconds: Since the start of the command.
        """
        found = run.calibration
        described = {
            "format": FORMAT, "version": VERSION,
            "asked": asked.as_dict(), "settings": run.settings.as_dict(), "changes": [],
            "views": [asdict(one) for one in run.images.views],
            "data": {"at": _absolute(at), "name": source.name, "fingerprint": source.fingerprint,
                     "images": len(run.images.pixels), "trained_on": len(run.split_data.train)},
            "device": device, "threads": torch.get_num_threads(),
            "processes": current_process_group().world_size, "saving": asdict(saving),
            "calibration": None if found is None else asdict(found),
            "versions": versions(),
        }  # fmt: skip
        with new_folder(path) as tmp_path:
            folder = cls(tmp_path, described)
            folder._write()
            put_untrained(run.untrained, tmp_path)
            folder.save(0, run, state, seconds=seconds)
        return cls(path, described)

    @classmethod
    def read(cls, path: Path) -> "RunFolder":
        """The folder of an existing run.

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
                raise StoreError(f"{path}: this is not the run of a pretraining, so it cannot be resumed")
            if described["version"] != VERSION:
                raise StoreError(
                    f"{path}: written as version {described['version']}; this querykey reads {VERSION}"
                )
            folder = cls(path, _todays(described))
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
        """The image size in the settings as given, which images are decoded for; None: not given."""
        size = self.described["asked"]["image_size"]
        return None if size is None else int(size)

    @property
    def fingerprint(self) -> str:
        """Of the images."""
        return str(self.described["data"]["fingerprint"])

    @property
    def device(self) -> str:
        """On which the run trains."""
        return str(self.described["device"])

    @property
    def threads(self) -> int:
        """Number of threads at the start of the run."""
        return int(self.described["threads"])

    @property
    def processes(self) -> int:
        """Number of processes at the start of the run."""
        return int(self.described.get("processes", 1))

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages at the start of the run, by name."""
        return {str(name): str(value) for name, value in self.described.get("versions", {}).items()}

    @property
    def changes(self) -> list[dict[str, Any]]:
        """Settings that have changed since the start, with the step from which on they hold."""
        return [dict(change) for change in self.described.get("changes", [])]

    @property
    def saving(self) -> Saving:
        """How often the state is saved."""
        return Saving(**self.described.get("saving", {}))

    @property
    def at(self) -> dict[str, Any]:
        """Path or name of the images, with columns and split.

        Raises:
            StoreError: If they were given as an object, which has no name.
        """
        at = self.described["data"]["at"]
        if at is None:
            raise StoreError(
                f"{self.path}: its images were given as an object, not by a path or name, so they cannot be "
                f"read again; name them: querykey resume {self.path} --data SOURCE"
            )
        named = {n: None if at[n] is None else str(at[n]) for n in ("column", "label_column", "split")}
        return {"spec": str(at["spec"]), **named}

    def record(self, kind: str, **numbers: Any) -> None:
        """Append the numbers of a step to metrics.jsonl."""
        self._records.append(kind, **numbers)

    def cut_records(self, step: int) -> dict[str, Any]:
        """Remove the records after a step: a run that is resumed there records them again.

        Args:
            step: Steps taken.

        Returns:
            The metrics of the last evaluation before it; empty if there is none.
        """
        with raises_store_error(str(self.path / METRICS), "remove the line that is not the record of a step"):
            kept = [record for record in self._records.read() if record["step"] <= step]
        lines = [json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in kept]
        write_aside(self.path / METRICS, lines)
        self._records = Records(self.path / METRICS)
        looks = [record for record in kept if record["kind"] == "look"]
        last = looks[-1] if looks else {}
        return {name: value for name, value in last.items() if name not in ("kind", "step")}

    def lock(self) -> AbstractContextManager[None]:
        """A lock: while it is held no other process may write to the folder.

        Raises:
            OutputError: If another process holds it.
        """
        return file_lock(self.path / CHECKPOINTS / "lock")

    def require_unchanged(self, about: dict[str, Any]) -> None:
        """Check that run.json is that of the checkpoint.

        Args:
            about: Of the checkpoint.

        Raises:
            ConfigError: If settings were changed since that checkpoint.
        """
        found = {name: self.described.get(name) for name in _FIXED}
        if "run" in about:  # checkpoints of the first version have none
            require_unchanged(_todays(about["run"]), _todays(found), self.changes, where=str(self.path / RUN))

    def prepare_resume(self, *, save_every: float | None) -> None:
        """Remove temporary files, and write down how often the state is saved from now on.

        Args:
            save_every: Seconds between two checkpoints; None: as before.
        """
        if save_every is not None:
            self.described["saving"] = asdict(Saving(seconds=save_every, keep=self.saving.keep))
            self._write()
        for folder in (self.path, self.path / CHECKPOINTS):
            remove_temp_files(folder)
        remove_abandoned(self.path)

    def reproducibility_warnings(self, device: str) -> list[str]:
        """Reasons why a resumed run may end with other bits than one that was never stopped.

        Args:
            device: On which it trains from now on.

        Returns:
            A message each.
        """
        return reproducibility_warnings(
            self.versions, threads=self.threads, processes=self.processes, settings=self.settings,
            devices=(self.device, device),
        )  # fmt: skip

    def move(self, *, at: dict[str, Any] | None, device: str, step: int) -> None:
        """Write down where the images are and on which device the run trains from a step on.

        Args:
            at: Path or name of the images, with columns and split; None: as before.
            device: As torch names it.
            step: Steps taken.
        """
        found = self.described["data"]["at"] if at is None else _absolute(at)
        if found == self.described["data"]["at"] and device == self.device:
            return
        self.described["data"]["at"] = found
        if device != self.device:
            self.described["changes"] = [*self.changes, {"step": step, "device": device}]
            self.described["device"] = device
        self._write()

    def change(self, settings: PretrainSettings, *, step: int) -> None:
        """Write down settings that change from a step on.

        Args:
            settings: From now on.
            step: Steps taken.
        """
        before, now = flat(self.settings.as_dict()), settings.as_dict()
        changed = {
            f"settings.{name}": value for name, value in flat(now).items() if value != before.get(name)
        }
        if changed:
            self.described["settings"] = now
            self.described["changes"] = [*self.changes, {"step": step, **changed}]
            self._write()

    @property
    def is_finished(self) -> bool:
        """Whether the encoder has been written, after all steps."""
        try:
            saved = read_encoder(self.path)
        except QuerykeyError:
            return False
        return bool(saved.report.get("steps_taken") == self.settings.steps)

    def save(self, step: int, run: TrainingRun, state: Mapping[str, Tensor], *, seconds: float) -> None:
        """Write a checkpoint, after the records before it have reached the disk."""
        sync_file(self.path / METRICS)
        fixed = {name: self.described.get(name) for name in _FIXED} | {"settings": run.settings.as_dict()}
        about = {"start": dict(run.start), "seconds": seconds, "run": fixed}
        write_checkpoint(self.path / CHECKPOINTS, step, state, about, keep=self.saving.keep)

    def finish(self, saved: SavedEncoder) -> None:
        """Write the encoder, which makes the folder a model."""
        put_encoder(saved, self.path)

    def _write(self) -> None:
        write_aside(self.path / RUN, [json.dumps(self.described, indent=2).encode() + b"\n"])


def _todays(described: dict[str, Any]) -> dict[str, Any]:
    """What a file says of a run, with the settings of version 0.1 under their names of today."""
    settings = {
        name: json.loads(json.dumps(PretrainSettings.from_dict(described[name]).as_dict()))
        for name in ("settings", "asked")
        if described.get(name) is not None
    }
    changes = [
        {key: value for key, value in change.items() if key == "step"}
        | {
            f"settings.{name}": value
            for key, value in change.items()
            if key != "step"
            for name, value in current(
                {key.removeprefix("settings."): value}, PRETRAINING, warn=False
            ).items()
        }
        for change in described.get("changes", [])
    ]
    return described | settings | ({"changes": changes} if "changes" in described else {})


def is_pretraining(path: str | Path) -> bool:
    """Whether a folder is that of a pretraining run, finished or not."""
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
