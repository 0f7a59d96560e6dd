"""Several names that mean one split: all of it is read, or it is refused; never the first alone."""

import pytest
from PIL import Image

from querykey.data.readers.open import read_source
from querykey.errors import DataWarning, SourceError


def put(folder, *paths):
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(folder / path)


def test_the_parts_of_a_split_are_read_together(tmp_path):
    """The layout of ImageNet-100."""
    put(tmp_path, *(f"train.X{part}/n{part:02d}/{n}.png" for part in (1, 2, 3, 4) for n in range(2)))
    put(tmp_path, "val.X/n01/0.png")
    with pytest.warns(DataWarning, match=r"the split train is read from 4 folders: train.X1, train.X2"):
        source = read_source(tmp_path)
    assert len(source) == 8
    assert source.label_names == ("n01", "n02", "n03", "n04")
    assert source.ids[0] == "train.X1/n01/0.png"
    assert source.items[7].size == (4, 4)
    assert list(read_source(tmp_path, split="val").ids) == ["n01/0.png"]


@pytest.mark.parametrize("names", [("train1", "train2", "test"), ("train2014", "train2017", "val2017")])
def test_numbers_that_follow_the_word_of_a_split_are_parts_and_no_classes(names, tmp_path):
    """As COCO names them; before, these three were the classes of one split."""
    put(tmp_path, *(f"{name}/{kind}/{name}.png" for name in names for kind in "ab"))
    with pytest.warns(DataWarning, match=f"the split train is read from 2 folders: {names[0]}, {names[1]}"):
        source = read_source(tmp_path)
    assert source.label_names == ("a", "b")
    assert len(source) == 4
    assert len(read_source(tmp_path, split=names[2].rstrip("2017"))) == 2


def test_tables_with_numbers_after_the_word_of_a_split_are_its_parts(tmp_path):
    for number, name in enumerate(("train1.csv", "train2.csv", "test1.csv")):
        (tmp_path / name).write_text(f"text,label\nrow {number},x\n")
    assert list(read_source(tmp_path).items) == ["row 0", "row 1"]
    assert list(read_source(tmp_path, split="test").items) == ["row 2"]


def test_a_class_that_two_parts_share_is_one_class(tmp_path):
    put(tmp_path, "train_1/a/0.png", "train_1/b/0.png", "train_2/a/0.png")
    with pytest.warns(DataWarning, match="2 folders"):
        source = read_source(tmp_path)
    assert source.labels.tolist() == [0, 1, 0]
    assert list(source.ids) == ["train_1/a/0.png", "train_1/b/0.png", "train_2/a/0.png"]


def test_two_words_for_one_split_are_both_read(tmp_path):
    put(tmp_path, "train/a/0.png", "val/a/0.png", "validation/a/1.png")
    with pytest.warns(DataWarning, match="the split validation is read from 2 folders: val, validation"):
        assert len(read_source(tmp_path, split="validation")) == 2


def test_a_folder_beside_that_of_a_split_is_left_out_and_named(tmp_path):
    put(tmp_path, "train/a/0.png", "train_masks/a/0.png", "test/a/0.png")
    with pytest.warns(DataWarning, match="the split train is read from train; left out train_masks"):
        assert list(read_source(tmp_path).ids) == ["a/0.png"]


def test_folders_that_are_not_clearly_parts_are_refused(tmp_path):
    put(tmp_path, "train_images/a/0.png", "train_masks/a/0.png")
    with pytest.raises(SourceError, match=r"several folders for the split train: train_images, train_masks"):
        read_source(tmp_path)
