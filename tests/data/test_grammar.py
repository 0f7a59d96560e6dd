"""The grammar of sources, labels in numbers, and the real data beside the project."""

from pathlib import Path

import numpy as np
import pytest

from querykey.data.items import RowNumbers
from querykey.data.labels import number_labels
from querykey.data.readers.grammar import SOURCES_HELP, choose_split, split_of
from querykey.data.readers.open import common_labels, read_source
from querykey.errors import MissingPathError, SourceError

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def shared(name):
    if not (SHARED / name).exists():
        pytest.skip(f"needs {name} in ../shared/data")
    return SHARED / name


def test_a_missing_path_gets_the_nearest_name(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(
        MissingPathError, match=r"there is nothing at .*potos \(nearest: 'photos'\); give a path"
    ):
        read_source(tmp_path / "potos")
    with pytest.raises(FileNotFoundError):
        read_source(tmp_path / "no" / "such" / "folder")


def test_an_empty_folder(tmp_path):
    (tmp_path / ".DS_Store").write_text("")
    with pytest.raises(SourceError, match="is empty; put images or tables into it"):
        read_source(tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "torchvison:CIFAR10",
            r"no scheme 'torchvison' \(nearest: 'torchvision'\); a source is a path, hf:NAME",
        ),
        ("https://example.org/x.csv", "there is no scheme 'https'"),
        ("timm:resnet18", "names a model, and a source is needed here"),
        ("hf:", "hf: needs a name after the colon, for example hf:ylecun/mnist"),
    ],
)
def test_a_scheme_that_does_not_exist(spec, message):
    with pytest.raises(SourceError, match=message):
        read_source(spec)


def test_a_path_that_looks_like_a_scheme_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("hf:x.csv").write_text("text\nhello\n")
    assert list(read_source("hf:x.csv").items) == ["hello"]


def test_a_file_of_no_known_kind(tmp_path):
    for name, message in (
        ("a.docx", r"of an unknown kind; known are .parquet, .csv, .*querykey help sources"),
        ("a.png", "is a single image; give the folder that it is in"),
        ("a.pth", "is a pickle, which is never loaded"),
    ):
        (tmp_path / name).write_text("x")
        with pytest.raises(SourceError, match=message):
            read_source(tmp_path / name)
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "x.npy", np.zeros((2, 2)))
    with pytest.raises(SourceError, match=r"holds arrays \(x.npy\); name the file itself"):
        read_source(tmp_path / "folder")


def test_the_help_fits_a_terminal_and_names_every_scheme_and_suffix():
    assert max(map(len, SOURCES_HELP.splitlines())) <= 78
    words = (
        "SOURCE MODEL FEATURES RUN hf: torchvision: sklearn:digits timm: st: .onnx .parquet .csv .jsonl .npy "
        ".npz .safetensors BEIR .tar IDX --split --column --label-column --pair-column"
    )
    assert [word for word in words.split() if word not in SOURCES_HELP] == []


def test_strings_are_sorted_and_integers_keep_their_order():
    assert number_labels(["b", "10", "9", "b"], what="x")[1] == ("10", "9", "b")
    labels, names = number_labels(np.array([10, 9, -1, 10]), what="x")
    assert (labels.tolist(), names) == ([1, 0, -1, 1], ("9", "10"))
    labels, names = number_labels([1.0, None, 3.0], what="x")
    assert (labels.tolist(), names) == ([0, -1, 1], ("1", "3"))
    labels, names = number_labels([True, False], what="x")
    assert (labels.tolist(), names) == ([1, 0], ("false", "true"))
    labels, names = number_labels([None, None], what="x")
    assert (labels.tolist(), names) == ([-1, -1], ())


def test_classes_of_two_sources_are_compared_by_name():
    """A class that the test split lacks shifts all later numbers of that split."""
    train = number_labels(["a", "b", "c"], what="train")
    test = number_labels(["c", "a", "z"], what="test")
    (left, right), names = common_labels(train, test)
    assert [names[label] for label in right] == ["c", "a", "z"]
    assert left.tolist() == [0, 1, 2]
    assert right.tolist() == [2, 0, 3]


def test_splits_by_name():
    assert [split_of(name) for name in ("t10k", "dev", "VAL.csv", "testing_1", "attest", "data")] == [
        "test", "validation", "validation", "test", None, None,
    ]  # fmt: skip
    assert choose_split(None, ["fold1"], "x") == "fold1"
    assert choose_split("dev", ["train", "validation"], "x") == "validation"
    assert choose_split("dev", ["train", "dev"], "x") == "dev"
    with pytest.raises(SourceError, match="has the splits test and files of none; give one"):
        choose_split(None, [None, "test"], "x")


def test_row_numbers_are_not_kept():
    ids = RowNumbers(3)
    assert list(ids) == ["0", "1", "2"]
    assert list(ids[1:]) == ["1", "2"]


def test_cifar10_is_read_lazily_with_its_names():
    source = read_source(shared("cifar10"), split="test")
    assert (source.kind, len(source), len(source.label_names)) == ("image", 10_000, 10)
    assert source.label_names[0] == "airplane"
    assert np.bincount(source.labels).tolist() == [1000] * 10
    assert source.items[9_999].size == (32, 32)


def test_omniglot_classes_are_disjoint_between_its_splits():
    train, test = (read_source(shared("omniglot"), split=split) for split in ("train", "test"))
    assert (len(train.label_names), len(test.label_names)) == (136, 106)
    assert not set(train.label_names) & set(test.label_names)
    assert test.items[0].size == (105, 105)


def test_banking77_finds_text_and_category():
    train, test = (read_source(shared("banking77"), split=split) for split in ("train", "test"))
    assert (len(train), len(test), len(train.label_names)) == (10_003, 3_080, 77)
    assert train.label_names == test.label_names
    assert train.items[0] == "I am still waiting on my card?"


def test_cranfield_keeps_its_two_empty_documents():
    source = read_source(shared("cranfield"))
    assert (len(source), len(source.queries), len(source.pairs)) == (1_400, 225, 1_837)
    assert [source.ids[row] for row, text in enumerate(source.items) if not text] == ["471", "995"]
    assert sorted(set(source.pairs[:, 2].tolist())) == [1, 2, 3, 4]
