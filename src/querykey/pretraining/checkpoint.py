"""Checkpoints: tensors in safetensors, the rest in JSON, with checksums; complete or absent."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from querykey.errors import MissingPathError, RangeError, StoreError
from querykey.io.atomic import make_folder, write_atomically

__all__ = [
    "Checkpoint",
    "Saving",
    "latest_checkpoint",
    "optimizer_tensors",
    "restore_optimizer_",
    "write_checkpoint",
]

KEPT = 2
SAVE_SECONDS = 60.0
VERSION = 2
"""Of what is written; version 1 had no checksum of the description itself."""
_NAME = re.compile(r"step-(\d{9})\.(json|safetensors)")


@dataclass(frozen=True, kw_only=True)
class Saving:
    """How often the state is saved; it changes no number of a run.

    Args:
        seconds: Between two checkpoints, at least 0: then there is one after each step.
        keep: How many of the last ones are kept, at least 1.

    Raises:
        RangeError: If one of them is out of range.
    """

    seconds: float = SAVE_SECONDS
    keep: int = KEPT

    def __post_init__(self) -> None:
        if not 0 <= self.seconds < float("inf"):
            raise RangeError(f"save_every must be at least 0 seconds and finite, got {self.seconds}")
        if self.keep < 1:
            raise RangeError(f"keep must be at least 1 checkpoint, got {self.keep}")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run after some steps.

    Args:
        step: Steps taken.
        tensors: Everything that training changes.
        about: Other values that a resumed run needs, for JSON.
        skipped: Newer checkpoints that were damaged, by name.
    """

    step: int
    tensors: dict[str, Tensor]
    about: dict[str, Any]
    skipped: tuple[str, ...] = ()


def write_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], about: dict[str, Any], *, keep: int = KEPT
) -> None:
    """Write a checkpoint, and remove all but the last `keep`.

    The JSON file is written last and contains the checksums of the tensors and of itself, so a checkpoint
    without it, or with other bytes, was never finished. Checkpoints of later steps are removed too: the run
    has restored an earlier one.

    Args:
        folder: Of all checkpoints of the run.
        step: Steps taken.
        tensors: On any device.
        about: Values for JSON.
        keep: At least 1.

    Raises:
        OutputError: If it cannot be written; existing ones are kept.
    """
    make_folder(folder)
    name = f"step-{step:09d}"
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    written = write_atomically(folder / f"{name}.safetensors", [save(plain)])
    described = {"format": "querykey checkpoint", "version": VERSION, "step": step, **written, "about": about}
    described["description_sha256"] = _digest(described)
    write_atomically(folder / f"{name}.json", [json.dumps(described, indent=2).encode() + b"\n"])
    kept = [found for found in _steps(folder) if found <= step][:keep]
    files = {path: _NAME.fullmatch(path.name) for path in folder.iterdir()}
    # the description first: what is left without one does not count
    for path in sorted(files, key=lambda path: path.suffix):
        match = files[path]
        if match is not None and int(match[1]) not in kept:
            path.unlink(missing_ok=True)


def latest_checkpoint(folder: Path) -> Checkpoint:
    """The newest checkpoint that is not damaged.

    Args:
        folder: Of all checkpoints of the run.

    Returns:
        The checkpoint; `skipped` names newer ones that are damaged.

    Raises:
        MissingPathError: If there is none.
        StoreError: If all are damaged.
    """
    steps = _steps(folder)
    if not steps:
        raise MissingPathError(f"{folder}: no checkpoint here, so there is nothing to resume")
    skipped: list[str] = []
    for step in steps:
        name = f"step-{step:09d}"
        try:
            return _read(folder, name, tuple(skipped))
        except Exception as error:  # noqa: BLE001 -- a damaged file can be wrong in any way
            skipped.append(f"{name} ({type(error).__name__}: {error})")
    raise StoreError(f"{folder}: no checkpoint is complete: {'; '.join(skipped)}; start the run again")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer, flat: "index of the parameter.name" to its tensor.

    Args:
        optimizer: Its state must be tensors alone, as that of SGD, AdamW and LARS is.

    Returns:
        The tensors themselves.
    """
    flat = {}
    for number, parts in optimizer.state_dict()["state"].items():
        for name, value in parts.items():
            if isinstance(value, Tensor):
                flat[f"{number}.{name}"] = value
    return flat


def restore_optimizer_(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    """Restore `optimizer_tensors`, in place; learning rates and other settings of the optimizer are kept.

    Args:
        optimizer: Of the same parameters in the same order.
        flat: What `optimizer_tensors` gave.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    current = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})


def _steps(folder: Path) -> list[int]:
    """Steps with a description, the newest first."""
    if not folder.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted((int(match[1]) for match in found if match and match[2] == "json"), reverse=True)


def _read(folder: Path, name: str, skipped: tuple[str, ...]) -> Checkpoint:
    described = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    if described["version"] not in (1, VERSION):
        raise ValueError(f"it is of version {described['version']!r}; this querykey reads up to {VERSION}")
    if described["version"] == VERSION and _digest(described) != described["description_sha256"]:
        raise ValueError("its description was changed")
    if f"step-{described['step']:09d}" != name:
        raise ValueError(f"it is the one after step {described['step']}, renamed")
    content = (folder / f"{name}.safetensors").read_bytes()
    if hashlib.sha256(content).hexdigest() != described["sha256"]:
        raise ValueError("its bytes were changed")
    return Checkpoint(described["step"], load(content), dict(described["about"]), skipped)


def _digest(described: Mapping[str, Any]) -> str:
    """Of a description without its own checksum."""
    plain = {key: value for key, value in described.items() if key != "description_sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
