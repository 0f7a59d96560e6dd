"""The images of a study: some to train on, others to ask for, the same in every process."""

import hashlib
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from querykey.data.items import Chosen, Source
from querykey.data.pixels.pixels import read_pixels
from querykey.errors import DataError, SourceError
from querykey.runs.data import DataAt
from querykey.runs.evaluate_encoder import label_pixels
from querykey.runs.fine_tune import Labelled

__all__ = ["HELD_OUT", "SIDE", "StudyImages", "spread"]

SIDE = 64
"""Images are held at twice that, at the most."""
HELD_OUT = 5
"""One of so many images is asked for, where no others are named."""


@dataclass(frozen=True, kw_only=True)
class StudyImages:
    """Where the images of a study are, and which of them it takes.

    Args:
        train: Labelled images. The labels score what was learned; only `xbm` learns from them.
        test: Others; None: a fifth of those, drawn without regard to their classes, is left out of the
            training and asked for.
        most: Images of each part, at the most: of a trial run. None: all.
    """

    train: DataAt
    test: DataAt | None = None
    most: int | None = None

    @classmethod
    def of_splits(cls, spec: str, train: str, test: str) -> "StudyImages":
        """Two splits of one source.

        Args:
            spec: The source.
            train: Split to train on.
            test: Split to ask for.
        """
        return cls(train=DataAt(spec, split=train), test=DataAt(spec, split=test))

    def training(self) -> Source:
        """The images that are trained on."""
        return _opened(self)[0]

    def describe(self) -> dict[str, Any]:
        """What they are: name, how they were named, how many, of which kind, a fingerprint of all of it.

        Raises:
            DataError: If one of the parts has no labels.
        """
        train, test = _opened(self)
        for source in (train, test):
            if source.labels is None:
                raise DataError(
                    f"{source.name} has no labels, so nothing can be scored; name them with --label-column"
                )
        first = read_pixels(_taken(train, np.zeros(1, np.int64)), size=SIDE, workers=0)
        whole = f"{train.fingerprint} {test.fingerprint}"
        return {
            "name": Path(train.name).name, "train": asdict(self.train),
            "test": None if self.test is None else asdict(self.test),
            "trained_on": len(train), "asked": len(test), "channels": first.channels, "side": first.side,
            "fingerprint": hashlib.sha256(whole.encode()).hexdigest(),
        }  # fmt: skip

    def labelled(self, *, size: int) -> tuple[Labelled, Labelled]:
        """Both parts, decoded, with labels that mean the same in both.

        Args:
            size: Pixels of a side that the encoder takes.

        Returns:
            (to train on, to ask for).

        Raises:
            DataError: If one of them has no labels.
        """
        return label_pixels(*_opened(self), size=size, notify=lambda _: None)


def spread(count: int, most: int) -> NDArray[np.int64]:
    """Some of many rows, evenly spread: rows are often sorted by class.

    Args:
        count: Rows there are.
        most: How many are wanted at the most.

    Returns:
        Their numbers, ascending.

    Example:
        >>> spread(10, 4).tolist(), spread(3, 4).tolist()
        ([0, 2, 5, 7], [0, 1, 2])
    """
    wanted = min(count, most)
    return np.arange(wanted, dtype=np.int64) * count // max(1, wanted)


@lru_cache(maxsize=2)
def _opened(images: StudyImages) -> tuple[Source, Source]:
    """(to train on, to ask for); a fingerprint of all bytes is taken once a process, not once a cell."""
    train = _read(images.train)
    if images.test is not None:
        test = _read(images.test)
    else:
        if len(train) < 2 * HELD_OUT:
            raise DataError(
                f"{train.name}: {len(train)} images are too few for a study; {2 * HELD_OUT} are the least"
            )
        order = np.random.default_rng(0).permutation(len(train))
        count = len(train) // HELD_OUT
        train, test = _taken(train, order[count:]), _taken(train, order[:count])
    if images.most is not None:
        train, test = (_taken(one, spread(len(one), images.most)) for one in (train, test))
    return train, test


def _read(at: DataAt) -> Source:
    source = at.source()
    if source.kind != "image":
        raise SourceError(f"{at.spec} holds {source.kind}s; this study pretrains encoders and needs images")
    return source


def _taken(source: Source, rows: NDArray[np.int64]) -> Source:
    """Some rows of a source of images."""
    assert not isinstance(source.items, np.ndarray)
    what = hashlib.sha256(rows.tobytes()).hexdigest()
    return replace(
        source,
        items=Chosen(source.items, rows),
        ids=Chosen(source.ids, rows),
        labels=None if source.labels is None else source.labels[rows],
        fingerprint=hashlib.sha256(f"{source.fingerprint} {what}".encode()).hexdigest(),
    )
