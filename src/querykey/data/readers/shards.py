"""Webdataset: samples in .tar files, read in place and never unpacked to disk."""

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from querykey.data.items import Items, Kind, Source, fingerprint_files
from querykey.data.labels import NO_NAMES, number_labels
from querykey.data.readers.grammar import Wanted, choose_split, nearest_words
from querykey.data.readers.images import EncodedImages, is_image
from querykey.errors import DamagedItemError, DataError, SourceError

__all__ = ["is_shard", "read_shards"]

_CLASSES = "cls"


@dataclass(frozen=True, slots=True)
class _Member:
    """Position of the bytes of a file in a shard. Its name is a key, never a path on disk."""

    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.shard.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.size)


_Samples = Mapping[str, Mapping[str, _Member]]


class _Bytes(Items):
    def __init__(self, members: Sequence[_Member]) -> None:
        self._members = members

    def __len__(self) -> int:
        return len(self._members)

    def _read(self, row: int) -> bytes:
        return self._members[row].read()


class _Texts(Items):
    def __init__(self, members: Sequence[_Member], ids: Sequence[str]) -> None:
        self._members = members
        self._ids = ids

    def __len__(self) -> int:
        return len(self._members)

    def _read(self, row: int) -> str:
        try:
            return self._members[row].read().decode()
        except UnicodeDecodeError as error:
            raise DamagedItemError(f"{self._ids[row]} is not UTF-8 text: {error}") from error


def is_shard(name: str) -> bool:
    """Whether the name of a file is that of a shard."""
    return name.lower().endswith(".tar") and not name.startswith(".")


def read_shards(
    paths: Sequence[Path], splits: Sequence[str | None], *, name: str, what: str, wanted: Wanted
) -> Source:
    """Read webdataset shards: files that share a name up to the first dot are one sample.

    Only the headers are read here, one pass over each shard; an item is read on access.

    Args:
        paths: The .tar files, not compressed.
        splits: The split of each; None if its name contains none.
        name: How the user named them.
        what: Their name in messages.
        wanted: `column`: the extension of the items (jpg, png, txt); needed if a sample has several
            possible ones. `label_column`: the ending that holds the class (cls if there), or
            a field of the sample's .json.

    Raises:
        SourceError: If a shard is damaged, or the extension of the items is ambiguous.
        DataError: If a sample has no item, or two have the same name.
    """
    wanted.allow("column", "label_column", "split", what=f"{what}, a webdataset,")
    split = choose_split(wanted.split, splits, what)
    used = [path for path, of in zip(paths, splits, strict=True) if of == split]
    samples = _samples(used)
    endings = sorted({ending for sample in samples.values() for ending in sample})
    if not endings:
        raise SourceError(f"{what} holds no samples; a webdataset is .tar files of files such as 0001.jpg")
    column = _choose_ending(endings, samples, wanted.column, what)
    kind: Kind = "image" if is_image(f"x.{column[0]}") else "text"
    members = []
    for key, sample in samples.items():
        if not any(ending in sample for ending in column):
            raise DataError(f"{what}: the sample {key} has no {' or '.join(column)}; each sample needs one")
        members.append(next(sample[ending] for ending in column if ending in sample))
    ids = list(samples)
    label_column = wanted.label_column or (_CLASSES if _CLASSES in endings else None)
    labels, names = None, NO_NAMES
    if label_column is not None:
        labels, names = number_labels(
            list(_classes(samples, label_column, endings, what)), what=f"{what}: {label_column}"
        )
    items = EncodedImages(_Bytes(members), ids, Path()) if kind == "image" else _Texts(members, ids)
    digest = fingerprint_files(used, "tar", *column, label_column)
    return Source(name, kind, items, ids, labels, names, digest)


def _samples(paths: Sequence[Path]) -> _Samples:
    samples: dict[str, dict[str, _Member]] = {}
    for path in paths:
        of_shard: set[str] = set()
        for key, ending, member in _members(path):
            if key in samples and key not in of_shard:
                raise DataError(f"{path} has a sample {key} that another shard has too; names must differ")
            of_shard.add(key)
            if ending in samples.setdefault(key, {}):
                raise DataError(f"{path} has {key}.{ending} twice; names must differ")
            samples[key][ending] = member
    return samples


def _members(path: Path) -> Iterator[tuple[str, str, _Member]]:
    try:
        with tarfile.open(path, "r:") as shard:
            for entry in shard:
                folder, _, base = entry.name.rpartition("/")
                stem, _, ending = base.partition(".")
                # links, devices and sparse files have no contents
                if entry.isreg() and not entry.issparse() and stem and ending:
                    key = f"{folder}/{stem}" if folder else stem
                    yield key, ending.lower(), _Member(path, entry.offset_data, entry.size)
    except (tarfile.TarError, OSError) as error:
        raise SourceError(
            f"{path} is not a complete .tar file ({error}); copy it again, or decompress it first"
        ) from error


def _choose_ending(
    endings: Sequence[str], samples: _Samples, wanted: str | None, what: str
) -> tuple[str, ...]:
    """The extensions of the items: several only if each sample has one of them."""
    if wanted is not None:
        ending = wanted.lower().lstrip(".")
        if ending in endings:
            return (ending,)
        raise SourceError(
            f"{what} has no files .{ending}{nearest_words(ending, endings)}; "
            f"its endings: {', '.join(endings)}"
        )
    images = tuple(ending for ending in endings if is_image(f"x.{ending}"))
    texts = ("txt",) if "txt" in endings else ()
    if images and not texts and all(len(sample.keys() & set(images)) <= 1 for sample in samples.values()):
        return images
    if texts and not images:
        return texts
    error = "several endings that can be the items" if images else "no images and no .txt"
    raise SourceError(f"{what} has {error}; give one as column; its endings: {', '.join(endings)}")


def _classes(samples: _Samples, column: str, endings: Sequence[str], what: str) -> Iterator[int | str | None]:
    if column not in endings and "json" not in endings:
        near = nearest_words(column, endings)
        raise SourceError(f"{what} has no files .{column}{near}; its endings: {', '.join(endings)}")
    values = [_class(sample, column, column in endings, f"{what}: {key}") for key, sample in samples.items()]
    if all(value is None for value in values):
        raise SourceError(f"{what}: no .json has a field {column!r}; its endings: {', '.join(endings)}")
    numbers = all(value is None or _is_plain_number(str(value)) for value in values)
    for value in values:
        yield None if value is None else int(value) if numbers else str(value)


def _is_plain_number(text: str) -> bool:
    """Whether a class is an integer without leading zeros: 007 and 7 are two classes."""
    return text.removeprefix("-").isdecimal() and text == str(int(text))


def _class(sample: Mapping[str, _Member], column: str, is_ending: bool, what: str) -> Any:
    member = sample.get(column if is_ending else "json")
    if member is None:
        return None
    try:
        text = member.read().decode()
        value = text.strip() if is_ending else json.loads(text).get(column)
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{what}: its class cannot be read: {error}") from error
    return value if value != "" else None
