"""Fit on pairs: the upper half of a digit is the query, the whole digit its document."""

import numpy as np
from sklearn.datasets import load_digits

from querykey import Adapter

whole, _ = load_digits(return_X_y=True)
upper = whole * (np.arange(64) < 32)
train, test = slice(0, 1200), slice(1200, None)


def found_first(queries: np.ndarray, documents: np.ndarray) -> float:
    """The fraction of queries whose own document is the nearest."""
    best = (queries @ documents.T).argmax(axis=1)
    return float((best == np.arange(len(queries))).mean())


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


adapter = Adapter(dim=64, steps=100).fit_pairs(upper[train], whole[train])
before = found_first(unit(upper[test]), unit(whole[test]))
after = found_first(adapter.transform(upper[test]), adapter.transform(whole[test]))
print(f"own digit found first: {before:.3f} frozen, {after:.3f} adapted")
