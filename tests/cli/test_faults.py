"""A user's mistake: one message that says what to do, exit code 2, and nothing left behind."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli.conftest import FAST, clusters

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def refused(querykey):
    """Run a command that must fail, and give its one message."""

    def run(*arguments, out=None, began=None):
        before = names(out.parent) if out is not None else None
        said = querykey(*arguments, *(() if out is None else ("--out", out)))
        assert said.code == 2, said.out
        assert said.out == ""
        steps, mark, message = said.err.partition("error: ")
        assert mark
        assert began in steps if began else steps == ""
        assert "Traceback" not in said.err
        if out is not None:
            assert names(out.parent) == before, "something was left behind"
        return message.rstrip("\n")

    return run


def save(path, X, y=None):
    np.savez(path, X=X, **({} if y is None else {"y": y}))
    return path


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder / "run"


def test_no_such_path(refused, tmp_path, out):
    missing = tmp_path / "none"
    for command in (("adapt", missing), ("embed", missing, "--model", "cli.models:letters")):
        assert f"there is nothing at {missing}" in refused(*command, out=out)
    assert f"there is nothing at {missing}" in refused("doctor", missing)


def test_no_such_run(refused, data, tmp_path):
    said = f"{tmp_path / 'none'}: no run here; make one with querykey adapt"
    assert refused("evaluate", tmp_path / "none", "--on", data / "test.npz") == said
    assert refused("search", tmp_path / "none", data / "test.npz", "--query", "1") == said


def test_an_empty_folder(refused, tmp_path, out):
    (tmp_path / "empty").mkdir()
    message = refused("embed", tmp_path / "empty", "--model", "cli.models:pixels", out=out)
    assert str(tmp_path / "empty") in message
    assert "empty" in message.replace(str(tmp_path), "")


def test_dim_above_the_width(refused, data, out):
    message = refused("adapt", data / "train.npz", "--dim", 13, out=out)
    assert message == "dim must be from 1 to the width of the features, 12; got 13"


def test_an_unknown_key_in_a_run_file(refused, data, tmp_path, out):
    run_file = tmp_path / "run.toml"
    run_file.write_text('dimm = 3\nlabels = "y"\n[loss]\ntemprature = 0.1\n')
    assert refused("adapt", data / "train.npz", "--run-file", run_file, out=out) == (
        f"{run_file}: cannot be run\n"
        "  loss.temprature: no such key; did you mean temperature?\n"
        "  dimm: no such key; did you mean dim?"
    )


def test_a_wrong_setting(refused, data, out):
    message = refused(
        "adapt", data / "train.npz", "--set", "loss.kind=tripplet", "--set", "steps=-1", out=out
    )
    assert message == (
        "the settings: cannot be run\n"
        "  steps: must be at least 0, got -1\n"
        "  loss.kind: no such kind 'tripplet'; did you mean triplet?"
    )


def test_an_output_that_exists(querykey, refused, labelled_run, data, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    message = f"{precious} exists already; give another path or remove it first"
    assert refused("adapt", data / "train.npz", out=precious) == message
    (tmp_path / "Z.npy").write_text("mine")
    assert "Z.npy exists already" in refused(
        "transform", labelled_run, data / "test.npz", out=tmp_path / "Z.npy"
    )
    evaluate = ("evaluate", labelled_run, "--on", data / "test.npz")
    assert "Z.npy exists already" in refused(*evaluate, out=tmp_path / "Z.npy")
    said = querykey(
        "embed", data / "texts.csv", "--column", "text", "--model", "cli.models:letters", "--out", precious
    )
    assert said.code == 2
    assert "precious exists already" in said.err
    assert (precious / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "Z.npy").read_text() == "mine"


@pytest.mark.parametrize(
    ("spoil", "word"),
    [(np.nan, "NaN"), (np.inf, "infinit"), (-np.inf, "infinit"), (0.0, "zero")],
    ids=["nan", "inf", "-inf", "zero"],
)
def test_rows_that_are_no_directions(refused, tmp_path, out, spoil, word):
    X, _ = clusters(60, 1)
    X[17] = spoil
    message = refused("adapt", save(tmp_path / "X.npz", X), out=out)
    assert word.lower() in message.lower()
    assert "17" in message


def test_rows_of_different_width(refused, labelled_run, tmp_path, out):
    X, _ = clusters(60, 1, width=7)
    path = save(tmp_path / "X.npz", X)
    message = f"{path}: rows are 7 wide; the run was fitted on 12"
    assert refused("transform", labelled_run, path, out=out.with_suffix(".npy")) == message
    assert refused("evaluate", labelled_run, "--on", path) == message
    (tmp_path / "ragged.jsonl").write_text('{"v": [1.0, 2.0]}\n{"v": [1.0]}\n')
    assert "ragged.jsonl" in refused("adapt", tmp_path / "ragged.jsonl", out=out)


def test_labels_missing(refused, querykey, data, tmp_path, out):
    X, _ = clusters(60, 1)
    path = save(tmp_path / "X.npz", X)
    assert "y" in refused("adapt", path, "--labels", "y", out=out)
    store = tmp_path / "store"
    arguments = (
        "embed",
        data / "texts.csv",
        "--column",
        "text",
        "--model",
        "cli.models:letters",
        "--out",
        store,
    )
    assert querykey(*arguments).code == 0
    message = refused("adapt", store, "--labels", "label", out=out)
    assert message == (
        f"{store} has no labels; make the features again with querykey embed and a label_column"
    )
    assert "no label column 'kind'" in refused("adapt", store, "--labels", "kind", out=out)


def test_one_class_only(refused, tmp_path, out):
    X, _ = clusters(60, 1)
    path = save(tmp_path / "X.npz", X, np.zeros(60, dtype=int))
    message = refused("adapt", path, "--labels", "y", out=out)
    assert "1 class" in message
    assert "at least 2" in message


def test_every_class_with_one_item_is_whitened_and_not_validated(querykey, tmp_path, out):
    X, _ = clusters(60, 1)
    path = save(tmp_path / "X.npz", X, np.arange(60))
    said = querykey("adapt", path, "--labels", "y", "--out", out)
    assert (said.code, said.err) == (0, "note: 60 rows to train on: lowered batch_size 128 to 60\n")
    assert "not validated: soft_whitening 0.25" in said.flat


def test_pairs_missing(refused, data, out):
    assert "pairs needs (query, document) pairs" in refused("adapt", data / "train.npz", "--pairs", out=out)


def test_labels_and_pairs_at_once(refused, data, out):
    message = refused("adapt", data / "train.npz", "--pairs", "--labels", "y", out=out)
    assert message.endswith("pairs: cannot be fitted together with labels; choose one")


def test_images_without_a_model(refused, tmp_path, out):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / f"{name}.png")
    message = refused("adapt", tmp_path / "photos", out=out)
    assert "querykey embed" in message


def test_a_store_whose_bytes_changed(refused, querykey, text_features, tmp_path, out):
    store = tmp_path / "store"
    shutil.copytree(text_features, store)
    with (store / "vectors.npy").open("r+b") as vectors:
        vectors.seek(-5, os.SEEK_END)
        vectors.write(b"\x01")
    message = refused("adapt", store, out=out)
    assert "its bytes were changed after it was written" in message
    assert "querykey embed" in message


def test_an_adapter_whose_bytes_changed(refused, labelled_run, data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(labelled_run, run)
    with (run / "adapter.safetensors").open("r+b") as weights:
        weights.seek(-3, os.SEEK_END)
        weights.write(b"\x01\x02\x03")
    message = refused("evaluate", run, "--on", data / "test.npz")
    assert "adapter.safetensors is damaged or was changed" in message


def test_a_damaged_run_file_of_a_run(refused, labelled_run, data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(labelled_run, run)
    (run / "run.json").write_text("{")
    assert "run.json is damaged" in refused("evaluate", run, "--on", data / "test.npz")


def test_features_of_another_model(refused, querykey, text_run, data, tmp_path):
    other = tmp_path / "other"
    querykey(
        "embed", data / "texts.csv", "--column", "text", "--model", "cli.models:other_letters", "--out", other
    )
    message = refused("evaluate", text_run, "--on", other)
    assert message == (
        f"{other}: features of cli.models:other_letters, and the run was fitted on features of "
        "cli.models:letters; embed with the same model"
    )
    assert refused("search", text_run, other, "--query", "plum") == message
    assert refused("transform", text_run, other, out=tmp_path / "Z.npy") == message


def test_a_text_query_to_features_without_a_model(refused, labelled_run, data):
    message = refused("search", labelled_run, data / "test.npz", "--query", "a plum")
    assert "its features do not name their model" in message
    assert "the id of a row" in message


def test_an_unknown_help_topic(refused):
    said = "help sauces: no such topic; there are sources, settings and pretraining"
    assert refused("help", "sauces") == said


def test_a_device_that_is_not_there(refused, data, out):
    assert "cpu always can" in refused("adapt", data / "train.npz", "--device", "cuda:77", out=out)


def test_an_array_format_that_does_not_exist(refused, labelled_run, data, tmp_path):
    message = refused("transform", labelled_run, data / "test.npz", out=tmp_path / "Z.xlsx")
    assert message == f"--out {tmp_path / 'Z.xlsx'}: must end in .npy or .safetensors"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("embedd",), "embed"),
        (("adapt",), "FEATURES"),
        (("adapt", "x", "--out", "y", "--dimm", "3"), "--dim"),
        (("adapt", "x", "--out", "y", "--dim", "three"), "'--dim'"),
    ],
)
def test_a_wrong_command_line(querykey, arguments, word):
    said = querykey(*arguments)
    assert said.code == 2
    assert word in said.err


# each place where a command writes: the disk is full from there on


def full_text(*_, **__):
    raise NO_SPACE


@pytest.mark.parametrize("place", ["os.write", "pathlib.Path.write_text"])
def test_a_full_disk_while_adapting(refused, data, out, monkeypatch, place):
    monkeypatch.setattr(place, full_text)
    message = refused(
        "adapt", data / "train.npz", "--dim", 4, *FAST, out=out, began="memory: loss about 1 MiB"
    )
    assert "the disk is full" in message or "No space left on device" in message
    assert str(out.name) in message


def test_a_full_disk_while_transforming(refused, labelled_run, data, out, monkeypatch):
    def half(path, rows, **_):
        Path(path).write_bytes(rows.tobytes()[:10])
        raise NO_SPACE

    monkeypatch.setattr(np, "save", half)
    target = out.with_suffix(".npy")
    assert refused("transform", labelled_run, data / "test.npz", out=target) == (
        f"{target}: the disk is full; free some space and run it again"
    )


def test_a_full_disk_while_reporting(querykey, refused, labelled_run, data, out, monkeypatch):
    evaluate = ("evaluate", labelled_run, "--on", data / "test.npz")
    assert querykey(*evaluate).code == 0  # the baseline is there from now on
    monkeypatch.setattr("pathlib.Path.write_text", full_text)
    target = out.with_suffix(".json")
    said = querykey(*evaluate, "--out", target)
    assert said.code == 2
    assert said.err == f"error: {target}: the disk is full; free some space and run it again\n"
    assert names(out.parent) == []


def test_a_full_disk_anywhere_else(querykey, data, monkeypatch):
    monkeypatch.setattr("querykey.cli.doctor.machine.measure_machine", full_text)
    said = querykey("doctor", data / "test.npz")
    assert (said.code, said.err) == (2, "error: the disk is full; free some space and run it again\n")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/secret"), 2, "error: no permission: /secret\n"),
        (MemoryError(), 2, "error: out of memory; use fewer rows or a smaller batch\n"),
    ],
)
def test_what_the_system_says_is_one_line(querykey, monkeypatch, error, code, message):
    def fail():
        raise error

    monkeypatch.setattr("querykey.cli.doctor.machine.measure_machine", fail)
    said = querykey("doctor")
    assert (said.code, said.err) == (code, message)
