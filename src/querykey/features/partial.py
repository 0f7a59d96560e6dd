"""A feature store in progress: shards that survive the process that makes them."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from querykey.io.atomic import make_folder, write_aside

__all__ = ["PartialStore", "Shards", "Skipped"]

_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Skipped:
    """An item that could not be read.

    Args:
        row: Its place in the source.
        id: Its id there.
        reason: What was wrong with it.
    """

    row: int
    id: str
    reason: str


class Shards:
    """The shards of one side of a store: rows 0 to size - 1 in shard 0, and so on.

    Args:
        folder: Where they lie.
        rows: Of the source, the skipped ones too.
        size: Rows a shard, >= 1.
    """

    def __init__(self, folder: Path, *, rows: int, size: int) -> None:
        self._folder = folder
        self._rows = rows
        self._size = size
        make_folder(folder)

    def spans(self) -> Iterator[tuple[int, range]]:
        """(number of the shard, the rows of the source in it), in order."""
        for number, start in enumerate(range(0, self._rows, self._size)):
            yield number, range(start, min(start + self._size, self._rows))

    def put(self, number: int, vectors: Tensor, kept: Sequence[int], skipped: Sequence[Skipped]) -> None:
        """Write a shard whole.

        Args:
            number: Which.
            vectors: [kept, dim].
            kept: Row in the source of each vector.
            skipped: The rows that have none.

        Raises:
            OutputError: If it cannot be written; the other shards are kept.
        """
        from safetensors.torch import save

        tensors = {"vectors": vectors.contiguous(), "kept": torch.tensor(kept, dtype=torch.int64)}
        notes = json.dumps([vars(one) for one in skipped])
        write_aside(self._path(number), [save(tensors, metadata={"skipped": notes})])

    def read(self, number: int) -> tuple[Tensor, NDArray[np.int64], list[Skipped]] | None:
        """(vectors, kept, skipped) of a shard; None if it was not finished."""
        try:
            with safetensors.safe_open(self._path(number), framework="pt") as shard:
                notes = json.loads(shard.metadata()["skipped"])
                kept: NDArray[np.int64] = shard.get_tensor("kept").numpy()
                return shard.get_tensor("vectors"), kept, [Skipped(**note) for note in notes]
        except (OSError, SafetensorError):  # not there, or the disk lost a part of it
            return None

    def all_vectors(self) -> Iterator[Tensor]:
        """The vectors of each shard, in order; all must be finished."""
        for number, _ in self.spans():
            shard = self.read(number)
            if shard is not None:
                yield shard[0]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.safetensors"


class PartialStore:
    """The scratch folder of a store, in which its shards are collected.

    Args:
        folder: Where the shards lie.
        manifest: What they are shards of.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self._manifest = manifest

    @classmethod
    def open(
        cls, folder: Path, *, key: str, shard_size: int, notify: Callable[[str], None]
    ) -> "PartialStore":
        """Resume what an earlier call left, if it is of the same key; start anew otherwise.

        Args:
            folder: The content of the claim on the store, see `reserve`.
            key: Of the store to make.
            shard_size: Rows a shard, if it starts anew.
            notify: Called with what is done with the shards that were left.

        Raises:
            OutputError: If the folder cannot be made.
        """
        manifest = _manifest_of(folder)
        if manifest is not None and manifest.get("key") == key:
            notify(f"resuming from {folder}, which an earlier run left")
            return cls(folder, manifest)
        if folder.exists():
            notify(f"{folder} was left by a run on other data or with another model; starting anew")
            shutil.rmtree(folder)
        started = cls(folder, {"key": key, "shard_size": shard_size, "plan": None})
        make_folder(folder)
        started._write()
        return started

    @property
    def plan(self) -> dict[str, Any] | None:
        """How the model was run so far, for the rest to be run likewise."""
        plan: dict[str, Any] | None = self._manifest["plan"]
        return plan

    def keep_plan(self, plan: Mapping[str, Any]) -> None:
        """Write down how the model is run."""
        self._manifest["plan"] = dict(plan)
        self._write()

    def side(self, name: str, rows: int) -> Shards:
        """The shards of one side, "items" or "queries"."""
        return Shards(self.folder / name, rows=rows, size=int(self._manifest["shard_size"]))

    def discard(self) -> None:
        """Remove it and all shards."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self) -> None:
        write_aside(self.folder / _MANIFEST, [json.dumps(self._manifest, indent=2).encode()])


def _manifest_of(folder: Path) -> dict[str, Any] | None:
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest
