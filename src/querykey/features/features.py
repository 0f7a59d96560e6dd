"""Features: rows computed by a frozen model, with ids, labels and pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from querykey.data.items import RowNumbers, Source
from querykey.data.labels import number_labels
from querykey.errors import ShapeError, SourceError
from querykey.features.store import (
    QUERIES,
    StoreItems,
    check_store,
    is_store,
    read_items,
    read_meta,
    read_pairs,
    read_vectors,
    write_store,
)
from querykey.io.atomic import new_folder, raises_store_error
from querykey.types import Labels, Rows

__all__ = ["Features", "features_from_array", "features_of_source", "read_features", "write_features"]

_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, eq=False)
class Features:
    """Rows of features, with their ids, labels and pairs.

    `numpy.asarray(features)` and scikit-learn use its vectors.

    Args:
        vectors: [n, dim], float32 or float16. Those of a store or a .npy file are memory-mapped copy on
            write: rows are read when they are used, and writing to them changes no file.
        ids: One per row, unique.
        labels: int64 [n], -1 for no label; None without labels.
        label_names: Names of the classes, which labels index; () if they have no names.
        previews: One short line per row, to show in a search: the start of the text, or the path.
        model_key: Key of the model that computed the vectors; "" if unknown.
        meta: Content of meta.json of the store; {} without a store.
        queries: The query side of pairs.
        pairs: int64 [m, 3]: row in `queries`, row here, grade >= 1.

    Raises:
        ShapeError: If ids, labels or previews do not have one entry per row.
    """

    vectors: Rows
    ids: Sequence[str]
    labels: Labels | None
    label_names: tuple[str, ...]
    previews: Sequence[str]
    model_key: str
    meta: dict[str, Any] = field(default_factory=dict)
    queries: "Features | None" = None
    pairs: Tensor | None = None

    def __post_init__(self) -> None:
        for name, values in (("ids", self.ids), ("labels", self.labels), ("previews", self.previews)):
            if values is not None and len(values) != len(self.vectors):
                raise ShapeError(
                    f"{name} has {len(values)} entries for {len(self.vectors)} rows; one for each is needed"
                )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Width of a row."""
        return int(self.vectors.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The vectors as a numpy array, copied only for another dtype or with copy=True."""
        array = self.vectors.numpy()
        wanted = array.dtype if dtype is None else np.dtype(dtype)
        if copy is False and wanted != array.dtype:
            raise ValueError(f"features of {array.dtype} cannot become {wanted} without a copy")
        return array.astype(wanted, copy=bool(copy))


def features_from_array(
    X: ArrayLike | Tensor,
    y: Any = None,
    ids: Sequence[str] | None = None,
    *,
    model_key: str = "",
) -> Features:
    """Features of vectors in memory.

    Args:
        X: [n, dim]; numpy, torch, or anything numpy takes. float32 and float16 are not copied.
        y: Labels, one per row: integers (-1 or missing: no label) or strings; None without labels.
        ids: One per row, unique; None: row numbers.
        model_key: Key of the model that computed them; "" if unknown.

    Returns:
        The features, which share memory with X if its dtype allows.

    Raises:
        ShapeError: If X is not [n, dim], or y or ids do not have one entry per row.
        DataError: If y contains no classes.

    Example:
        >>> features = features_from_array([[1.0, 0.0], [0.0, 1.0]], y=["b", "a"])
        >>> features.labels.tolist(), features.label_names, list(features.ids)
        ([1, 0], ('a', 'b'), ['0', '1'])
    """
    array = _array(X)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiub":
        raise ShapeError(
            f"features are numbers [n, dim] with n and dim >= 1; got {array.dtype} {list(array.shape)}"
        )
    vectors = _tensor(array)
    ids = RowNumbers(len(vectors)) if ids is None else ids
    labels: Tensor | None = None
    names: tuple[str, ...] = ()
    if y is not None:
        values = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
        if len(values) != len(vectors):
            raise ShapeError(f"y has {len(values)} entries for {len(vectors)} rows; one for each is needed")
        numbers, names = number_labels(values, what="y")
        labels = torch.from_numpy(numbers)
    return Features(
        vectors=vectors, ids=ids, labels=labels, label_names=names, previews=ids, model_key=model_key
    )


def features_of_source(source: Source) -> Features:
    """Features of a source of vectors, whose model is unknown.

    Args:
        source: A source of kind "vector".

    Returns:
        Its vectors, not copied if they are float32 or float16, with its labels, queries and pairs.

    Raises:
        SourceError: If it contains images or texts.
    """
    if source.kind != "vector":
        raise SourceError(
            f"{source.name} contains {source.kind}s, not vectors; compute features first, with querykey embed"
        )
    return Features(
        vectors=_tensor(np.asanyarray(source.items)),
        ids=source.ids,
        labels=None if source.labels is None else torch.from_numpy(source.labels),
        label_names=source.label_names,
        previews=source.ids,
        model_key="",
        queries=None if source.queries is None else features_of_source(source.queries),
        pairs=None if source.pairs is None else torch.from_numpy(source.pairs),
    )


def read_features(path: str | Path, *, verify: bool = False) -> Features:
    """Read a feature store, or vectors from .npy, .npz, .safetensors or .parquet.

    Args:
        path: The store's folder, or the file.
        verify: Whether to check the SHA-256 of every file of a store; otherwise only sizes and headers are
            checked.

    Returns:
        The features, memory-mapped.

    Raises:
        StoreError: If the store is damaged or its bytes were changed.
        SourceError: If there are no vectors at the path.
    """
    path = Path(path)
    if not is_store(path):
        # for example a folder of images, whose kind is part of the error message
        from querykey.data.readers.open import read_source

        return features_of_source(read_source(path))
    return _read_store(path, verify=verify)


def write_features(features: Features, out: str | Path) -> Path:
    """Write features as a store, atomically.

    Args:
        features: The features, with their queries and pairs.
        out: The folder of the store.

    Returns:
        The folder.

    Raises:
        OutputExistsError: If the folder exists.
        OutputError: If it cannot be written; no partial output remains.
    """
    out = Path(out)
    with new_folder(out) as tmp_path:
        _write_store(tmp_path, features)
        if features.queries is not None:
            _write_store(tmp_path / QUERIES, features.queries)
    return out


def _write_store(folder: Path, features: Features) -> None:
    write_store(
        folder,
        torch.split(features.vectors, _ROWS_AT_ONCE),
        items=StoreItems(
            ids=features.ids,
            labels=None if features.labels is None else features.labels.numpy(),
            previews=features.previews,
        ),
        dim=features.dim,
        dtype=str(features.vectors.dtype).removeprefix("torch."),
        label_names=features.label_names,
        pairs=None if features.pairs is None else features.pairs.numpy(),
        about={"model": {"key": features.model_key}, **features.meta},
    )


def _read_store(folder: Path, *, verify: bool) -> Features:
    with raises_store_error(str(folder), "make it again with querykey embed"):
        return _opened(folder, verify=verify)


def _opened(folder: Path, *, verify: bool) -> Features:
    meta = read_meta(folder)
    check_store(folder, meta, verify=verify)
    items, pairs = read_items(folder, meta), read_pairs(folder, meta)
    is_paired = (folder / QUERIES).is_dir()
    return Features(
        vectors=torch.from_numpy(read_vectors(folder, meta)),
        ids=items.ids,
        labels=None if items.labels is None else torch.from_numpy(items.labels),
        label_names=tuple(meta["label_names"]),
        previews=items.previews,
        model_key=str(meta["model"].get("key", "")),
        meta=meta,
        queries=_read_store(folder / QUERIES, verify=verify) if is_paired else None,
        pairs=None if pairs is None else torch.from_numpy(pairs),
    )


def _array(X: ArrayLike | Tensor) -> NDArray[Any]:
    if not isinstance(X, Tensor):
        return np.asanyarray(X)
    X = X.detach().cpu()
    # numpy has no bfloat16
    numbers: NDArray[Any] = (X.float() if X.dtype == torch.bfloat16 else X).numpy()
    return numbers


def _tensor(array: NDArray[Any]) -> Tensor:
    """float16 and float32 unchanged, other dtypes as float32."""
    if array.dtype not in (np.float32, np.float16):
        array = array.astype(np.float32)
    if not array.flags.writeable:  # torch has no read-only tensors
        array = array.copy()
    return torch.from_numpy(array)
