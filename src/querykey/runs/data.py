"""Data as a command names them: a spec with its columns and split, opened as features or as a source."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from querykey.data.items import Source
from querykey.data.readers.open import read_source
from querykey.errors import ConfigError, DataError, Notify, SourceError
from querykey.features.features import Features, features_of_source, read_features
from querykey.features.store import is_store

__all__ = ["STORE_LABELS", "DataAt", "Opened", "open_data", "open_features", "unseen_part"]

STORE_LABELS = "label"
"""What the labels of a feature store are called, whatever the column was called that they came from."""


@dataclass(frozen=True)
class DataAt:
    """Where data are.

    Args:
        spec: A path or name, as `querykey help sources` says.
        column: The column that holds the items.
        label_column: The column that holds the classes.
        pair_column: The column that holds the query of each row.
        split: The part to read.
        delimiter: Between the columns of a csv or tsv file; None: found from the file.
    """

    spec: str
    column: str | None = None
    label_column: str | None = None
    pair_column: str | None = None
    split: str | None = None
    delimiter: str | None = None

    def source(self) -> Source:
        """Open what is there, unread.

        Raises:
            MissingPathError: If there is nothing.
            SourceError: If it cannot be read.
        """
        return read_source(
            self.spec, column=self.column, label_column=self.label_column, pair_column=self.pair_column,
            split=self.split, delimiter=self.delimiter,
        )  # fmt: skip

    def as_dict(self) -> dict[str, str | None]:
        """For JSON, with a path that holds from other folders too."""
        path = Path(self.spec).expanduser()
        return asdict(self) | {"spec": str(path.resolve()) if path.exists() else self.spec}


class Opened(NamedTuple):
    """Features, and the sha256 of all they depend on."""

    features: Features
    fingerprint: str


def open_data(at: DataAt, *, verify: bool = False) -> Opened | Source:
    """Open what is there: features, or images and texts that have none yet.

    Args:
        at: Where.
        verify: Whether every byte of a store is compared with its checksum.

    Returns:
        Features with their fingerprint where vectors are there, a `Source` of images or texts otherwise.

    Raises:
        MissingPathError: If there is nothing.
        SourceError: If it cannot be read.
        StoreError: If a store is damaged or its bytes were changed.
        ConfigError: If columns are named of a store, which has none.
    """
    path = Path(at.spec).expanduser()
    if is_store(path):
        _check_store_options(at)
        features = read_features(path, verify=verify)
        return Opened(features, str(features.meta.get("key") or features.meta["sha256"]))
    source = at.source()
    if source.kind == "vector":
        return Opened(features_of_source(source), source.fingerprint)
    return source


def open_features(at: DataAt, *, verify: bool = False) -> Opened:
    """Open features; images and texts are refused, with the command that makes features of them.

    Args:
        at: Where.
        verify: Whether every byte of a store is compared with its checksum.

    Returns:
        Features with their fingerprint.

    Raises:
        SourceError: If there are images or texts.
        DataError: If a label column is named and a store has no labels.
    """
    opened = open_data(at, verify=verify)
    if isinstance(opened, Source):
        opened = Opened(features_of_source(opened), opened.fingerprint)
    if at.label_column is not None and opened.features.labels is None:
        raise DataError(
            f"{at.spec} has no labels; make the features again with querykey embed --label-column COLUMN"
        )
    return opened


def unseen_part(on: DataAt, fitted_on: str, notify: Notify) -> DataAt:
    """The test part of a source, where a run was fitted on its training part and no part is named.

    Args:
        on: What is to be measured on.
        fitted_on: The fingerprint of the source that the run was fitted on.
        notify: Told which part is taken.

    Returns:
        The part that is called test, else validation; `on` itself where it is another source, has no such
        part, or its part was named.
    """
    if on.split is not None or is_store(Path(on.spec).expanduser()):
        return on
    for split in ("test", "validation"):
        part = replace(on, split=split)
        try:
            part.source()
        except SourceError:
            continue
        if on.source().fingerprint != fitted_on:
            return on
        notify(f"the run was fitted on {on.spec}; it is measured on its {split} part, --split {split}")
        return part
    return on


def _check_store_options(at: DataAt) -> None:
    given = {
        "column": at.column, "pair-column": at.pair_column, "split": at.split, "delimiter": at.delimiter,
    }  # fmt: skip
    for option, value in given.items():
        if value is not None:
            raise ConfigError(
                f"{at.spec} holds features already: --{option} {value} belongs to querykey embed, "
                "which made them; leave it out"
            )
    if at.label_column not in (None, STORE_LABELS):
        raise ConfigError(
            f"{at.spec}: no label column {at.label_column!r}; the labels of features that "
            f"querykey embed made are called {STORE_LABELS!r}"
        )
