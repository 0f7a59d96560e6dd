"""The names of sources, models and features, and suggestions for misspelled names."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from querykey.errors import SourceError

__all__ = [
    "IDX_IMAGES",
    "SCHEMES",
    "SOURCES_HELP",
    "Wanted",
    "choose_split",
    "is_beir",
    "is_idx_images",
    "nearest_words",
    "scheme_of",
    "split_of",
]

SCHEMES = ("hf", "torchvision", "sklearn")
"""Schemes of a source, before the colon; anything else is a path."""

MODEL_SCHEMES = ("timm", "st")

IDX_IMAGES = re.compile(r"(?P<stem>.*?)-?images[-.]idx3-ubyte(\.gz)?", re.IGNORECASE)

SOURCES_HELP = """\
SOURCE: what you have. A path, or a name after a scheme.

  photos/            images; sub-folders are classes, a flat folder has none
  mnist/             IDX files of the MNIST family; .gz as well; --split test
  train.parquet      a table: .parquet, .csv, .tsv, .jsonl (also .gz, .bz2,
                     .zst), or a folder of them;
                     columns of images, of text, or of vectors (lists)
  scifact/           BEIR: corpus.jsonl, queries.jsonl, qrels/*.tsv
  shards/            webdataset: .tar files, or a folder of them
  vectors.npy        vectors: .npy, .npz, .safetensors, .parquet
  hf:NAME[:CONFIG]   a data set of the Hugging Face hub   hf:ylecun/mnist
  torchvision:NAME   one that is in $TORCHVISION_DATA or  torchvision:CIFAR10
                     ~/.cache/torchvision; nothing is downloaded
  sklearn:digits     1,797 images of digits, 8x8, shipped with scikit-learn

  --column NAME         which column (array, file ending) holds the items
  --label-column NAME   which holds the classes; strings or whole numbers
  --pair-column NAME    a second column of text: the query of each row
  --split NAME          which part, where there are several; train if not said
  --delimiter CHAR      of a csv or tsv file, where it is not found; tab, none
  Columns are guessed where only one will do.
  Example: querykey embed a.csv --model st:all-MiniLM-L6-v2 --out features/

MODEL: what turns items into vectors. It stays frozen.

  timm:NAME[@FILE]   timm:resnet18@weights.safetensors      (or .pth)
  st:NAME-OR-FOLDER  st:all-MiniLM-L6-v2                 sentence-transformers
  MODULE:FACTORY     my_package.models:make_encoder      returns an nn.Module
  FILE.onnx          encoder.onnx
  RUN                runs/first          a folder of `adapt` or `pretrain`
  Example: querykey embed photos/ --model timm:resnet18@w.pth --out features/

FEATURES: the vectors of a source, as `querykey embed` writes them, or any
vectors: a folder of features, .npy, .npz (X, and y for labels), .safetensors,
.parquet with a column of lists.
  Example: querykey adapt features/ --dim 64 --out runs/first

RUN: a folder that `querykey adapt` or `querykey pretrain` wrote.
  Example: querykey evaluate runs/first --on features-test/
"""
"""What `querykey help sources` prints: the grammar of SOURCE, MODEL and FEATURES."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9_+-]+):(.*)", re.DOTALL)
_SPLITS = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test", "t10k": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The columns and the split of a source that the user named; None if not given.

    Args:
        column: Of the items.
        label_column: Of the classes.
        pair_column: Of the queries.
        split: Name of the split.
        delimiter: Of the columns of a csv or tsv file.
    """

    column: str | None = None
    label_column: str | None = None
    pair_column: str | None = None
    split: str | None = None
    delimiter: str | None = None

    def allow(self, *known: str, what: str) -> None:
        """Check that only options are given that this kind of source has.

        Raises:
            SourceError: If another option than those in `known` is given.
        """
        for option in ("column", "label_column", "pair_column", "split", "delimiter"):
            value = getattr(self, option)
            if value is not None and option not in known:
                raise SourceError(f"{what} has nothing to choose with {option} = {value}; leave it out")


def scheme_of(spec: str | Path) -> tuple[str, str] | None:
    """Split "hf:NAME" into its scheme and name; None for a path.

    Raises:
        SourceError: If the path does not exist and the scheme does not either.

    Example:
        >>> scheme_of("sklearn:digits"), scheme_of("photos/cats")
        (('sklearn', 'digits'), None)
    """
    found = _SCHEME.fullmatch(str(spec))
    if isinstance(spec, Path) or found is None or Path(spec).exists():
        return None
    scheme, name = found.groups()
    if scheme in MODEL_SCHEMES:
        raise SourceError(f"{spec} names a model, and a source is needed here: a path, {_schemes()}")
    if scheme not in SCHEMES:
        near = nearest_words(scheme, SCHEMES)
        raise SourceError(f"{spec}: there is no scheme {scheme!r}{near}; a source is a path, {_schemes()}")
    if not name:
        raise SourceError(f"{spec} needs a name after the colon, for example {_EXAMPLES[scheme]}")
    return scheme, name


_EXAMPLES = {"hf": "hf:ylecun/mnist", "torchvision": "torchvision:CIFAR10", "sklearn": "sklearn:digits"}


def _schemes() -> str:
    return "hf:NAME, torchvision:NAME or sklearn:digits"


def nearest_words(given: str, known: Iterable[str]) -> str:
    """The most similar known word, for a message; empty if none is similar.

    Example:
        >>> nearest_words("lable", ["image", "label"])
        " (nearest: 'label')"
    """
    by_lower = {word.lower(): word for word in known}
    near = get_close_matches(given.lower(), by_lower, n=1, cutoff=0.6)
    return f" (nearest: {by_lower[near[0]]!r})" if near else ""


def split_of(name: str) -> str | None:
    """The split with which the name of a file or folder begins; None if with none.

    Example:
        >>> split_of("train-00000-of-00002"), split_of("val2017"), split_of("training_notes_2")
        ('train', 'validation', 'train')
        >>> split_of("trains") is None
        True
    """
    word = re.split(r"[-_.]", name.lower(), maxsplit=1)[0]
    return _SPLITS.get(word) or _SPLITS.get(word.rstrip("0123456789"))


def choose_split(given: str | None, there: Sequence[str | None], what: str) -> str | None:
    """The split to read: the given one, or the only one, or train.

    Args:
        given: By the user; "val" and "dev" mean validation.
        there: The split of each file or folder of the source; None if its name contains none.
        what: The source, for the message.

    Raises:
        SourceError: If it does not exist, or none is given and the choice is ambiguous.
    """
    names = list(dict.fromkeys(there))
    known = [name for name in names if name is not None]
    listed = ", ".join(known)
    if given is None:
        if len(names) == 1:
            return names[0]
        if "train" in names:
            return "train"
        others = " and files of none" if None in names else ""
        raise SourceError(f"{what} has the splits {listed}{others}; give one as split")
    wanted = given if given in names else _SPLITS.get(given.lower(), given)
    if wanted in names:
        return wanted
    if not listed:
        raise SourceError(f"{what} has no splits, and split is {given!r}; leave split out")
    known = [name for name in names if name is not None]
    raise SourceError(f"{what} has no split {given!r}{nearest_words(given, known)}; its splits: {listed}")


def is_beir(folder: Path) -> bool:
    """Whether a folder is a BEIR collection: it contains corpus.jsonl."""
    return (folder / "corpus.jsonl").is_file()


def is_idx_images(name: str) -> bool:
    """Whether the name is that of a file of IDX images, such as train-images-idx3-ubyte.gz."""
    return IDX_IMAGES.fullmatch(name) is not None
