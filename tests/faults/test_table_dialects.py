"""Tables are read in the dialect they are written in, or refused: never as something else."""

import bz2
import codecs
import gzip
import json

import numpy as np
import pytest
from frozen_toys import text_encoder
from typer.testing import CliRunner

from querykey import Adapter
from querykey.cli.main import app
from querykey.data.readers import tables
from querykey.data.readers.open import read_source
from querykey.errors import DataWarning, SourceError
from querykey.features.embed import embed

ROWS = 64
TEXTS = [f"word {chr(97 + row % 26) * (1 + row % 5)} number {row}" for row in range(ROWS)]
LABELS = [("fruit", "metal")[row % 2] for row in range(ROWS)]


def written(delimiter=",", *, end="\n", quote=False, encoding="utf-8"):
    mark = '"' if quote else ""
    lines = [delimiter.join(("text", "label"))]
    lines += [
        delimiter.join((f"{mark}{text}{mark}", label)) for text, label in zip(TEXTS, LABELS, strict=True)
    ]
    return (end.join(lines) + end).encode(encoding)


DIALECTS = {
    "comma": ("t.csv", written()),
    "semicolon": ("t.csv", written(";")),
    "tab in csv": ("t.csv", written("\t")),
    "bar": ("t.csv", written("|")),
    "tsv": ("t.tsv", written("\t")),
    "comma in tsv": ("t.tsv", written(",")),
    "quoted, CRLF": ("t.csv", written(";", end="\r\n", quote=True)),
    "byte order mark": ("t.csv", codecs.BOM_UTF8 + written()),
    "UTF-16": ("T.CSV", written(";", encoding="utf-16")),
    "GZ": ("t.CSV.GZ", gzip.compress(written(";"))),
    "bz2": ("t.csv.Bz2", bz2.compress(written("\t"))),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_table_in_any_dialect_is_embedded_and_fitted(dialect, tmp_path):
    name, data = DIALECTS[dialect]
    (tmp_path / name).write_bytes(data)
    source = read_source(tmp_path / name)
    assert list(source.items) == TEXTS
    assert [source.label_names[label] for label in source.labels] == LABELS
    features = embed(source, text_encoder(), tmp_path / "f")
    assert len(features) == ROWS
    adapter = Adapter(dim=2, steps=0, batch_size=8, validation_fraction=0.0).fit(features, features.labels)
    assert adapter.transform(features).shape == (ROWS, 2)


def test_a_table_with_semicolons_is_never_one_column_with_the_label_inside(tmp_path):
    (tmp_path / "t.csv").write_text('text;label\n"1,5; and more";x\n2,5;y\n')
    source = read_source(tmp_path / "t.csv")
    assert list(source.items) == ["1,5; and more", "2,5"]
    assert source.label_names == ("x", "y")


def test_a_delimiter_that_does_not_fit_each_record_is_not_taken(tmp_path):
    (tmp_path / "t.csv").write_text("text;label\na;x\nb;y;z\n")
    with pytest.raises(SourceError, match=r"Expected 2 columns, got 3 in record 2 with the delimiter ;"):
        read_source(tmp_path / "t.csv")
    # as a user may mean it
    source = read_source(tmp_path / "t.csv", delimiter="none")
    assert list(source.items) == ["a;x", "b;y;z"]


def test_a_table_whose_delimiter_is_not_clear_is_refused_until_it_is_said(tmp_path):
    (tmp_path / "t.csv").write_text("text;label|note\na;x|n\nb;y|m\n")
    with pytest.raises(SourceError, match=r"separated by ; and \|; give one as delimiter"):
        read_source(tmp_path / "t.csv")
    assert list(read_source(tmp_path / "t.csv", column="text", delimiter=";").items) == ["a", "b"]


def test_one_column_with_delimiters_in_its_texts_is_said(tmp_path):
    (tmp_path / "t.csv").write_text("text\nhello, world; and more\nplain\n")
    with pytest.warns(DataWarning, match=r"is read as one column: its header 'text' has no delimiter"):
        source = read_source(tmp_path / "t.csv")
    assert list(source.items) == ["hello, world; and more", "plain"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("text,l\xe4bel\na,x\n".encode("latin-1"), "its header .* is not UTF-8 text; save the file as UTF-8"),
        ("text,label\n\xe4,x\n".encode("latin-1"), "the column 'text' is not UTF-8 text; save the file"),
        ("text,label\na,x\n".encode("utf-16-le"), "its header holds null characters"),
    ],
)
def test_another_encoding_is_named_whether_in_the_header_or_in_a_cell(data, message, tmp_path):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(SourceError, match=message):
        read_source(tmp_path / "t.csv")


def test_the_option_says_the_delimiter_of_what_is_embedded(tmp_path):
    (tmp_path / "t.csv").write_text("text;label|note\n" + "a;x|n\nb;y|m\n" * 8)
    given = ["embed", tmp_path / "t.csv", "--model", "cli.models:letters", "--out", tmp_path / "f",
             "--column", "text"]  # fmt: skip
    refused = CliRunner().invoke(app, [str(one) for one in given])
    assert refused.exit_code == 2
    assert "give one as delimiter" in refused.stderr
    done = CliRunner().invoke(app, [*map(str, given), "--delimiter", ";"])
    assert done.exit_code == 0, done.output
    with pytest.raises(SourceError, match="one character, tab, or none for one column; got 'semicolon'"):
        read_source(tmp_path / "t.csv", delimiter="semicolon")


def test_every_command_that_reads_a_table_takes_the_delimiter(tmp_path):
    """Embedded once with it, the same table is evaluated, searched, transformed and looked at with it."""
    (tmp_path / "t.csv").write_text(
        "text;label|note\n" + "".join(f"{x};{x < 'm'}|n\n" for x in "abcdefghnopqrstu")
    )
    table, features, run = tmp_path / "t.csv", tmp_path / "f", tmp_path / "run"

    def querykey(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    option = ("--column", "text", "--delimiter", ";")
    model = ("--model", "cli.models:letters")
    assert querykey("embed", table, *model, "--out", features, *option).exit_code == 0
    assert (
        querykey("adapt", features, "--out", run, "--dim", 2, "--set", "candidates=closed_form").exit_code
        == 0
    )
    for words in (
        ("evaluate", run, "--on", table), ("transform", run, table, "--out", tmp_path / "z.npy"),
        ("search", run, table, "--query", "b"), ("doctor", table), ("compare", run, features, "--on", table),
        ("adapt", table, "--out", tmp_path / "other"),
    ):  # fmt: skip
        refused = querykey(*words, "--column", "text")
        assert "give one as delimiter" in refused.stderr or words[0] == "compare", words
        done = querykey(*words, *option)
        expected = {"adapt": "contains texts", "compare": "no run here"}.get(words[0], "")
        assert done.exit_code == (2 if expected else 0), done.output
        assert expected in done.stderr
    given = querykey("evaluate", run, "--on", features, "--delimiter", ";")
    assert given.exit_code == 2
    assert "delimiter ';' is an option of querykey embed" in given.stderr


def test_an_idx_file_with_its_ending_in_capitals_is_read(tmp_path):
    pixels = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    head = bytes((0, 0, 8, 3)) + np.array(pixels.shape, ">u4").tobytes()
    (tmp_path / "train-images-idx3-ubyte.GZ").write_bytes(gzip.compress(head + pixels.tobytes()))
    labels = bytes((0, 0, 8, 1)) + np.array([2], ">u4").tobytes() + bytes((1, 0))
    (tmp_path / "train-labels-idx1-ubyte.GZ").write_bytes(gzip.compress(labels))
    source = read_source(tmp_path)
    assert len(source) == 2
    assert source.labels.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl"])
def test_a_record_that_is_larger_than_a_block_is_read(name, tmp_path, monkeypatch):
    """The blocks have 16 MB, and a record of more was "straddling two block boundaries"."""
    monkeypatch.setattr(tables, "_BLOCK_BYTES", 1 << 10)
    texts = ["short", "long " * 20_000, *["short"] * 50]
    lines = (
        [json.dumps({"text": text, "label": "a"}) for text in texts]
        if "jsonl" in name
        else ["text,label", *(f"{text},a" for text in texts)]
    )
    data = ("\n".join(lines) + "\n").encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read_source(tmp_path / name).items[1] == texts[1]
