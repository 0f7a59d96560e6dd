"""What users hand to the estimator and to `embed`: containers of rows, types of labels, tables, images.

All containers hold the same 64 rows of 4 whole numbers, so that a fit gives the same rows for each of them.
"""

from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import torch

from querykey import Adapter
from querykey.features.features import Features

NUMBERS = np.random.default_rng(0).integers(-8, 9, (64, 4))
NUMBERS[(NUMBERS == 0).all(axis=1)] = 1
ROWS = NUMBERS.astype(np.float32)
CLASSES = np.arange(64) % 4
WORDS = np.array(["a", "b", "c", "d"])[CLASSES]
ABSENT = np.arange(64) % 8 == 5


def _read_only():
    rows = ROWS.copy()
    rows.flags.writeable = False
    return rows


def _every_second():
    wide = np.zeros((128, 8), np.float32)
    wide[::2, ::2] = ROWS
    return wide[::2, ::2]


def _mapped():
    path = Path(mkdtemp()) / "rows.npy"
    np.save(path, ROWS)
    return np.load(path, mmap_mode="r")


def _polars():
    if find_spec("polars") is None:
        pytest.skip("polars is not installed")
    import polars as pl

    return pl.DataFrame(ROWS, schema=list("abcd"))


def _features():
    ids = [str(row) for row in range(64)]
    return Features(torch.from_numpy(ROWS), ids=ids, labels=None, label_names=(), previews=ids, model_key="")


CONTAINERS = {
    "list": ROWS.tolist,
    "list of arrays": lambda: list(ROWS),
    "C order": ROWS.copy,
    "F order": lambda: np.asfortranarray(ROWS),
    "read-only": _read_only,
    "strided": _every_second,
    "float16": lambda: ROWS.astype(np.float16),
    "float64": lambda: ROWS.astype(np.float64),
    "big-endian": lambda: ROWS.astype(">f4"),
    "int64": NUMBERS.copy,
    "int8": lambda: NUMBERS.astype(np.int8),
    "objects": lambda: ROWS.astype(object),
    "memory-mapped": _mapped,
    "masked": lambda: np.ma.array(ROWS),
    "tensor": lambda: torch.from_numpy(ROWS.copy()),
    "tensor float64": lambda: torch.from_numpy(ROWS.astype(np.float64)),
    "tensor bfloat16": lambda: torch.from_numpy(ROWS).bfloat16(),
    "tensor int64": lambda: torch.from_numpy(NUMBERS.copy()),
    "tensor with gradient": lambda: torch.from_numpy(ROWS.copy()).requires_grad_(),
    "transposed tensor": lambda: torch.from_numpy(ROWS.T.copy()).T,
    "DataFrame": lambda: pd.DataFrame(ROWS, columns=list("abcd")),
    "nullable DataFrame": lambda: pd.DataFrame(ROWS, columns=list("abcd")).convert_dtypes(),
    "Arrow table": lambda: pa.table({name: ROWS[:, place] for place, name in enumerate("abcd")}),
    "polars": _polars,
    "Features": _features,
}
REFUSED_CONTAINERS = {
    "sparse": (lambda: scipy.sparse.csr_matrix(ROWS), "[Ss]parse"),
    "one row": (lambda: ROWS[0], "1D array"),
    "one tensor": (lambda: torch.from_numpy(ROWS[0]), "matrix"),
    "three axes": (lambda: ROWS[None], "dim 3"),
    "masked numbers": (lambda: np.ma.array(ROWS, mask=np.eye(64, 4)), "4 missing numbers"),
    "texts": (lambda: WORDS[:, None], "convert|numeric"),
    "complex": (lambda: ROWS + 1j, "[Cc]omplex"),
    "complex tensor": (lambda: torch.from_numpy(ROWS + 1j), "complex"),
    "generator": (lambda: (row for row in ROWS), "generator|array|iterator"),
    "nothing": (lambda: None, "None|NoneType"),
    "ragged": (lambda: [[1.0, 2.0], [3.0]], "inhomogeneous|array"),
    "missing in a frame": (lambda: pd.DataFrame({"a": [1.0, None] * 32, "b": 1.0}), "NaN|missing"),
}

LABELS = {
    **{name: (lambda name=name: CLASSES.astype(name), "all") for name in
       ("int8", "int32", "int64", "uint8", "uint16", "uint64", "float32", "float16")},
    "list": (CLASSES.tolist, "all"),
    "bool": (lambda: CLASSES % 2 == 1, "two"),
    "words": (WORDS.tolist, "all"),
    "numpy words": (WORDS.copy, "all"),
    "numpy strings": (lambda: WORDS.astype(np.dtypes.StringDType()), "all"),
    "bytes": (lambda: WORDS.astype("S1"), "all"),
    "objects": (lambda: WORDS.astype(object), "all"),
    "categorical": (lambda: pd.Series(WORDS).astype("category"), "all"),
    "pandas words": (lambda: pd.Series(WORDS, dtype="string"), "all"),
    "nullable with NA": (lambda: pd.Series(CLASSES, dtype="Int64").mask(ABSENT), "some"),
    "column of a frame": (lambda: pd.DataFrame({"y": WORDS}, index=range(5, 69))["y"], "all"),
    "Arrow": (lambda: pa.array(WORDS.tolist()), "all"),
    "Arrow chunks": (lambda: pa.chunked_array([WORDS[:9].tolist(), WORDS[9:].tolist()]), "all"),
    "Arrow dictionary": (lambda: pa.array(WORDS.tolist()).dictionary_encode(), "all"),
    "no labels": (lambda: None, "none"),
    "None": (lambda: [None if no else word for no, word in zip(ABSENT, WORDS, strict=True)], "some"),
    "NaN": (lambda: np.where(ABSENT, np.nan, CLASSES), "some"),
    "minus one": (lambda: np.where(ABSENT, -1, CLASSES), "some"),
    "masked": (lambda: np.ma.array(CLASSES, mask=ABSENT), "some"),
    "tensor": (lambda: torch.from_numpy(CLASSES.copy()), "all"),
    "tensor float": (lambda: torch.from_numpy(CLASSES).float(), "all"),
    "tensor bool": (lambda: torch.from_numpy(CLASSES % 2 == 1), "two"),
    "list of tensors": (lambda: list(torch.from_numpy(CLASSES.copy())), "all"),
}  # fmt: skip
"""How to make them, and whose class is known: of "all" (one of four, or of "two"), of "some", of "none"."""
REFUSED_LABELS = {
    "mixed": (lambda: [1, "a"] * 32, "cannot be classes together"),
    "words and bytes": (lambda: ["a", b"a"] * 32, "cannot be classes together"),
    "bytes that are no text": (lambda: [b"\xff", b"a"] * 32, "not UTF-8"),
    "dates": (lambda: np.array(["2020-01-01"] * 64, "M8[D]"), "not classes"),
    "decimals": (lambda: CLASSES + 0.5, "decimals"),
    "infinite": (lambda: np.where(ABSENT, np.inf, CLASSES), "decimals|infinite"),
    "two columns": (lambda: np.stack([CLASSES, CLASSES], 1), "one label for each row"),
    "lists": (lambda: [[0], [1, 2]] * 32, "y"),
    "too few": (lambda: CLASSES[:9], "one label for each row"),
    "one word": (lambda: "a", "one value"),
    "one class": (lambda: np.zeros(64), "1 class"),
    "all missing": (lambda: [None] * 64, "0 classes"),
    "complex": (lambda: CLASSES * 1j, "not classes"),
}

CORE_CONTAINERS = ("list", "C order", "F order", "read-only", "strided", "float16", "float64", "int64",
                   "memory-mapped", "tensor", "tensor with gradient", "DataFrame")  # fmt: skip
CORE_LABELS = ("int8", "uint16", "int64", "float32", "bool", "words", "bytes", "objects", "categorical",
               "nullable with NA", "Arrow", "no labels", "NaN", "tensor")  # fmt: skip
"""Twelve and fourteen that are tried with each other; the others once, and all with all in `make soak`."""

MEANING = {
    "all": CLASSES, "two": CLASSES % 2, "some": np.where(ABSENT, -1, CLASSES), "none": None,
}  # fmt: skip


def estimator(steps):
    """An adapter that is fitted in a few milliseconds."""
    return Adapter(dim=3, steps=steps, batch_size=32, validation_fraction=0.0)
