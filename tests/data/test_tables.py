"""Tables: which column is what, classes, vectors, pairs, images in cells."""

import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from querykey.data.readers.open import read_source
from querykey.errors import DamagedItemError, DataError, ShapeError, SourceError


def png(value):
    buffer = io.BytesIO()
    Image.new("L", (2, 2), value).save(buffer, "PNG")
    return buffer.getvalue()


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_csv_text_and_category_are_found_without_being_named(tmp_path):
    path = tmp_path / "bank.csv"
    path.write_text(
        'text,category\n"Where, is\nmy ""card""?",card\nNA,atm\n,\nnull,card\n', encoding="utf-8-sig"
    )
    source = read_source(path)
    assert source.kind == "text"
    assert list(source.items) == ['Where, is\nmy "card"?', "NA", "", "null"]
    assert source.label_names == ("atm", "card")
    assert source.labels.tolist() == [1, 0, -1, 1]
    assert list(source.ids) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".csv.gz", ".jsonl.gz", ".parquet"])
def test_the_same_table_in_every_format(tmp_path, suffix):
    rows = [{"text": "one", "label": 3}, {"text": "two", "label": -1}, {"text": "thrée", "label": 0}]
    path = tmp_path / f"table{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        mark = "\t" if "tsv" in suffix else ","
        lines = [json.dumps(row) for row in rows]
        if "jsonl" not in suffix:
            lines = [mark.join(rows[0]), *(mark.join(map(str, row.values())) for row in rows)]
        data = "\n".join(lines).encode()
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    source = read_source(path)
    assert list(source.items) == ["one", "two", "thrée"]
    assert (source.labels.tolist(), source.label_names) == ([1, -1, 0], ("0", "3"))


def test_an_ambiguous_table_is_one_message_that_lists_its_columns(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [{"title": "a", "body": "b", "year": 1999}])
    listed = r"its columns: title \(string\), body \(string\), year \(int64\)"
    with pytest.raises(
        SourceError, match=rf"several columns that can be the items; give one as column; {listed}"
    ):
        read_source(path)
    with pytest.raises(SourceError, match=rf"no column 'bodi' \(nearest: 'body'\); {listed}"):
        read_source(path, column="bodi")
    with pytest.raises(SourceError, match=rf"no column 'lable'; {listed}"):
        read_source(path, column="body", label_column="lable")
    source = read_source(path, column="body", label_column="title")
    assert (list(source.items), source.label_names) == (["b"], ("a",))


def test_a_table_without_a_readable_column(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [1, 2], "b": [0.5, 0.25]}), path)
    with pytest.raises(
        SourceError, match=r"no column of images, text or vectors; .*a \(int64\), b \(double\)"
    ):
        read_source(path)
    with pytest.raises(
        SourceError, match="the column 'a' holds int64; items are images, text or lists of numbers"
    ):
        read_source(path, column="a")


def test_text_that_looks_like_numbers_or_dates_is_taken_letter_by_letter(tmp_path):
    (tmp_path / "t.csv").write_text("code,when\n007,2020-01-01\n1.50,2020-01-02\n")
    assert list(read_source(tmp_path / "t.csv", column="code").items) == ["007", "1.50"]
    assert list(read_source(tmp_path / "t.csv", column="when").items) == ["2020-01-01", "2020-01-02"]
    write_jsonl(tmp_path / "t.jsonl", [{"when": "2020-01-01"}, {"when": "2020-01-02"}])
    assert list(read_source(tmp_path / "t.jsonl", column="when").items) == ["2020-01-01", "2020-01-02"]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("t.csv", b"a,b\n1,2,3\n", "Expected 2 columns, got 3"),
        ("t.csv", b"", "Empty CSV"),
        ("t.csv", b"text,b\ncaf\xe9,1\n", "the column 'text' is not UTF-8 text; save the file as UTF-8"),
        ("t.csv", b"text\n", "has no rows; at least one is needed"),
        ("t.csv", b"a,a\n1,2\n", "several columns named 'a'"),
        ("t.jsonl", b'{"a": "x"}\n{"a": \n', "JSON parse error"),
        ("t.jsonl", b'{"a": "x"}\n{"a": [1]}\n', "cannot be read"),
        ("t.jsonl", b"", "cannot be read"),
        ("t.csv.gz", b"not packed", "cannot be read"),
        ("t.parquet", b"PAR1 not", "is not a complete parquet file"),
        ("t.parquet", b"", "is not a complete parquet file"),
    ],
)
def test_damaged_tables_are_one_message(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=reason) as error:
        read_source(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_truncated_parquet_file_is_one_message(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a", "b"] * 99}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match="is not a complete parquet file"):
        read_source(path)


def test_files_of_a_folder_are_splits_by_name_and_one_table_otherwise(tmp_path):
    for name, text in (
        ("train-00000-of-00002", "a"),
        ("train-00001-of-00002", "b"),
        ("test-0", "c"),
        ("val", "d"),
    ):
        pq.write_table(pa.table({"text": [text]}), tmp_path / f"{name}.parquet")
    (tmp_path / "categories.json").write_text("[]")
    assert list(read_source(tmp_path).items) == ["a", "b"]
    assert list(read_source(tmp_path, split="test").items) == ["c"]
    assert list(read_source(tmp_path, split="validation").items) == ["d"]
    with pytest.raises(
        SourceError, match=r"has no split 'tests' \(nearest: 'test'\); its splits: test, train, valid"
    ):
        read_source(tmp_path, split="tests")
    with pytest.raises(SourceError, match="has no splits, and split is 'train'"):
        read_source(tmp_path / "val.parquet", split="train")
    other = tmp_path / "other"
    (other / "data" / "test").mkdir(parents=True)
    (other / "data" / "part-0.csv").write_text("text\nx\n")
    (other / "data" / "part-1.csv").write_text("text\ny\n")
    assert list(read_source(other).items) == ["x", "y"]


def test_a_folder_that_mixes_what_cannot_be_mixed(tmp_path):
    (tmp_path / "a.csv").write_text("text\nx\n")
    (tmp_path / "b.jsonl").write_text('{"text": "y"}\n')
    with pytest.raises(SourceError, match=r"mixes tables of .csv and .jsonl; name one file"):
        read_source(tmp_path)
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "b.png").write_bytes(png(0))
    with pytest.raises(SourceError, match=r"as many tables as images \(1\); name the file itself \(a.csv\)"):
        read_source(tmp_path)
    (tmp_path / "b.png").unlink()
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"words": ["x"]}), tmp_path / "b.parquet")
    (tmp_path / "a.csv").unlink()
    with pytest.raises(SourceError, match=r"b.parquet has other columns than"):
        read_source(tmp_path)


def test_images_in_cells_are_decoded_on_access_across_row_groups(tmp_path):
    cells = [{"bytes": png(value), "path": f"{value}.png"} for value in range(7)]
    cells[3]["bytes"] = b""
    cells[5] = None
    for part in (0, 1):
        table = pa.table({"image": cells, "label": list("abababa")})
        pq.write_table(table, tmp_path / f"train-{part}.parquet", row_group_size=2)
    source = read_source(tmp_path)
    assert (source.kind, len(source), source.label_names) == ("image", 14, ("a", "b"))
    order = [13, 0, 8, 6, 7, 2, 9]
    assert [source.items[row].getpixel((0, 0)) for row in order] == [row % 7 for row in order]
    with pytest.raises(DamagedItemError, match=r"row 10 is empty \(0 bytes\)"):
        source.items[10]
    with pytest.raises(DamagedItemError, match="row 5 is missing"):
        source.items[5]


def test_images_kept_as_paths_count_in_the_fingerprint(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    type_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(
        pa.table({"image": pa.array([{"bytes": None, "path": "a.png"}], type_)}), tmp_path / "t.parquet"
    )
    source = read_source(tmp_path / "t.parquet")
    assert source.items[0].getpixel((0, 0)) == 1
    (tmp_path / "a.png").write_bytes(png(2))
    assert read_source(tmp_path / "t.parquet").fingerprint != source.fingerprint


def test_class_names_written_by_hugging_face_datasets_are_kept(tmp_path):
    note = {"info": {"features": {"label": {"names": ["cat", "dog", "eel"], "_type": "ClassLabel"}}}}
    table = pa.table({"text": ["x", "y", "z"], "label": [2, 0, None]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(note)}), tmp_path / "t.parquet")
    source = read_source(tmp_path / "t.parquet")
    assert (source.labels.tolist(), source.label_names) == ([2, 0, -1], ("cat", "dog", "eel"))
    wrong = table.set_column(1, "label", pa.array([2, 0, 3])).replace_schema_metadata(
        {"huggingface": json.dumps(note)}
    )
    pq.write_table(wrong, tmp_path / "t.parquet")
    with pytest.raises(DataError, match="holds labels from 0 to 3, but names 3 classes"):
        read_source(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("type_", "dtype"),
    [
        (pa.list_(pa.float32()), np.float32),
        (pa.list_(pa.float32(), 3), np.float32),
        (pa.large_list(pa.float64()), np.float32),
        (pa.list_(pa.float16(), 3), np.float16),
        (pa.list_(pa.int64()), np.float32),
    ],
)
def test_columns_of_lists_are_vectors(tmp_path, type_, dtype):
    numbers = [[float(row), row + 1.0, -2.0] for row in range(10)]
    cells = [[np.float16(x) for x in row] for row in numbers] if dtype == np.float16 else numbers
    if pa.types.is_integer(type_.value_type):
        cells = [[int(x) for x in row] for row in numbers]
    table = pa.table({"embedding": pa.array(cells, type_), "label": ["a"] * 10})
    pq.write_table(table, tmp_path / "v.parquet", row_group_size=4)
    source = read_source(tmp_path / "v.parquet")
    assert source.kind == "vector"
    assert source.items.dtype == dtype
    assert source.items.tolist() == numbers
    assert len(source.labels) == 10


def test_rows_of_different_width_name_the_first(tmp_path):
    path = write_jsonl(tmp_path / "v.jsonl", [{"v": [1.0, 2.0]}, {"v": [3.0, 4.0]}, {"v": [1.0, 2.0, 3.0]}])
    with pytest.raises(
        ShapeError, match="row 0 has 2 numbers and row 2 has 3; all vectors must have the same width"
    ):
        read_source(path)
    write_jsonl(path, [{"v": [1.0]}, {"v": None}])
    with pytest.raises(DataError, match="row 1 has no vector"):
        read_source(path)
    write_jsonl(path, [{"v": [1.0, None]}])
    assert np.isnan(read_source(path).items[0, 1])


def test_an_id_column_gives_the_ids_and_is_no_item(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [{"_id": "x7", "text": "a"}, {"_id": "x8", "text": "b"}])
    source = read_source(path)
    assert (list(source.ids), list(source.items)) == (["x7", "x8"], ["a", "b"])
    write_jsonl(path, [{"id": "same", "text": "a"}, {"id": "same", "text": "b"}])
    assert list(read_source(path).ids) == ["0", "1"]
    write_jsonl(path, [{"_id": "same", "text": "a"}, {"_id": "same", "text": "b"}])
    with pytest.raises(DataError, match="the column _id has missing or repeated ids"):
        read_source(path)


def test_labels_that_are_no_classes(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "a", "score": 0.5, "many": [1]}])
    with pytest.raises(DataError, match=r"holds decimals \(double\), which are not classes"):
        read_source(path, column="text", label_column="score")
    with pytest.raises(DataError, match="which are not classes"):
        read_source(path, column="text", label_column="many")


def test_two_columns_make_pairs_and_equal_texts_are_one_row(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("question,answer\nq1,a1\nq2,a1\nq1,a2\nq1,a1\nq3,a3\n")
    source = read_source(path, column="answer", pair_column="question")
    assert list(source.items) == ["a1", "a2", "a3"]
    assert list(source.queries.items) == ["q1", "q2", "q3"]
    assert source.pairs.tolist() == [[0, 0, 1], [1, 0, 1], [0, 1, 1], [2, 2, 1]]
    assert source.pairs.dtype == np.int64
    assert (list(source.ids), list(source.queries.ids)) == (["0", "2", "4"], ["0", "1", "4"])
    assert source.labels is None
    assert source.fingerprint != source.queries.fingerprint
    assert list(read_source(path, pair_column="question").items) == ["a1", "a2", "a3"]
    turned = read_source(path, column="question", pair_column="answer")
    assert turned.fingerprint not in (source.fingerprint, source.queries.fingerprint)


def test_pairs_that_cannot_be_made(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("q,a,label\nq1,a1,x\nq2,,x\nq3,,x\n")
    with pytest.raises(DataError, match=r"2 of 3 rows have no text in 'a' \(first: row 1\)"):
        read_source(path, column="a", pair_column="q")
    with pytest.raises(SourceError, match="the column 'a' is given twice"):
        read_source(path, column="a", pair_column="a")
    with pytest.raises(SourceError, match="pairs have no classes; give pair_column or label_column"):
        read_source(path, column="a", pair_column="q", label_column="label")
    vectors = write_jsonl(tmp_path / "v.jsonl", [{"q": "x", "v": [1.0]}])
    with pytest.raises(SourceError, match="pairs need two columns of text"):
        read_source(vectors, column="v", pair_column="q")


def test_the_fingerprint_covers_bytes_and_columns(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,label\nx,y,1\n")
    sums = {read_source(path, column=column, label_column=label).fingerprint
            for column, label in (("a", "label"), ("b", "label"), ("a", "b"))}  # fmt: skip
    assert len(sums) == 3
    path.write_text("a,b,label\nx,y,2\n")
    assert read_source(path, column="a", label_column="label").fingerprint not in sums


def test_text_that_is_no_utf8_in_parquet_is_a_damaged_item(tmp_path):
    bad = pa.array([b"fine", b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "t.parquet")
    items = read_source(tmp_path / "t.parquet").items
    assert items[0] == "fine"
    with pytest.raises(DamagedItemError, match="row 1 is not UTF-8 text"):
        items[1]


def test_missing_text_is_empty_not_the_word_none(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "a"}, {"text": None}, {}])
    assert list(read_source(path).items) == ["a", "", ""]


def test_lines_inside_quotes_are_whole_where_the_reader_changes_blocks(tmp_path):
    """Files above 16 MB are read in blocks, and a block may end between two lines of one value."""
    value = "one line\n" * 1_000
    (tmp_path / "t.csv").write_text("text\n" + f'"{value}"\n' * 2_000)
    items = read_source(tmp_path / "t.csv").items
    assert len(items) == 2_000
    assert set(items) == {value}
