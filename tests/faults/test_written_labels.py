"""Labels and ids are what is written: never changed by a guess of their type."""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from querykey.data.readers.open import read_source
from querykey.errors import DataError


def labels_of(source):
    return [None if label < 0 else source.label_names[label] for label in source.labels]


def table(tmp_path, labels, name="t.csv"):
    path = tmp_path / name
    path.write_text("text,label\n" + "".join(f"text {n},{label}\n" for n, label in enumerate(labels)))
    return path


@pytest.mark.parametrize(
    "labels",
    [
        ["007", "07", "7"],
        ["true", "True", "TRUE"],
        ["2020-01-01", "2020-01-01 00:00:00", "2020-01-02"],
        ["+1", "1", "2"],
        ["1", "1", "2"],
        ["9999999999999999", "99999999999999999999", "1"],
        ["12:00", "12:00:00", "x"],
    ],
)
def test_labels_of_a_csv_are_what_is_written(labels, tmp_path):
    assert labels_of(read_source(table(tmp_path, labels), label_column="label")) == labels


def test_whole_numbers_stay_in_their_order_and_minus_one_is_unlabelled(tmp_path):
    source = read_source(table(tmp_path, ["10", "9", "-1", ""]))
    assert source.label_names == ("9", "10")
    assert source.labels.tolist() == [1, 0, -1, -1]


def test_missing_labels_among_numbers_with_zeros_in_front(tmp_path):
    assert labels_of(read_source(table(tmp_path, ["007", "", "7"]))) == ["007", None, "7"]


def test_numbers_that_became_decimals_are_classes_and_true_decimals_are_none(tmp_path):
    source = read_source(table(tmp_path, ["1.0", "2.0", ""]), label_column="label")
    assert labels_of(source) == ["1.0", "2.0", None]
    with pytest.raises(DataError, match="holds decimals"):
        read_source(table(tmp_path, ["1.5", "2.0", ""]), label_column="label")


def test_ids_are_what_is_written(tmp_path):
    (tmp_path / "t.csv").write_text("_id,text\n007,a\n7,b\n07,c\n")
    assert list(read_source(tmp_path / "t.csv", column="text").ids) == ["007", "7", "07"]


def test_dates_in_jsonl_are_texts(tmp_path):
    dates = ["2020-01-01", "2020-01-01T00:00:00"]
    lines = [f'{{"_id": "{date}", "text": "a", "label": "{date}"}}\n' for date in dates]
    (tmp_path / "t.jsonl").write_text("".join(lines))
    source = read_source(tmp_path / "t.jsonl")
    assert labels_of(source) == dates
    assert list(source.ids) == dates


def test_the_ids_of_a_beir_folder_that_look_like_dates_meet_their_judgements(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "2020-01-01", "text": "a"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "2020-01-02", "text": "b"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n2020-01-02\t2020-01-01\t1\n")
    source = read_source(tmp_path)
    assert list(source.ids) == ["2020-01-01"]
    assert source.pairs.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("written", "names"), [(("007", "07", "7"), ("007", "07", "7")), (("10", "9", "9"), ("9", "10"))]
)
def test_classes_of_shards_are_what_is_written(written, names, tmp_path):
    stream = io.BytesIO()
    Image.new("L", (4, 4)).save(stream, "PNG")
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for number, label in enumerate(written):
            for ending, data in (("png", stream.getvalue()), ("cls", label.encode())):
                entry = tarfile.TarInfo(f"{number}.{ending}")
                entry.size = len(data)
                shard.addfile(entry, io.BytesIO(data))
    source = read_source(tmp_path / "shard.tar")
    assert source.label_names == names
    assert labels_of(source) == list(written)


@pytest.mark.parametrize("labels", [["+5", "7.0", "+5"], ["1.0", "2.0", "2.0"], ["1e3", "2", "1e3"]])
def test_whole_numbers_that_a_reader_takes_for_decimals_are_labels_without_an_option(labels, tmp_path):
    assert labels_of(read_source(table(tmp_path, labels))) == labels


def test_integers_with_missing_ones_are_labels_in_parquet_and_decimals_are_none(tmp_path):
    for name, values in (("whole", [3.0, None, float("nan"), 12.0]), ("parts", [0.5, 1.0, 2.0, 3.0])):
        columns = {"text": ["a", "b", "c", "d"], "label": pa.array(values, pa.float64())}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    assert labels_of(read_source(tmp_path / "whole.parquet")) == ["3", None, None, "12"]
    assert read_source(tmp_path / "parts.parquet").labels is None
    empty = pa.table({"text": ["a"], "label": pa.array([None], pa.float32())})
    pq.write_table(empty, tmp_path / "empty.parquet")
    assert read_source(tmp_path / "empty.parquet").labels is None
