"""BEIR folders, webdataset shards, and data sets by name."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from querykey.data.readers.open import read_source
from querykey.errors import DamagedItemError, DataError, SourceError


def write_jsonl(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def beir(tmp_path):
    write_jsonl(tmp_path / "corpus.jsonl", [
        {"_id": "d1", "title": "A wing", "text": "in a slipstream", "metadata": {"url": "x"}},
        {"_id": "d2", "title": "", "text": ""},
        {"_id": "d3", "title": "", "text": "heat"},
    ])  # fmt: skip
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": f"q{i}", "text": f"query {i}"} for i in range(4)])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq3\td3\t2\nq1\td1\t1\nq1\td3\t4\nq1\td2\t0\nq2\td2\t0\n"
    )
    return tmp_path


def test_beir_documents_queries_and_grades(beir):
    source = read_source(beir)
    assert list(source.items) == ["A wing in a slipstream", "", "heat"]
    assert list(source.ids) == ["d1", "d2", "d3"]
    assert list(source.queries.ids) == ["q1", "q2", "q3"]
    assert list(source.queries.items) == ["query 1", "query 2", "query 3"]
    assert source.pairs.tolist() == [[2, 2, 2], [0, 0, 1], [0, 2, 4]]
    assert source.labels is None


def test_beir_splits_are_the_files_of_judgements(beir):
    (beir / "qrels" / "dev.tsv").write_text("q0\td1\t1\n")
    with pytest.raises(SourceError, match="has the splits dev, test; give one as split"):
        read_source(beir)
    dev = read_source(beir, split="dev")
    assert (list(dev.queries.ids), dev.pairs.tolist()) == (["q0"], [[0, 0, 1]])
    (beir / "qrels" / "train.tsv").write_text("q2\td1\t1\n")
    assert list(read_source(beir).queries.ids) == ["q2"]
    with pytest.raises(
        SourceError, match=r"has no split 'trian' \(nearest: 'train'\); its splits: dev, test, train"
    ):
        read_source(beir, split="trian")


def test_beir_without_judgements_or_queries(beir):
    (beir / "qrels" / "test.tsv").unlink()
    source = read_source(beir)
    assert (len(source.queries), source.pairs) == (4, None)
    (beir / "queries.jsonl").unlink()
    assert read_source(beir).queries is None


def test_beir_ids_that_are_numbers_and_text_that_looks_like_dates(beir):
    write_jsonl(beir / "corpus.jsonl", [{"_id": 7, "text": "2020-01-01"}])
    (beir / "qrels" / "test.tsv").write_text("q1\t7\t1.0\n")
    source = read_source(beir)
    assert (list(source.ids), list(source.items)) == (["7"], ["2020-01-01"])
    assert source.pairs.tolist() == [[0, 0, 1]]


def test_beir_that_does_not_fit_together(beir):
    judgements = beir / "qrels" / "test.tsv"
    judgements.write_text("q1\td1\t1\nq9\td1\t1\n")
    with pytest.warns(
        UserWarning, match="1 judgements of a query or document that does not exist are left out"
    ):
        assert len(read_source(beir).pairs) == 1
    judgements.write_text("q9\td1\t1\n")
    with pytest.raises(DataError, match=r"has no judgement of 1 or above .* \(1 have others\)"):
        read_source(beir)
    judgements.write_text("q1\td1\n")
    with pytest.raises(SourceError, match=r"line 1: .* is not a judgement"):
        read_source(beir)
    write_jsonl(beir / "corpus.jsonl", [{"_id": "d1", "text": "a"}, {"_id": "d1", "text": "b"}])
    with pytest.raises(DataError, match="has missing or repeated _id"):
        read_source(beir)
    write_jsonl(beir / "corpus.jsonl", [{"id": "d1", "text": "a"}])
    with pytest.raises(SourceError, match="has no _id; a BEIR file has lines like"):
        read_source(beir)


def test_the_fingerprints_of_beir_cover_every_file(beir):
    def sums():
        source = read_source(beir)
        return source.fingerprint, source.queries.fingerprint

    before = sums()
    with (beir / "queries.jsonl").open("a") as stream:
        stream.write('{"_id": "q9", "text": "new"}\n')
    after = sums()
    assert after[0] != before[0]
    assert after[1] != before[1]
    with (beir / "qrels" / "test.tsv").open("a") as stream:
        stream.write("q9\td1\t1\n")
    assert sums()[0] != after[0]
    assert sums()[1] != after[1]


def png(value):
    buffer = io.BytesIO()
    Image.new("L", (2, 2), value).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as shard:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            shard.addfile(entry, io.BytesIO(data))


def test_webdataset_images_with_classes_over_two_shards(tmp_path):
    write_tar(
        tmp_path / "a-000.tar",
        [("x/0.png", png(1)), ("x/0.cls", b"4\n"), ("x/1.PNG", png(2)), ("x/1.cls", b"10")],
    )
    write_tar(tmp_path / "a-001.tar", [("y.gif", b"broken"), ("y.cls", b"4")])
    source = read_source(tmp_path)
    assert list(source.ids) == ["x/0", "x/1", "y"]
    assert [source.items[row].getpixel((0, 0)) for row in (1, 0)] == [2, 1]
    assert (source.labels.tolist(), source.label_names) == ([0, 1, 0], ("4", "10"))
    with pytest.raises(DamagedItemError, match=r"^y cannot be decoded"):
        source.items[2]


def test_webdataset_text_and_a_class_in_json(tmp_path):
    path = tmp_path / "shard.tar"
    write_tar(
        path, [("0.txt", "één".encode()), ("0.json", b'{"kind": "b"}'), ("1.txt", b"two"), ("1.json", b"{}")]
    )
    source = read_source(path, label_column="kind")
    assert (source.kind, list(source.items)) == ("text", ["één", "two"])
    assert (source.labels.tolist(), source.label_names) == ([0, -1], ("b",))
    with pytest.raises(SourceError, match=r"no .json has a field 'knd'"):
        read_source(path, label_column="knd")
    with pytest.raises(SourceError, match=r"no files .text \(nearest: 'txt'\); its endings: json, txt"):
        read_source(path, column="text")


def test_webdataset_with_images_and_text_needs_a_column(tmp_path):
    path = tmp_path / "shard.tar"
    write_tar(path, [("0.png", png(1)), ("0.txt", b"one")])
    with pytest.raises(
        SourceError, match=r"several endings that can be the items; give one as column; .* png, txt"
    ):
        read_source(path)
    assert read_source(path, column="png").kind == "image"
    assert read_source(path, column=".txt").kind == "text"
    write_tar(path, [("0.npy", b"")])
    with pytest.raises(SourceError, match=r"no images and no .txt"):
        read_source(path)


def test_names_in_a_shard_are_keys_and_nothing_is_written_or_followed(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(9))
    with tarfile.open(inside / "s.tar", "w") as shard:
        for name in ("../../escape.png", "/etc/absolute.png"):
            entry = tarfile.TarInfo(name)
            entry.size = len(png(1))
            shard.addfile(entry, io.BytesIO(png(1)))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"link{kind.decode()}.png")
            link.type, link.linkname = kind, str(secret)
            shard.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    source = read_source(inside)
    assert list(source.ids) == ["../../escape", "/etc/absolute"]
    assert all(image.getpixel((0, 0)) == 1 for image in source.items)
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_shards_are_one_message(tmp_path):
    path = tmp_path / "s.tar"
    write_tar(path, [("0.png", png(1)), ("1.cls", b"1")])
    with pytest.raises(DataError, match="the sample 1 has no png; each sample needs one"):
        read_source(path)
    write_tar(path, [("0.png", png(1)), ("0.png", png(2))])
    with pytest.raises(DataError, match=r"has 0.png twice"):
        read_source(path)
    write_tar(path, [("0.png", bytes(5000))])
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(SourceError, match=r"is not a complete .tar file"):
        read_source(path)
    path.write_bytes(b"")
    with pytest.raises(SourceError, match=r"is not a complete .tar file|holds no samples"):
        read_source(path)
    write_tar(path, [])
    with pytest.raises(SourceError, match="holds no samples"):
        read_source(path)


def test_sklearn_digits():
    source = read_source("sklearn:digits")
    assert (source.kind, len(source), source.items[0].size) == ("image", 1797, (8, 8))
    assert np.asarray(source.items[0]).max() == 239  # 15 of 16, spread over 255
    assert source.label_names == tuple("0123456789")
    with pytest.raises(SourceError, match="the only data set of scikit-learn is sklearn:digits"):
        read_source("sklearn:iris")
    with pytest.raises(SourceError, match="has nothing to choose with split = test"):
        read_source("sklearn:digits", split="test")


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes())


def test_torchvision_reads_what_is_there_and_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHVISION_DATA", str(tmp_path))
    with pytest.raises(SourceError, match=r"torchvision:MNIST is not in .* nothing is downloaded"):
        read_source("torchvision:MNIST")
    assert not list(tmp_path.iterdir())
    raw = tmp_path / "MNIST" / "raw"
    for split, rows in (("train", 3), ("t10k", 2)):
        write_idx(raw / f"{split}-images-idx3-ubyte", np.full((rows, 28, 28), rows, np.uint8))
        write_idx(raw / f"{split}-labels-idx1-ubyte", np.arange(rows, dtype=np.uint8))
    train, test = read_source("torchvision:mnist"), read_source("torchvision:MNIST", split="test")
    assert (len(train), train.labels.tolist(), train.label_names[0]) == (3, [0, 1, 2], "0 - zero")
    assert (len(test), test.items[0].getpixel((0, 0))) == (2, 2)
    assert train.fingerprint != test.fingerprint
    write_idx(raw / "train-images-idx3-ubyte", np.full((3, 28, 28), 9, np.uint8))
    assert read_source("torchvision:MNIST").fingerprint != train.fingerprint


def test_torchvision_names_are_answered_with_the_nearest():
    with pytest.raises(SourceError, match=r"torchvision has no data set 'CIFAR11' \(nearest: 'CIFAR10.?'\)"):
        read_source("torchvision:CIFAR11")


def test_the_hub_reads_a_local_folder_with_images_kept_as_files(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, value in (("train/ant/0.png", 1), ("train/bee/1.png", 2), ("test/bee/2.png", 3)):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    source = read_source(f"hf:{tmp_path / 'photos'}")
    assert (source.kind, len(source), source.label_names) == ("image", 2, ("ant", "bee"))
    assert [image.getpixel((0, 0)) for image in source.items] == [1, 2]
    assert source.labels.tolist() == [0, 1]
    test = read_source(f"hf:{tmp_path / 'photos'}", split="test")
    assert test.labels.tolist() == [1]
    with pytest.raises(SourceError, match="has no split 'validation'; its splits: train, test"):
        read_source(f"hf:{tmp_path / 'photos'}", split="validation")


def test_a_hub_name_that_is_not_there_is_one_message():
    with pytest.raises(
        SourceError, match=r"hf:nobody/nothing cannot be loaded: .*; check the name, the network"
    ):
        read_source("hf:nobody/nothing")


def test_the_fingerprint_of_a_hub_data_set_covers_its_text(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    sums = []
    for folder, word in (("one", "here"), ("two", "there"), ("three", "here")):
        write_jsonl(tmp_path / folder / "train.jsonl", [{"text": word}])
        source = read_source(f"hf:{tmp_path / folder}")
        assert list(source.items) == [word]
        sums.append(source.fingerprint)
    assert sums[0] == sums[2] != sums[1]
