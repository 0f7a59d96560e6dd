"""Runs beside each other: names, what differs, and scores that are those of an evaluation, pair by pair."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from querykey.errors import ConfigError, DataError, MissingPathError, ShapeError, StoreError
from querykey.evaluation.intervals import bootstrap_columns
from querykey.runs.adapt import adapt, load_run
from querykey.runs.adapter_settings import parse_run
from querykey.runs.compare import compare_runs
from querykey.runs.data import DataAt
from querykey.runs.diff import common_kind, differing, facts_of, unique_names
from querykey.runs.evaluate_adapter import evaluate_run

FIT = {"labels": "y", "dim": 4, "steps": 5, "batch_size": 32, "n_iter_no_change": 9}


def put_clusters(path, rows, seed, *, width=12):
    draw = np.random.default_rng(seed)
    centres, y = np.random.default_rng(0).normal(size=(6, width)), draw.integers(0, 6, rows)
    np.savez(path, X=(centres[y] + 0.8 * draw.normal(size=(rows, width))).astype(np.float32), y=y)
    return DataAt(str(path), label_column="y")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of data and adapters: `few` is fitted on other rows, `wide` on wider ones."""
    folder = tmp_path_factory.mktemp("runs")
    train, _ = put_clusters(folder / "train.npz", 240, 1), put_clusters(folder / "test.npz", 90, 2)
    few, wide = (
        put_clusters(folder / "few.npz", 120, 3),
        put_clusters(folder / "wide.npz", 100, 4, width=14),
    )
    runs = {
        "memory": (train, {}), "batch": (train, {"memory": {"kind": "in_batch"}, "dim": 3}),
        "margin": (train, {"loss": {"kind": "triplet", "margin": 0.2}}), "few": (few, {}), "wide": (wide, {}),
    }  # fmt: skip
    for name, (at, changed) in runs.items():
        adapt(at, parse_run(FIT | changed), folder / name)
    return folder


@pytest.fixture(scope="module")
def test_data(made):
    return DataAt(str(made / "test.npz"), label_column="y")


def both(made, *names, **how):
    notes = []
    found = compare_runs([made / name for name in names], notify=notes.append, **how)
    return found, notes


def test_a_run_is_named_by_as_many_folders_as_tell_it_from_the_others():
    folders = ["x/a/run", "x/b/run", "y/b/run", "x/other", "z/frozen"]
    assert list(unique_names(folders, reserved=["frozen"])) == [
        "a/run",
        "x/b/run",
        "y/b/run",
        "other",
        "z/frozen",
    ]
    assert [str(folder) for folder in unique_names(folders).values()] == folders
    assert list(unique_names(["run", "deeper/run"]))[1] == "deeper/run"


@pytest.mark.parametrize("folders", [["a"], []])
def test_one_run_cannot_be_compared(folders):
    with pytest.raises(ConfigError, match="at least two runs are needed"):
        unique_names(folders)


def test_a_run_is_not_compared_with_itself_by_whatever_name(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for other in ("link", "run/../run"):
        with pytest.raises(ConfigError, match="is given twice"):
            unique_names([tmp_path / "run", tmp_path / other])


def test_a_folder_that_is_no_run_is_refused(made, tmp_path):
    with pytest.raises(MissingPathError, match="no run here; a run is an output folder of querykey adapt or"):
        compare_runs([made / "memory", tmp_path])
    with pytest.raises(MissingPathError, match="nowhere: no run here"):
        compare_runs([made / "memory", tmp_path / "nowhere"])


def test_runs_of_two_kinds_are_refused(made, tmp_path):
    (tmp_path / "run.json").write_text('{"format": "querykey pretraining"}')
    with pytest.raises(ConfigError, match=r"memory is an adapter and .* a pretraining"):
        common_kind({"memory": made / "memory", "other": tmp_path})


def test_what_is_missing_in_one_run_differs_and_stays_missing():
    found = differing({"a": {"x": None, "y": [1], "z": 1}, "b": {"y": [1], "z": True, "w": 0.0}})
    assert found.values == {"x": {"a": None}, "w": {"b": 0.0}}
    assert found.same == 2


def test_settings_that_differ_have_dotted_names_and_the_others_are_counted(made):
    found, notes = both(made, "memory", "batch", "margin")
    settings = found.settings.values
    assert settings["dim"] == {"memory": 4, "batch": 3, "margin": 4}
    assert settings["memory.kind"] == {"memory": "cross_batch", "batch": "in_batch", "margin": "cross_batch"}
    assert settings["loss.margin"] == {"margin": 0.2}
    resolved = [facts_of(load_run(made / name)).settings for name in ("memory", "batch", "margin")]
    names = {name for one in resolved for name in one}
    assert found.settings.same == len(names) - len(settings)
    assert all(one[name] == resolved[0][name] for name in names - settings.keys() for one in resolved)
    assert found.origin.values == {}
    assert found.table is None
    assert notes == []


def test_what_runs_were_fitted_on_stands_where_it_differs(made):
    found, _ = both(made, "memory", "few")
    assert found.settings.values["selection.sampled"] == {"memory": 240, "few": 120}
    assert found.origin.values["rows"] == {"memory": 240, "few": 120}
    assert found.origin.values["fingerprint"].keys() == {"memory", "few"}
    assert "width" not in found.origin.values


def test_the_final_scores_are_those_of_the_run(made):
    found, _ = both(made, "memory", "batch")
    for name in ("memory", "batch"):
        report = json.loads((made / name / "run.json").read_text())["report"]
        assert found.ends["score of the reference"][name] == report["start"]
        assert found.ends["score of the candidate"][name] == report["best"]
        assert found.ends["steps"][name] == report["steps_taken"] > 0
        assert found.ends["verdict"][name] == report["verdict"]


def test_scores_are_those_of_an_evaluation_and_differences_are_paired(made, test_data):
    found, notes = both(made, "memory", "batch", "margin", on=test_data, seed=3)
    table = found.table
    assert list(table.cells) == ["memory", "batch", "margin", "frozen"]
    assert table.references == ("memory",)
    for name in ("memory", "batch", "margin"):
        alone = evaluate_run(load_run(made / name), test_data, seed=3)
        assert set(table.metrics) == set(alone.metrics) >= {"R@1", "kNN"}
        for metric in table.metrics:
            assert torch.equal(table.per_query[name][metric], alone.per_query["adapter"][metric])
            assert torch.equal(table.per_query["frozen"][metric], alone.per_query["frozen"][metric])
    for metric, first in table.per_query["memory"].items():
        assert table.cells["memory"][metric].against == {}
        difference = table.per_query["batch"][metric].double() - first.double()
        cell = table.cells["batch"][metric].against["memory"]
        assert cell.mean == pytest.approx(float(difference.mean()))
        alone = bootstrap_columns([difference], seed=3)[0]
        assert (cell.low, cell.high) == pytest.approx((alone.low, alone.high))
    assert notes == []


def test_the_order_of_runs_turns_the_signs_round(made, test_data):
    there, _ = both(made, "memory", "batch", on=test_data)
    back, _ = both(made, "batch", "memory", on=test_data)
    for metric in there.table.metrics:
        one = there.table.cells["batch"][metric].against["memory"]
        other = back.table.cells["memory"][metric].against["batch"]
        assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))


@pytest.mark.parametrize("rows", [120, 240])
def test_runs_of_other_rows_have_no_knn(made, test_data, tmp_path, rows):
    """As many rows as the first run had are still others, though arrays number both alike."""
    adapt(put_clusters(tmp_path / "train.npz", rows, 6), parse_run(FIT), tmp_path / "other")
    found, notes = both(made, "memory", tmp_path / "other", on=test_data)
    assert "kNN" not in found.table.metrics
    assert "R@1" in found.table.metrics
    assert notes == ["the runs were fitted on different items: kNN is left out"]


def test_a_warning_names_the_run_that_was_fitted_on_the_test_data(made):
    found, notes = both(made, "few", "memory", on=DataAt(str(made / "train.npz"), label_column="y"))
    assert len(notes) == 1
    assert "train.npz is what memory was fitted on; scores on new data are likely lower" in notes[0]
    assert "kNN" not in found.table.metrics


def test_training_features_that_are_gone_leave_retrieval(made, test_data, tmp_path):
    at = put_clusters(tmp_path / "gone.npz", 60, 5)
    for name in ("a", "b"):
        adapt(at, parse_run(FIT), tmp_path / name)
    (tmp_path / "gone.npz").unlink()
    found, notes = both(tmp_path, "a", "b", on=test_data)
    assert "R@1" in found.table.metrics
    assert "kNN" not in found.table.metrics
    assert len(notes) == 1
    assert notes[0].endswith("kNN is left out")


def test_without_labels_there_is_the_overlap_alone(made, tmp_path):
    np.savez(tmp_path / "plain.npz", X=np.load(made / "test.npz")["X"])
    found, notes = both(made, "memory", "few", on=DataAt(str(tmp_path / "plain.npz")))
    assert found.table.metrics == ("overlap@10",)
    assert notes == []


def test_features_that_fit_one_run_alone_are_refused(made, test_data):
    with pytest.raises(ShapeError, match="rows are 12 wide; the run was fitted on 14"):
        both(made, "memory", "wide", on=test_data)


def test_a_single_row_has_no_candidates(made, test_data, tmp_path):
    one = {name: values[:1] for name, values in np.load(made / "test.npz").items()}
    np.savez(tmp_path / "one.npz", **one)
    with pytest.raises(DataError, match="has 1 rows; at least 2 are needed"):
        both(made, "memory", "batch", on=replace(test_data, spec=str(tmp_path / "one.npz")))


def test_a_train_option_is_for_pretrainings(made, test_data):
    with pytest.raises(ConfigError, match="is an adapter; train is for pretraining runs"):
        both(made, "memory", "batch", on=test_data, train=test_data)


def test_a_saved_adapter_without_a_run_file_has_settings_and_scores(made, test_data, tmp_path):
    load_run(made / "memory").adapter.save(tmp_path / "bare")
    found, notes = both(made, "memory", tmp_path / "bare", on=test_data)
    assert found.settings.values == {}
    assert found.origin.values["rows"] == {"memory": 240}
    difference = found.table.cells["bare"]["R@1"].against["memory"]
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)
    assert notes == ["bare: the run does not record the location of its training features: kNN is left out"]


def test_records_of_no_use_are_one_message(made, tmp_path):
    described = json.loads((made / "memory" / "run.json").read_text()) | {"versions": "new"}
    for name in ("adapter.json", "adapter.safetensors"):
        (tmp_path / name).write_bytes((made / "memory" / name).read_bytes())
    (tmp_path / "run.json").write_text(json.dumps(described))
    with pytest.raises(StoreError, match=r"(?s)the record of the run is damaged .*; make the run again"):
        both(made, "memory", tmp_path)


def test_all_of_it_is_json(made, test_data):
    found, _ = both(made, "memory", "margin", on=test_data)
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert told["kind"] == "adapter"
    assert told["runs"] == {name: str(made / name) for name in ("memory", "margin")}
    assert told["settings"]["differ"]["loss.margin"] == {"margin": 0.2}
    assert told["ends"]["verdict"].keys() == {"memory", "margin"}
    assert told["table"]["methods"]["margin"]["metrics"]["R@1"]["against"].keys() == {"memory"}
    assert told["table"]["protocol"]["on"]["label_column"] == "y"
