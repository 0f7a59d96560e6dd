"""Features: the rows of a frozen model, with what is known of each item."""

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
    """Rows of features and what they are of.

    `numpy.asarray(features)` and scikit-learn take it as its vectors.

    Args:
        vectors: [n, dim], float32 or float16. From a store or a .npy file they are mapped into
            memory: a row that is not read costs nothing, and writing to one changes no file.
        ids: One an item, unique.
        labels: int64 [n], -1 where unknown; None without labels.
        label_names: The classes, () where they have no names; labels index into it.
        previews: One short line an item, to show in a search: the text's start, or the path.
        model_key: Of the model that made the vectors; "" where none is known.
        meta: What meta.json of the store holds; {} without a store.
        queries: The query side, where the data are pairs.
        pairs: int64 [m, 3]: row in `queries`, row here, grade >= 1.

    Raises:
        ShapeError: If ids, labels or previews are not one a row.
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
        """How many items there are."""
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Width of a row."""
        return int(self.vectors.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The vectors as a numpy array; not copied unless another dtype or a copy is asked for."""
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
    """Features of vectors that are in memory.

    Args:
        X: [n, dim]; numpy, torch, or anything numpy takes. float32 and float16 are not copied.
        y: Labels, one a row: whole numbers (-1 or missing: unknown) or strings; None for none.
        ids: One a row, unique; row numbers without.
        model_key: Of the model that made them, where it is known.

    Returns:
        The features, sharing memory with X where its dtype allows.

    Raises:
        ShapeError: If X is not [n, dim], or y or ids are not one a row.
        DataError: If y holds no classes.

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
    """Features of a source that holds vectors already; no model is known to have made them.

    Args:
        source: Of kind "vector".

    Returns:
        Its vectors, not copied where they are float32 or float16, with its labels, queries and pairs.

    Raises:
        SourceError: If it holds images or texts.
    """
    if source.kind != "vector":
        raise SourceError(
            f"{source.name} holds {source.kind}s, not vectors; make features of it first: "
            f"querykey embed {source.name} --model MODEL --out FEATURES"
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
        verify: Read every byte of a store and compare its sha256; without it the sizes and
            headers of its files are checked.

    Returns:
        The features, memory-mapped.

    Raises:
        StoreError: If the store is damaged or its bytes were changed.
        SourceError: If there are no vectors at the path.
    """
    path = Path(path)
    if not is_store(path):
        # a folder of images, say, is read only to tell its kind
        from querykey.data.readers.open import read_source

        return features_of_source(read_source(path))
    return _read_store(path, verify=verify)


def write_features(features: Features, out: str | Path) -> Path:
    """Write features as a store: into a scratch folder, then renamed into place.

    Args:
        features: With their queries and pairs, where they have them.
        out: The store's folder.

    Returns:
        The folder.

    Raises:
        OutputExistsError: If something is there already.
        OutputError: If it cannot be written; nothing is left behind.
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
    """float16 and float32 as they are, all else as float32."""
    if array.dtype not in (np.float32, np.float16):
        array = array.astype(np.float32)
    if not array.flags.writeable:  # torch has no read-only tensors
        array = array.copy()
    return torch.from_numpy(array)
