"""Which kind of source a folder is: what most of its files are; the rest is named."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from querykey.data.readers.open import read_source
from querykey.errors import DataWarning, SourceError


def put_images(folder, count=3):
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (4, 4), number).save(folder / name / f"{number}.png")


def put_table(path, rows=5):
    path.write_text("text,label\n" + "".join(f"text {row},{'ab'[row % 2]}\n" for row in range(rows)))


def put_shard(path):
    stream = io.BytesIO()
    Image.new("L", (4, 4)).save(stream, "PNG")
    with tarfile.open(path, "w") as shard:
        entry = tarfile.TarInfo("0.png")
        entry.size = len(stream.getvalue())
        shard.addfile(entry, io.BytesIO(stream.getvalue()))


@pytest.mark.parametrize(
    ("name", "put"),
    [
        ("labels.csv", put_table),
        ("images.tar", put_shard),
        ("features.npy", lambda path: np.save(path, np.ones((3, 2)))),
        ("metadata.jsonl", lambda path: path.write_text('{"text": "a"}\n')),
    ],
)
def test_a_file_beside_folders_of_classes_leaves_them_a_folder_of_images(name, put, tmp_path):
    put_images(tmp_path)
    put(tmp_path / name)
    with pytest.warns(DataWarning, match=f"left out 1 file that is not an image .*first: {name}"):
        source = read_source(tmp_path)
    assert source.kind == "image"
    assert source.label_names == ("cat", "dog")
    assert list(source.left_out) == [name]


def test_an_image_beside_tables_leaves_them_a_table(tmp_path):
    for number in range(3):
        put_table(tmp_path / f"part-{number}.csv")
    Image.new("L", (4, 4)).save(tmp_path / "plot.png")
    with pytest.warns(DataWarning, match=r"is read as tables; left out 1 other files: plot.png"):
        source = read_source(tmp_path)
    assert source.kind == "text"
    assert len(source) == 15
    assert list(source.left_out) == ["plot.png"]


def test_as_many_of_one_kind_as_of_another_is_refused(tmp_path):
    put_table(tmp_path / "a.csv")
    put_shard(tmp_path / "a.tar")
    with pytest.raises(SourceError, match=r"as many shards as tables \(1\); name the file itself \(a.tar\)"):
        read_source(tmp_path)


def test_a_shard_beside_more_tables_is_named(tmp_path):
    put_table(tmp_path / "a.csv")
    put_table(tmp_path / "b.csv")
    put_shard(tmp_path / "a.tar")
    with pytest.warns(DataWarning, match=r"is read as tables; left out 1 other files: a.tar"):
        assert read_source(tmp_path).kind == "text"
