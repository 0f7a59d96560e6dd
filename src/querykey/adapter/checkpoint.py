"""A fitted adapter in a folder: adapter.safetensors and adapter.json, with a checksum and no pickle."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load, save_file

from querykey.adapter.settings import AdapterSettings
from querykey.encoders.heads import FCLayer
from querykey.errors import StoreError
from querykey.io.atomic import new_folder, raises_store_error
from querykey.runtime.codes import Code
from querykey.runtime.folder import (
    DESCRIPTION,
    FORMAT,
    VERSION,
    WEIGHTS,
    put_codes,
    read_codes,
    read_description,
    read_weights,
)
from querykey.runtime.forward import LoadedAdapter

__all__ = ["SavedAdapter", "put_saved", "read_saved", "write_saved"]


@dataclass(frozen=True, eq=False)
class SavedAdapter:
    """The content of a folder.

    Args:
        fc: The FC layer, in eval mode.
        settings: Resolved settings of the fit.
        report: Report of the fit.
        model_key: Key of the model whose features it was fitted on.
        candidates: The candidates of the fit.
        feature_names: Names of the columns it was fitted on, or None.
        codes: (size, bits) to `Code`.
        frontier: Bytes, quality and interval of each size at each precision.
    """

    fc: FCLayer
    settings: AdapterSettings
    report: dict[str, Any]
    model_key: str
    candidates: list[dict[str, Any]] = field(default_factory=list)
    feature_names: list[str] | None = None
    codes: dict[tuple[int, int], Code] = field(default_factory=dict)
    frontier: list[dict[str, Any]] = field(default_factory=list)

    def loaded(self) -> LoadedAdapter:
        """The same adapter in NumPy, which is the only implementation of codes."""
        return LoadedAdapter(
            {name: tensor.numpy() for name, tensor in self.fc.state_dict().items()},
            kind=self.fc.kind,
            side=self.settings.side,
            model_key=self.model_key,
            report=self.report,
            dims=self.settings.sizes,
            codes=self.codes,
        )


def write_saved(saved: SavedAdapter, folder: str | Path) -> None:
    """Write an adapter into a new folder.

    Args:
        saved: The adapter.
        folder: Must not exist yet, or be empty.

    Raises:
        OutputExistsError: If something is there.
        OutputError: If it cannot be written; nothing is left behind.
    """
    with new_folder(folder) as tmp_path:
        put_saved(saved, tmp_path)


def put_saved(saved: SavedAdapter, folder: Path) -> None:
    """Write an adapter's files into an existing folder.

    Args:
        saved: The adapter.
        folder: An existing folder.
    """
    state = {name: tensor.contiguous() for name, tensor in saved.fc.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    described = {
        "format": FORMAT,
        "version": VERSION,
        "width": saved.fc.width,
        "dim": saved.fc.dim,
        "kind": saved.fc.kind,
        "dims": list(saved.settings.sizes),
        "side": saved.settings.side,
        "model_key": saved.model_key,
        "settings": saved.settings.as_dict(),
        "report": saved.report,
        "candidates": saved.candidates,
        "feature_names": saved.feature_names,
        "frontier": saved.frontier,
        "codes": put_codes(saved.codes, folder),
        "sha256": hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest(),
    }
    (folder / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def read_saved(folder: str | Path) -> SavedAdapter:
    """Read an adapter; nothing in the folder is executed.

    Args:
        folder: With adapter.json and adapter.safetensors.

    Returns:
        Its content.

    Raises:
        MissingPathError: If there is no adapter.
        StoreError: If it is damaged, was changed, or comes from a newer version.
    """
    folder = Path(folder)
    with raises_store_error(f"{folder}: the adapter", "fit it again"):
        return _read(folder, read_description(folder))


def _read(folder: Path, described: dict[str, Any]) -> SavedAdapter:
    state = load(read_weights(folder, described))
    width, dim, kind = described["width"], described["dim"], described["kind"]
    if width * dim > sum(tensor.numel() for tensor in state.values()):  # before memory is taken for it
        raise StoreError(f"{folder}: {WEIGHTS} does not hold the weights of {width} x {dim}")
    fc = FCLayer(width, dim, kind=kind)
    fc.load_state_dict(state)
    settings = AdapterSettings.from_dict(described["settings"])
    fc.eval().requires_grad_(False)
    names = described.get("feature_names")
    return SavedAdapter(
        fc,
        settings,
        dict(described["report"]),
        str(described["model_key"]),
        list(described.get("candidates", [])),
        None if names is None else list(names),
        read_codes(folder, described),
        list(described.get("frontier", [])),
    )
