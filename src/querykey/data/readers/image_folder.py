"""Folders of image files: splits, classes, and what is left out."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from querykey.data.items import Fingerprint, Source
from querykey.data.labels import NO_NAMES, number_labels
from querykey.data.readers.grammar import Wanted, choose_split, split_of
from querykey.data.readers.images import IMAGE_SUFFIXES, PHOTOGRAPHS, EncodedImages, is_image
from querykey.errors import SourceError

__all__ = ["count_images", "listed_names", "read_image_folder"]

_SHOWN = 3
_SPLIT_WORDS = ("train", "training", "test", "testing", "validation", "valid", "val", "dev")
_PART = re.compile(r".*\d")
"""A name such as train.X1 or train_2: a split in several folders."""


def read_image_folder(folder: Path, *, name: str, wanted: Wanted) -> Source:
    """Read a folder of image files.

    Each top-level folder is a class, which contains all images below it; an image outside of these folders
    is unlabelled. A folder without sub-folders has no labels. If all top-level folders are named train,
    test, validation or similar, they are splits; numbered folders of a split (train.X1, train.X2) are read
    together. Files that are not images are listed in `left_out` and `notes`, except hidden ones.

    Args:
        folder: The folder.
        name: How the user named it.
        wanted: The split; by default train, if there are several.

    Returns:
        A source of kind "image"; ids are paths inside the folder, with /, sorted.

    Raises:
        SourceError: If there is no image below the folder, or the split does not exist.
    """
    wanted.allow("split", what=f"{folder}, a folder of images,")
    roots, others, notes = _roots(folder, wanted.split)
    found: list[_File] = []
    for part in roots:
        root = folder / part if part else folder
        files = _files_below(root)
        prefix = f"{part}/" if len(roots) > 1 else ""
        found += [_File(root, path, prefix + path) for path in files if is_image(path.rpartition("/")[2])]
        others += [prefix + path for path in files if not is_image(path.rpartition("/")[2])]
    found.sort(key=lambda file: file.id.split("/"))
    if not found:
        raise SourceError(
            f"{folder / roots[0] if roots[0] else folder} holds no images; images end in "
            f"{', '.join(IMAGE_SUFFIXES[:8])}, ..., at the top or in a folder for each class"
            + (f"; it holds {_described(others)}" if others else "")
        )
    classes = [_printable(file.path.split("/")[0]) if "/" in file.path else None for file in found]
    labels, names = None, NO_NAMES
    if any(each is not None for each in classes):
        labels, names = number_labels(classes, what=str(folder))
    files_out = [path for path in others if not path.endswith("/")]
    if files_out:
        lost = sorted({_printable(_class_of(path, roots)) for path in files_out} - {*names, ""})
        gone = f"; no image is left of the classes {listed_names(lost)}" if lost and names else ""
        notes.append(f"{folder}: left out {_described(files_out)}{gone}")
    ids = [_printable(file.id) for file in found]
    digest = Fingerprint().text("images")
    for file in found:
        digest.text(file.id).file(file.root / file.path)
    items = EncodedImages([file.root / file.path for file in found], ids, Path())
    source = Source(name, "image", items, ids, labels, names, digest.hex())
    return replace(source, left_out=[_printable(path) for path in others], notes=tuple(notes))


def count_images(folder: Path) -> int:
    """The number of images below a folder."""
    return sum(is_image(path.rpartition("/")[2]) for path in _files_below(folder))


def listed_names(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


@dataclass(frozen=True)
class _File:
    root: Path
    path: str
    id: str


def _roots(folder: Path, split: str | None) -> tuple[list[str], list[str], list[str]]:
    """(the folders of the split, "" for the folder itself; what is left out; notes)."""
    top = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    splits = {part: split_of(part) for part in top}
    loose = [path for path in folder.iterdir() if not path.is_dir() and _is_listed(path.name)]
    if not top or not all(splits.values()) or any(is_image(path.name) for path in loose):
        choose_split(split, [None], str(folder))
        return [""], [], []
    chosen = choose_split(split, list(splits.values()), str(folder))
    parts = [part for part in top if splits[part] == chosen]
    whole = [part for part in parts if part.lower() in _SPLIT_WORDS]
    beside = sorted(path.name for path in loose)
    if whole and len(whole) < len(parts):
        rest = [f"{part}/" for part in parts if part not in whole]
        said = (
            f"{folder}: the split {chosen} is read from {listed_names(whole)}; left out {listed_names(rest)}"
        )
        return whole, [*beside, *rest], [said]
    if len(parts) > 1 and not whole and not all(_PART.fullmatch(part) for part in parts):
        raise SourceError(
            f"{folder} has several folders for the split {chosen}: {listed_names(parts)}; name one of them "
            "as the source, or number them if they are parts of one"
        )
    together = [f"{folder}: the split {chosen} is read from {len(parts)} folders: {listed_names(parts)}"]
    return parts, beside, together if len(parts) > 1 else []


def _class_of(path: str, roots: Sequence[str]) -> str:
    parts = path.split("/")[1:] if len(roots) > 1 else path.split("/")
    return parts[0] if len(parts) > 1 else ""


def _described(others: Sequence[str]) -> str:
    """Files that are not images: the number of each extension, and the first."""
    endings = Counter(os.path.splitext(path)[1].lower() or "no ending" for path in others)  # noqa: PTH122
    counted = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(_SHOWN))
    more = ", ..." if len(endings) > _SHOWN else ""
    plural = "file that is not an image" if len(others) == 1 else "files that are not images"
    hint = ""
    if any(ending in PHOTOGRAPHS for ending in endings):
        hint = ", of formats that Pillow cannot read here"
        if any(ending in (".heic", ".heif") for ending in endings):
            hint += ": install pillow-heif for .heic"
    return f"{len(others):,} {plural} ({counted}{more}; first: {_printable(others[0])}){hint}"


def _files_below(root: Path) -> list[str]:
    """Sorted paths below the root; links are followed once, and hidden files are included only if images."""
    return sorted(_walk(root), key=lambda path: path.split("/"))


def _walk(root: Path) -> Iterator[str]:
    visited = {os.path.realpath(root)}
    for where, folders, files in os.walk(root, followlinks=True, onerror=_not_readable):
        kept = []
        for part in sorted(folders):
            real = os.path.realpath(os.path.join(where, part))  # noqa: PTH118
            if not part.startswith(".") and real not in visited:
                visited.add(real)
                kept.append(part)
        folders[:] = kept
        below = Path(where).relative_to(root).as_posix()
        for file in files:
            if _is_listed(file):
                yield file if below == "." else f"{below}/{file}"


def _is_listed(file: str) -> bool:
    """Whether a file is read or counted as left out: hidden ones only if they are images."""
    # macOS stores ._x.jpg beside x.jpg
    return not file.startswith(".") or (is_image(file[1:]) and not file.startswith("._"))


def _not_readable(error: OSError) -> None:
    raise SourceError(f"{error.filename} cannot be listed ({error.strerror}); allow reading it") from error


def _printable(path: str) -> str:
    """The path as valid UTF-8: other bytes become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
