"""Checkpoints: tensors in safetensors, the rest in JSON, with checksums; whole or not there."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from querykey.data.durable import make_folder, write_aside
from querykey.errors import MissingPathError, StoreError

__all__ = ["Checkpoint", "latest_checkpoint", "optimizer_tensors", "restore_optimizer_", "write_checkpoint"]

KEPT = 2
_NAME = re.compile(r"step-(\d{9})\.json")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run after some steps.

    Args:
        step: Steps taken.
        tensors: Everything that training changes.
        about: What else a resumed run must know, as plain values.
        skipped: Newer checkpoints that were damaged, by name.
    """

    step: int
    tensors: dict[str, Tensor]
    about: dict[str, Any]
    skipped: tuple[str, ...] = ()


def write_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], about: dict[str, Any], *, keep: int = KEPT
) -> None:
    """Write a checkpoint; older ones go, except for the last `keep`.

    The JSON file is written last and names the checksum of the tensors, so a checkpoint without it,
    or whose bytes differ, was never finished.

    Args:
        folder: Of all checkpoints of the run.
        step: Steps taken.
        tensors: On any device.
        about: Plain values.
        keep: At least 1.

    Raises:
        OutputError: If it cannot be written; those that are there stay.
    """
    make_folder(folder)
    name = f"step-{step:09d}"
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    written = write_aside(folder / f"{name}.safetensors", [save(plain)])
    said = {"format": "querykey checkpoint", "version": 1, "step": step, **written, "about": about}
    write_aside(folder / f"{name}.json", [json.dumps(said, indent=2).encode() + b"\n"])
    for old in _steps(folder)[keep:]:
        # the description first: what is left without one does not count
        (folder / f"step-{old:09d}.json").unlink(missing_ok=True)
        (folder / f"step-{old:09d}.safetensors").unlink(missing_ok=True)


def latest_checkpoint(folder: Path) -> Checkpoint:
    """The newest checkpoint that is whole.

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
        raise MissingPathError(f"{folder}: no checkpoint here, so there is nothing to go on from")
    skipped: list[str] = []
    for step in steps:
        name = f"step-{step:09d}"
        try:
            return _read(folder, name, tuple(skipped))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as fault:
            skipped.append(f"{name} ({type(fault).__name__}: {fault})")
    raise StoreError(f"{folder}: no checkpoint is whole: {'; '.join(skipped)}; start the run again")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser, flat: "number of the parameter.name" to its tensor.

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
    """Put `optimizer_tensors` back, in place; learning rates and other settings stay the optimiser's own.

    Args:
        optimizer: Of the same parameters in the same order.
        flat: What `optimizer_tensors` gave.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    whole = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def _steps(folder: Path) -> list[int]:
    """Steps with a description, the newest first."""
    if not folder.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted((int(match[1]) for match in found if match), reverse=True)


def _read(folder: Path, name: str, skipped: tuple[str, ...]) -> Checkpoint:
    said = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    content = (folder / f"{name}.safetensors").read_bytes()
    if hashlib.sha256(content).hexdigest() != said["sha256"]:
        raise ValueError("its bytes were changed")
    return Checkpoint(int(said["step"]), load(content), dict(said["about"]), skipped)
