"""Any table and any folder of images: only QuerykeyError comes out, and every row or file counts.

`make soak` tries many more (FUZZ_EXAMPLES).
"""

import bz2
import csv
import gzip
import io
import json
import os
import warnings
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from damaging import damaged_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from querykey.data.readers.grammar import split_of
from querykey.data.readers.open import read_source
from querykey.errors import DamagedItemError, DataWarning, QuerykeyError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
many = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES <= 60, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip

WORD = st.text("ab é,;|\t\"'\r\n0", max_size=8)
LABEL = st.sampled_from(["a", "b", "007", "7", "-1", "1.5", "true", "2020-1-1", "NA", "nan", "", "é", "a;b"])
ENDINGS = (".csv", ".tsv", ".CSV", ".csv.gz", ".CSV.GZ", ".tsv.bz2")
PACKED = {".gz": gzip.compress, ".bz2": bz2.compress}


@st.composite
def tables(draw):
    """(name of a file, its bytes, rows in it, its header)."""
    header = draw(st.sampled_from([("text", "label"), ("text",), ("_id", "text", "label"), ("a", "b")]))
    rows = [[draw(LABEL if name in ("label", "_id") else WORD) for name in header]
            for _ in range(draw(st.integers(0, 6)))]  # fmt: skip
    if len(header) == 1:  # a record of one empty field is an empty line, which is none
        rows = [row for row in rows if row[0]]
    stream = io.StringIO(newline="")
    dialect = {
        "delimiter": draw(st.sampled_from(",;\t|")),
        "lineterminator": draw(st.sampled_from(["\n", "\r\n"])),
        # what Python leaves unquoted beside \\n, a lone \\r, ends a record for every other reader
        "quoting": csv.QUOTE_ALL
        if any("\r" in cell for row in rows for cell in row)
        else draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
    }
    writer = csv.writer(stream, **dialect)
    writer.writerows([header, *rows])
    data = stream.getvalue().encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"])))
    ending = draw(st.sampled_from(ENDINGS))
    return f"t{ending}", PACKED.get(Path(ending.lower()).suffix, bytes)(data), len(rows), header


def read(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return read_source(path, **options)


def walk(source):
    """Look at everything that a source holds."""
    assert len(source.ids) == len(source.items)
    assert len(set(source.ids)) == len(source)
    if source.labels is not None:
        assert source.labels.shape == (len(source),)
        assert source.labels.min(initial=-1) >= -1
        assert source.labels.max(initial=-1) < len(source.label_names)
    for row in range(len(source)):
        with suppress(DamagedItemError):
            assert source.items[row] is not None


@many
@given(table=tables(), named=st.booleans())
def test_every_row_of_a_table_is_an_item_or_the_table_is_refused(table, named):
    name, data, rows, header = table
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            source = read(path, column=header[-2] if named and len(header) > 1 else None)
        except QuerykeyError:
            return
        walk(source)
        assert len(source) + len(source.left_out) == rows


@many
@given(data=st.data())
def test_a_damaged_table_is_read_or_refused(data):
    name, content, _, _ = data.draw(tables())
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data.draw(damaged_bytes(content)))
        with suppress(QuerykeyError):
            walk(read(path, column=data.draw(st.sampled_from([None, "text"]))))


VALUE = st.one_of(
    st.none(), st.text("a0-é\n", max_size=6), st.integers(-3, 2**40), st.floats(), st.booleans(),
    st.lists(st.floats(-1, 1), max_size=3),
)  # fmt: skip


@many
@given(records=st.lists(st.dictionaries(st.sampled_from(["_id", "text", "label"]), VALUE), max_size=5))
def test_any_jsonl_is_read_whole_or_refused(records):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        try:
            source = read(path)
        except QuerykeyError:
            return
        walk(source)
        assert len(source) == len(records)


FOLDERS = (
    "",
    "a",
    "b",
    "a/deep",
    "train",
    "train/a",
    "train.X1/a",
    "train.X2/b",
    "val/a",
    "test",
    ".hidden",
    "a b",
)
FILES = ("1.png", "2.PNG", "3.jpg", "4.heic", "notes.txt", "labels.csv", "f.npy", "s.tar", "none", ".h.png",
         "._1.png", "é.png", "5.gif")  # fmt: skip
TREE = st.dictionaries(
    st.tuples(st.sampled_from(FOLDERS), st.sampled_from(FILES)),
    st.sampled_from(["whole", "whole", "whole", "cut", "empty", "text"]), max_size=10,
)  # fmt: skip


def put(folder, tree):
    stream = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(stream, "PNG")
    whole = stream.getvalue()
    contents = {"whole": whole, "cut": whole[:40], "empty": b"", "text": b"text,label\na,b\n"}
    for (below, name), content in tree.items():
        path = Path(folder) / below / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[content])


@many
@given(tree=TREE, split=st.sampled_from([None, None, "train", "test"]))
def test_every_file_of_a_folder_of_images_is_an_item_or_left_out(tree, split):
    with TemporaryDirectory() as folder:
        put(folder, tree)
        try:
            source = read(folder, split=split)
        except QuerykeyError:
            return
        walk(source)
        if source.kind != "image" or source.ids[0] == "0":  # tables, or shards
            return
        given = {"/".join(filter(None, key)) for key in tree if ".hidden" not in key[0]}
        given = {path for path in given if not is_hidden(path.rpartition("/")[2])}
        counted = [*source.ids, *source.left_out]
        assert len(set(counted)) == len(counted)
        if set(counted) <= given:
            tops = {path.split("/")[0] for path in given if "/" in path}
            assert set(counted) == given or all(map(split_of, tops))  # the other splits are not asked for
            return
        # a split of one folder: paths begin inside it, but for what lies beside it
        tops = {path.split("/")[0] for path in given if "/" in path}
        assert all(map(split_of, tops))
        beside = {path for path in given if "/" not in path}
        inside = [{path[len(top) + 1 :] for path in given if path.startswith(f"{top}/")} for top in tops]
        empty = {f"{below.split('/')[0]}/" for below, _ in tree}  # or all that is in them is hidden
        assert any(set(counted) - empty == own | beside for own in inside)


def is_hidden(name):
    return name.startswith("._") or (name.startswith(".") and not name.endswith(".png"))


@pytest.mark.parametrize("name", ["1.png", "a/1.png"])
@many
@given(data=st.data())
def test_a_damaged_image_is_read_or_damaged(name, data):
    stream = io.BytesIO()
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]))
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(stream, kind)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, of damaged files
        path = Path(folder) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data.draw(damaged_bytes(stream.getvalue())))
        walk(read(folder))
