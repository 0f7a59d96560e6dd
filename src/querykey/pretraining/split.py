"""Which images are trained on, and which are looked at."""

from dataclasses import dataclass

import numpy as np
import torch

from querykey.lookup.lookup import IGNORE_LABEL
from querykey.types import Ids, Labels, Numbers, QueryIds

__all__ = ["DataSplit", "part"]

BANK = 5000
"""Training images that vote in the online kNN, at the most."""


@dataclass(frozen=True, eq=False)
class DataSplit:
    """Which images are trained on, and which are looked at.

    Args:
        train: Those that training sees.
        sample: Those that the monitors look at: some of `train`, then the ones held out.
        asking: Places in `sample` of those held out.
        labels: Class of each of `sample`; None where there are no labels.
        train_labels: Class of each of `train`, likewise.
    """

    train: Numbers
    sample: Ids
    asking: QueryIds
    labels: Labels | None
    train_labels: Numbers | None = None


def part(ids: Ids, labels: Labels | None, *, held_out: int, seed: int) -> DataSplit:
    """Choose what is held out of training for the online kNN; nothing where there are no labels.

    Args:
        ids: All images.
        labels: Class of each, -1 where unknown, or None.
        held_out: Labelled images to hold out, at the most a tenth of all.
        seed: Of the draw.

    Returns:
        The parts; the same for the same seed.
    """
    draw = np.random.default_rng([seed, len(ids)])
    order = torch.from_numpy(draw.permutation(len(ids)))
    if labels is None or not bool((labels != IGNORE_LABEL).any()):
        return DataSplit(ids, ids[order[:BANK]], torch.arange(0), None)
    known = order[labels[order] != IGNORE_LABEL]
    held = known[: min(held_out, len(ids) // 10)]
    others = order[~torch.isin(order, held)]
    bank = others[labels[others] != IGNORE_LABEL][:BANK]
    sample = torch.cat([bank, held])
    trained = others.sort().values
    return DataSplit(
        ids[trained], ids[sample], torch.arange(len(bank), len(sample)), labels[sample], labels[trained]
    )
