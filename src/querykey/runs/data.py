"""Locations of data: a spec with its columns and split, opened as features or as a source."""

from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from querykey.data.items import Source
from querykey.data.readers.open import read_source
from querykey.errors import ConfigError, DataError, Notify, SourceError
from querykey.features.features import Features, features_of_source, read_features
from querykey.features.store import is_store
from querykey.io.paths import expand_user

__all__ = ["STORE_LABELS", "DataAt", "Opened", "evaluation_split", "open_data", "open_features"]

STORE_LABELS = "label"
"""Name of the labels in a feature store, independent of the column that they came from."""


@dataclass(frozen=True)
class DataAt:
    """The location of data.

    Args:
        spec: A path or name, see `querykey help sources`.
        column: The column with the items.
        label_column: The column with the classes.
        pair_column: The column with the query of each row.
        split: The split to read.
        delimiter: Column separator of a csv or tsv file; None: detected from the file.
    """

    spec: str
    column: str | None = None
    label_column: str | None = None
    pair_column: str | None = None
    split: str | None = None
    delimiter: str | None = None

    def source(self) -> Source:
        """Open the data as a source; items are read later.

        Raises:
            MissingPathError: If there is no such path.
            SourceError: If it cannot be read.
        """
        options = asdict(self)
        return read_source(options.pop("spec"), **options)

    def as_dict(self) -> dict[str, str | None]:
        """Plain values for JSON, with an absolute path."""
        path = expand_user(self.spec)
        return asdict(self) | {"spec": str(path.resolve()) if path.exists() else self.spec}


class Opened(NamedTuple):
    """Features, and the SHA-256 of everything that determines them."""

    features: Features
    fingerprint: str


def open_data(at: DataAt, *, verify: bool = False) -> Opened | Source:
    """Open data: features, or images and texts that are not embedded yet.

    Args:
        at: The location.
        verify: Whether to check a store against its checksums.

    Returns:
        Features with their fingerprint for a store or vectors, a `Source` for images or texts.

    Raises:
        MissingPathError: If there is no such path.
        SourceError: If it cannot be read.
        StoreError: If a store is damaged or its bytes were changed.
        ConfigError: If a column is given for a store, which has none.
    """
    path = expand_user(at.spec)
    if is_store(path):
        _check_store_options(at)
        features = read_features(path, verify=verify)
        return Opened(features, str(features.meta.get("key") or features.meta["sha256"]))
    source = at.source()
    if source.kind == "vector":
        return Opened(features_of_source(source), source.fingerprint)
    return source


def open_features(at: DataAt, *, verify: bool = False) -> Opened:
    """Open features; for images and texts the error names the command that embeds them.

    Args:
        at: The location.
        verify: Whether to check a store against its checksums.

    Returns:
        Features with their fingerprint.

    Raises:
        SourceError: For images or texts.
        DataError: If a label column is given and a store has no labels.
    """
    opened = open_data(at, verify=verify)
    if isinstance(opened, Source):
        opened = Opened(features_of_source(opened), opened.fingerprint)
    if at.label_column is not None and opened.features.labels is None:
        raise DataError(
            f"{at.spec} has no labels; make the features again with querykey embed and a label_column"
        )
    return opened


def evaluation_split(on: DataAt, fitted_on: str, notify: Notify) -> DataAt:
    """The test split of the source that a run was fitted on, if no split is given.

    Args:
        on: The data to evaluate on.
        fitted_on: The fingerprint of the source that the run was fitted on.
        notify: Called with a message that names the split.

    Returns:
        The split "test", or else "validation"; `on` unchanged if it is another source, has no such split,
        or names one.
    """
    if on.split is not None or is_store(expand_user(on.spec)):
        return on
    for split in ("test", "validation"):
        chosen = replace(on, split=split)
        try:
            chosen.source()
        except SourceError:
            continue
        if on.source().fingerprint != fitted_on:
            return on
        notify(f"the run was fitted on {on.spec}; it is evaluated on the {split} split")
        return chosen
    return on


def _check_store_options(at: DataAt) -> None:
    for option in ("column", "pair_column", "split", "delimiter"):
        value = getattr(at, option)
        if value is not None:
            raise ConfigError(
                f"{at.spec} is a feature store: {option} {value!r} is an option of querykey embed, "
                "which made it; leave it out"
            )
    if at.label_column not in (None, STORE_LABELS):
        raise ConfigError(
            f"{at.spec}: no label column {at.label_column!r}; in features made by querykey embed it is "
            f"named {STORE_LABELS!r}"
        )
