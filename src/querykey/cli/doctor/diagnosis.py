"""What features are like, what a fit on them costs, and what to type: for `querykey doctor`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import torch

from querykey.cli.doctor.machine import Machine
from querykey.features.features import Features
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.losses.streaming import loss_bytes

__all__ = ["Diagnosis", "advise", "cost_of_fit", "diagnose", "warnings_of"]

BLOCK = 8192
FEW = 200
FEW_A_CLASS = 10
MANY_DUPLICATES = 0.05
CAPACITY = 50_000
USUAL_DIM = 64


@dataclass(frozen=True)
class Diagnosis:
    """What features are like.

    Args:
        rows: How many.
        dim: How wide.
        broken: Rows with NaN or infinity.
        empty: Rows of zeros alone.
        duplicates: Rows that are byte by byte like an earlier one.
        labelled: Rows with a known class.
        classes: Classes that some row has.
        single: Classes of one row.
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
    def task(self) -> str:
        """What can be learned from: "pairs", "labels" or "unlabelled"."""
        if self.pairs:
            return "pairs"
        return "labels" if self.classes > 1 and self.single < self.classes else "unlabelled"


def diagnose(features: Features) -> Diagnosis:
    """Walk the features once.

    Args:
        features: As read; memory-mapped rows are read block by block.

    Returns:
        The counts.
    """
    broken = empty = 0
    seen: set[int] = set()
    for start in range(0, len(features), BLOCK):
        block = features.vectors[start : start + BLOCK]
        broken += int((~block.isfinite().all(dim=1)).sum())
        empty += int((block == 0).all(dim=1).sum())
        seen.update(hash(row.tobytes()) for row in block.numpy())
    counts = torch.empty(0, dtype=torch.int64)
    if features.labels is not None:
        counts = torch.unique(features.labels[features.labels != IGNORE_LABEL], return_counts=True)[1]
    return Diagnosis(
        rows=len(features),
        dim=features.dim,
        broken=broken,
        empty=empty,
        duplicates=len(features) - len(seen),
        labelled=int(counts.sum()),
        classes=len(counts),
        single=int((counts == 1).sum()),
        queries=0 if features.queries is None else len(features.queries),
        pairs=0 if features.pairs is None else len(features.pairs),
    )


def warnings_of(found: Diagnosis) -> Iterator[str]:
    """What will go wrong, or is not what it seems.

    Args:
        found: What `diagnose` gave.

    Yields:
        One sentence each.
    """
    if found.broken:
        yield f"{found.broken} rows hold NaN or infinity: adapt refuses them; take them out"
    if found.empty:
        yield f"{found.empty} rows are all zeros and have no direction: adapt refuses them; take them out"
    if found.duplicates > MANY_DUPLICATES * found.rows:
        share = found.duplicates / found.rows
        yield f"{share:.0%} of the rows repeat an earlier one: a copy that counts as a negative misleads"
    yield from _on_labels(found)
    if found.rows < FEW:
        yield f"{found.rows} rows are few: expect little, and compare with PCA (querykey evaluate)"
    if found.rows < found.dim and found.task == "unlabelled":
        yield f"fewer rows than dimensions ({found.rows} < {found.dim}): the frozen rows may be hard to beat"


def _on_labels(found: Diagnosis) -> Iterator[str]:
    if found.classes == 1:
        yield "all labels are of one class: nothing to tell apart; adapt without --labels"
    elif found.classes and found.single == found.classes:
        yield "every class has one row: adapt whitens all rows softly, and nothing can validate it"
    elif found.single:
        yield f"{found.single} of {found.classes} classes have one row: they serve as negatives alone"
    if found.classes > 1 and 1 < found.labelled / found.classes <= FEW_A_CLASS:
        yield (
            f"{found.labelled / found.classes:.0f} labelled rows a class are few: --classes known mostly "
            'gains over the frozen rows, and as few held-out queries often say "no evidence"'
        )
    if 0 < found.labelled < found.rows:
        yield f"{found.rows - found.labelled} rows have no label: they serve PCA and whitening alone"


def cost_of_fit(found: Diagnosis, machine: Machine, *, dim: int) -> tuple[int, float]:
    """How much memory and time a fit with the defaults takes, roughly.

    Args:
        found: What `diagnose` gave.
        machine: What `look_at_machine` gave.
        dim: Of the adapted rows.

    Returns:
        (bytes, seconds).
    """
    batch, memory = min(128, found.rows), min(CAPACITY, found.rows)
    projected = memory if found.task == "unlabelled" else min(memory, batch * 37)
    forward = 2 * projected * found.dim * dim + 2 * batch * memory * (found.dim + dim)
    most = 1200 if found.task == "unlabelled" else 1700  # a run, and the refit on all rows
    steps = min(most, 200 * max(1, found.rows // batch))
    once = 2 * memory * memory * found.dim + 4 * min(found.rows, CAPACITY) * found.dim**2
    # backward costs twice the forward; small products run at half the rate of the large one measured
    seconds = (3 * forward * steps + once) / (machine.rate / 2)
    size = 4 * (2 * memory * found.dim + 3 * projected * dim + 8 * found.dim * dim)
    return size + loss_bytes(batch, memory, dim, "auto"), seconds


def advise(found: Diagnosis, path: str | Path, *, label_column: str) -> tuple[str, str]:
    """The command to type, and why.

    Args:
        found: What `diagnose` gave.
        path: The features.
        label_column: What the labels are called there.

    Returns:
        (command, reason).
    """
    width = "" if found.dim <= USUAL_DIM else f" --dim {USUAL_DIM}"
    command = f"querykey adapt {quote(str(path))} --out RUN{width}"
    match found.task:
        case "pairs":
            return f"{command} --pairs", (
                f"{found.pairs:,} pairs say which items answer which queries. To leave the documents as "
                "they are in an index, use --side query in place of --dim"
            )
        case "labels":
            return f"{command} --labels {quote(label_column)}", (
                f"{found.classes:,} classes of {found.labelled / found.classes:.1f} rows on average say what "
                "belongs together. Without --labels the frozen neighbourhoods are kept instead"
            )
        case _:
            return command, "without labels or pairs it compresses, and keeps the frozen neighbourhoods"
