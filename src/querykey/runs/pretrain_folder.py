"""The folder of a pretraining run: settings, records, checkpoints, and finally the encoder."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from querykey.config.old_names import PRETRAINING
from querykey.config.settings import current, flat, make
from querykey.data.items import Source
from querykey.distributed.process_group import current_process_group
from querykey.errors import ConfigError, MissingPathError, QuerykeyError, StoreError
from querykey.io.atomic import (
    file_lock,
    new_folder,
    raises_store_error,
    remove_temp_files,
    sync_file,
    write_atomically,
)
from querykey.io.paths import expand_user
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
"""Keys of run.json that the results depend on, in addition to the images."""
_KEYS = {
    *_FIXED, "format", "version", "changes", "data", "processes", "saving", "calibration", "versions",
}  # fmt: skip
"""Keys of run.json."""


@dataclass(eq=False)
class RunFolder:
    """A pretraining run on disk.

    Args:
        path: The folder.
        described: The content of run.json.
    """

    path: Path
    described: dict[str, Any]

    def __post_init__(self) -> None:
        self._records = Records(self.path / METRICS)

    @classmethod
    def new(
        cls,
        path: Path,
        run: TrainingRun,
        state: Mapping[str, Tensor],
        *,
        source: Source,
        at: dict[str, Any] | None,
        given: PretrainSettings,
        device: str,
        saving: Saving,
        seconds: float,
    ) -> "RunFolder":
        """Create the folder of a new run, with the state before its first step.

        The folder appears complete, so that the run can be resumed from it, or not at all.

        Args:
            path: The folder, which must not exist.
            run: The run.
            state: The complete state of its learner.
            source: Its images.
            at: Path or name of the images, with column and split; None if they were given as an object.
            given: The settings as given.
            device: Device of the training.
            saving: How often the state is saved.
            seconds: Seconds since the start of the command.
        """
        found = run.calibration
        described = {
            "format": FORMAT, "version": VERSION,
            "asked": given.as_dict(), "settings": run.settings.as_dict(), "changes": [],
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
            StoreError: If its run.json is damaged or has a key that does not exist.
        """
        file = path / RUN
        if not file.is_file():
            raise MissingPathError(f"{path}: no run here; make one with querykey pretrain")
        with raises_store_error(str(file), "start a new run"):
            described = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(described, dict) or described.get("format") != FORMAT:
                raise StoreError(f"{path}: this is not a pretraining run, so it cannot be resumed")
            if described["version"] != VERSION:
                raise StoreError(
                    f"{path}: written as version {described['version']}; this querykey reads {VERSION}"
                )
            unknown = described.keys() - _KEYS
            if unknown:
                raise StoreError(f"{file}: {min(unknown)}: no such key; remove it")
            folder = cls(path, _with_current_names(described, name=str(file)))
            _ = (folder.fingerprint, folder.device, folder.threads, folder.decoded_size, folder.saving,
                 folder.changes, folder.versions, folder.processes,
                 described["data"]["at"] is None or folder.at)  # fmt: skip
            if folder.settings.steps is None or folder.settings.epochs is None:
                raise StoreError(f"{file} is damaged: the length of the run is missing")
        return folder

    @property
    def settings(self) -> PretrainSettings:
        """The resolved settings."""
        return PretrainSettings.from_dict(self.described["settings"])

    @property
    def decoded_size(self) -> int | None:
        """The image size in the settings as given, which determines decoding; None: not given."""
        size = self.described["asked"]["image_size"]
        return None if size is None else int(size)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the images."""
        return str(self.described["data"]["fingerprint"])

    @property
    def device(self) -> str:
        """Device of the training."""
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
        """Settings that have changed since the start, each with the step of the change."""
        return [dict(change) for change in self.described.get("changes", [])]

    @property
    def saving(self) -> Saving:
        """How often the state is saved."""
        return Saving(**self.described.get("saving", {}))

    @property
    def at(self) -> dict[str, Any]:
        """Path or name of the images, with columns and split.

        Raises:
            StoreError: If they were given as an object, which has no path.
        """
        at = self.described["data"]["at"]
        if at is None:
            raise StoreError(
                f"{self.path}: its images were given as an object, not by a path or name, so they cannot be "
                "read again; give their path or name"
            )
        named = {n: None if at[n] is None else str(at[n]) for n in ("column", "label_column", "split")}
        return {"spec": str(at["spec"]), **named}

    def record(self, kind: str, **numbers: Any) -> None:
        """Append a record to metrics.jsonl."""
        self._records.append(kind, **numbers)

    def cut_records(self, step: int) -> dict[str, Any]:
        """Remove the records after a step, which a run resumed there records again.

        Args:
            step: Steps taken.

        Returns:
            The metrics of the last evaluation up to this step; empty if there is none.
        """
        with raises_store_error(str(self.path / METRICS), "remove the line that is not the record of a step"):
            kept = [record for record in self._records.read() if record["step"] <= step]
        lines = [json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in kept]
        write_atomically(self.path / METRICS, lines)
        self._records = Records(self.path / METRICS)
        last = next((record for record in reversed(kept) if record["kind"] == "look"), {})
        return {name: value for name, value in last.items() if name not in ("kind", "step")}

    def lock(self) -> AbstractContextManager[None]:
        """A lock against other processes that write to the folder.

        Raises:
            OutputError: If another process holds it.
        """
        return file_lock(self.path / CHECKPOINTS / "lock")

    def require_unchanged(self, about: dict[str, Any]) -> None:
        """Check that run.json agrees with a checkpoint.

        Args:
            about: The description of the checkpoint.

        Raises:
            ConfigError: If settings were changed since that checkpoint.
        """
        if "run" not in about:  # a checkpoint of the first version
            return
        file, now = str(self.path / RUN), {name: self.described.get(name) for name in _FIXED}
        require_unchanged(_with_current_names(about["run"], name=file), now, self.changes, where=file)

    def prepare_resume(self, *, save_every: float | None) -> None:
        """Remove temporary files, and store how often the state is saved from now on.

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
            device: Device of the training from now on.

        Returns:
            A message for each reason.
        """
        return reproducibility_warnings(
            self.versions,
            threads=self.threads,
            processes=self.processes,
            settings=self.settings,
            devices=(self.device, device),
        )

    def move(self, *, at: dict[str, Any] | None, device: str, step: int) -> None:
        """Store the location of the images and the device from a step on.

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
        """Store settings that change from a step on.

        Args:
            settings: The new settings.
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
        """Write a checkpoint, after the records before it are on disk."""
        sync_file(self.path / METRICS)
        fixed = {name: self.described.get(name) for name in _FIXED} | {"settings": run.settings.as_dict()}
        about = {"start": dict(run.start), "seconds": seconds, "run": fixed}
        write_checkpoint(self.path / CHECKPOINTS, step, state, about, keep=self.saving.keep)

    def finish(self, saved: SavedEncoder) -> None:
        """Write the encoder, which makes the folder a model."""
        put_encoder(saved, self.path)

    def _write(self) -> None:
        write_atomically(self.path / RUN, [json.dumps(self.described, indent=2).encode() + b"\n"])


def _with_current_names(described: dict[str, Any], *, name: str) -> dict[str, Any]:
    """The content of run.json, with settings of version 0.1 under their current names.

    Raises:
        StoreError: With the dotted key of a setting that does not exist.
    """
    made = dict(described)
    for key in ("settings", "asked"):
        if described.get(key) is not None:
            try:
                settings = make(PretrainSettings, current(described[key], PRETRAINING, warn=False))
            except ConfigError as error:
                raise StoreError(f"{name}: {key}.{error}") from error
            made[key] = json.loads(json.dumps(settings.as_dict()))
    if "changes" in described:
        made["changes"] = [_rename_change(change) for change in described["changes"]]
    return made


def _rename_change(change: dict[str, Any]) -> dict[str, Any]:
    """A change of settings under their current names; the device has one name."""
    made = {key: value for key, value in change.items() if key == "step"}
    for key, value in change.items():
        if key != "step":
            named = current({key.removeprefix("settings."): value}, PRETRAINING, warn=False)
            made |= {f"settings.{name}": value for name, value in named.items()}
    return made


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
    path = expand_user(at["spec"])
    return at | {"spec": str(path.resolve()) if path.exists() else at["spec"]}
