"""Statistics and problems of features, the memory of a fit, and the command to use: for `querykey doctor`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Literal

import torch

from querykey.features.features import Features
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.losses.streaming import loss_bytes

__all__ = ["Diagnosis", "advise", "diagnose", "memory_of_fit", "warnings_of"]

BLOCK = 8192
FEW = 200
FEW_A_CLASS = 10
MANY_DUPLICATES = 0.05
CAPACITY = 50_000
USUAL_DIM = 64


@dataclass(frozen=True)
class Diagnosis:
    """Statistics of features.

    Args:
        rows: Number of rows.
        dim: Their width.
        broken: Rows with NaN or infinity.
        empty: Rows of zeros.
        duplicates: Rows that are identical to an earlier one.
        labelled: Rows with a label.
        classes: Classes with at least one row.
        single: Classes with one row.
        queries: Rows of the query side; 0 without pairs.
        pairs: (query, item) pairs.
    """

    rows: int
    dim: int
    broken: int
    empty: int
    duplicates: int
    labelled: int
    classes: int
    single: int
    queries: int
    pairs: int

    @property
    def task(self) -> Literal["pairs", "labels", "unlabelled"]:
        """The available supervision: "pairs", "labels" or "unlabelled"."""
        if self.pairs:
            return "pairs"
        return "labels" if self.classes > 1 and self.single < self.classes else "unlabelled"


def diagnose(features: Features) -> Diagnosis:
    """Compute the statistics in one pass.

    Args:
        features: As read; memory-mapped rows are read block by block.

    Returns:
        The statistics.
    """
    broken = empty = 0
    hashes: set[int] = set()
    for start in range(0, len(features), BLOCK):
        block = features.vectors[start : start + BLOCK]
        broken += int((~block.isfinite().all(dim=1)).sum())
        empty += int((block == 0).all(dim=1).sum())
        hashes.update(hash(row.tobytes()) for row in block.numpy())
    counts = torch.empty(0, dtype=torch.int64)
    if features.labels is not None:
        counts = torch.unique(features.labels[features.labels != IGNORE_LABEL], return_counts=True)[1]
    return Diagnosis(
        rows=len(features),
        dim=features.dim,
        broken=broken,
        empty=empty,
        duplicates=len(features) - len(hashes),
        labelled=int(counts.sum()),
        classes=len(counts),
        single=int((counts == 1).sum()),
        queries=0 if features.queries is None else len(features.queries),
        pairs=0 if features.pairs is None else len(features.pairs),
    )


def warnings_of(found: Diagnosis) -> Iterator[str]:
    """Problems of the features.

    Args:
        found: The result of `diagnose`.

    Yields:
        One sentence for each problem.
    """
    if found.broken:
        yield f"{found.broken} rows contain NaN or infinity, which adapt does not accept; remove them"
    if found.empty:
        yield f"{found.empty} rows are all zeros, which adapt does not accept; remove them"
    if found.duplicates > MANY_DUPLICATES * found.rows:
        ratio = found.duplicates / found.rows
        yield f"{ratio:.0%} of the rows repeat an earlier one: duplicates become false negatives"
    yield from _on_labels(found)
    if found.rows < FEW:
        yield f"{found.rows} rows are few: expect little gain, and compare with PCA (querykey evaluate)"
    if found.rows < found.dim and found.task == "unlabelled":
        yield f"fewer rows than dimensions ({found.rows} < {found.dim}): the frozen rows may be hard to beat"


def _on_labels(found: Diagnosis) -> Iterator[str]:
    if found.classes == 1:
        yield "all labels are of one class, so there are no negatives; adapt without --labels"
    elif found.classes and found.single == found.classes:
        yield "every class has one row: adapt whitens all rows softly, without validation"
    elif found.single:
        yield f"{found.single} of {found.classes} classes have one row: they are used only as negatives"
    if found.classes > 1 and 1 < found.labelled / found.classes <= FEW_A_CLASS:
        yield (
            f"{found.labelled / found.classes:.0f} labelled rows per class are few: --classes known mostly "
            'gains over the frozen rows, and with few held-out queries the verdict is often "no evidence"'
        )
    if 0 < found.labelled < found.rows:
        yield f"{found.rows - found.labelled} rows have no label: they are used only by PCA and whitening"


def memory_of_fit(found: Diagnosis, *, dim: int) -> int:
    """An estimate of the memory of a fit with the defaults.

    Args:
        found: The result of `diagnose`.
        dim: Width of the adapted rows.

    Returns:
        Bytes, beside the features.
    """
    batch, memory = min(128, found.rows), min(CAPACITY, found.rows)
    projected = memory if found.task == "unlabelled" else min(memory, batch * 37)
    size = 4 * (2 * memory * found.dim + 3 * projected * dim + 8 * found.dim * dim)
    return size + loss_bytes(batch, memory, dim, "auto")


def advise(found: Diagnosis, path: str | Path, *, label_column: str) -> tuple[str, str]:
    """The command to use, and the reason.

    Args:
        found: The result of `diagnose`.
        path: The features.
        label_column: Name of the labels.

    Returns:
        (command, reason).
    """
    width = "" if found.dim <= USUAL_DIM else f" --dim {USUAL_DIM}"
    command = f"querykey adapt {quote(str(path))} --out RUN{width}"
    match found.task:
        case "pairs":
            return f"{command} --pairs", (
                f"{found.pairs:,} pairs assign documents to queries. If the documents in an index must "
                "not change, use --side query in place of --dim"
            )
        case "labels":
            return f"{command} --labels {quote(label_column)}", (
                f"{found.classes:,} classes of {found.labelled / found.classes:.1f} rows on average are "
                "labels to learn from. Without --labels the fit preserves the frozen neighbourhoods instead"
            )
        case _:
            return command, "without labels or pairs it compresses, and preserves the frozen neighbourhoods"
