"""A feature store in progress: shards on disk, from which a stopped call is resumed."""

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

from querykey.io.atomic import make_folder, write_atomically

__all__ = ["PartialStore", "Shards", "Skipped"]

_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Skipped:
    """An item that could not be read.

    Args:
        row: Its row in the source.
        id: Its id.
        reason: Why it could not be read.
    """

    row: int
    id: str
    reason: str


class Shards:
    """The shards of one side of a store: rows 0 to size - 1 in shard 0, and so on.

    Args:
        folder: Their folder.
        rows: Rows of the source, including skipped ones.
        size: Rows per shard, >= 1.
    """

    def __init__(self, folder: Path, *, rows: int, size: int) -> None:
        self._folder = folder
        self._rows = rows
        self._size = size
        make_folder(folder)

    def spans(self) -> Iterator[tuple[int, range]]:
        """(number of the shard, its rows of the source), in order."""
        for number, start in enumerate(range(0, self._rows, self._size)):
            yield number, range(start, min(start + self._size, self._rows))

    def put(self, number: int, vectors: Tensor, kept: Sequence[int], skipped: Sequence[Skipped]) -> None:
        """Write a shard.

        Args:
            number: Number of the shard.
            vectors: [kept, dim].
            kept: Row in the source of each vector.
            skipped: The rows without a vector.

        Raises:
            OutputError: If it cannot be written; the other shards are kept.
        """
        from safetensors.torch import save

        tensors = {"vectors": vectors.contiguous(), "kept": torch.tensor(kept, dtype=torch.int64)}
        notes = json.dumps([vars(one) for one in skipped])
        write_atomically(self._path(number), [save(tensors, metadata={"skipped": notes})])

    def read(self, number: int) -> tuple[Tensor, NDArray[np.int64], list[Skipped]] | None:
        """(vectors, kept, skipped) of a shard; None if it was not finished."""
        try:
            with safetensors.safe_open(self._path(number), framework="pt") as shard:
                notes = json.loads(shard.metadata()["skipped"])
                kept: NDArray[np.int64] = shard.get_tensor("kept").numpy()
                return shard.get_tensor("vectors"), kept, [Skipped(**note) for note in notes]
        except (OSError, SafetensorError):  # missing or incomplete
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
    """The scratch folder of a store, with its shards.

    Args:
        folder: The folder.
        manifest: Key of the store, shard size and batch plan.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self._manifest = manifest

    @classmethod
    def open(
        cls, folder: Path, *, key: str, shard_size: int, notify: Callable[[str], None]
    ) -> "PartialStore":
        """Resume from the shards of an earlier call with the same key, or start a new store.

        Args:
            folder: The content of the claim on the store, see `reserve`.
            key: Key of the store.
            shard_size: Rows per shard of a new store.
            notify: Called with a note on the existing shards.

        Raises:
            OutputError: If the folder cannot be made.
        """
        manifest = _manifest_of(folder)
        if manifest is not None and manifest.get("key") == key:
            notify(f"resuming from {folder} of an earlier run")
            return cls(folder, manifest)
        if folder.exists():
            notify(f"{folder} is of other data or another model; starting again")
            shutil.rmtree(folder)
        started = cls(folder, {"key": key, "shard_size": shard_size, "plan": None})
        make_folder(folder)
        started._write()
        return started

    @property
    def plan(self) -> dict[str, Any] | None:
        """The batch plan of the model so far."""
        plan: dict[str, Any] | None = self._manifest["plan"]
        return plan

    def store_plan(self, plan: Mapping[str, Any]) -> None:
        """Store the batch plan of the model."""
        self._manifest["plan"] = dict(plan)
        self._write()

    def side(self, name: str, rows: int) -> Shards:
        """The shards of one side, "items" or "queries"."""
        return Shards(self.folder / name, rows=rows, size=int(self._manifest["shard_size"]))

    def discard(self) -> None:
        """Remove the folder with all shards."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self) -> None:
        write_atomically(self.folder / _MANIFEST, [json.dumps(self._manifest, indent=2).encode()])


def _manifest_of(folder: Path) -> dict[str, Any] | None:
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text())
        is_whole = manifest["shard_size"] > 0 and (manifest["plan"] is None or dict(manifest["plan"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return manifest if is_whole else None
