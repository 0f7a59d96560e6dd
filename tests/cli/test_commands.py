"""What each command makes and says, from data to an adapter that is used."""

import json
import re
import shutil
from importlib import import_module

import numpy as np
import pytest
import torch
from cli.conftest import FAST
from safetensors.numpy import load_file

from querykey import Adapter
from querykey.cli.main import COMMANDS
from querykey.config.settings import flat
from querykey.io.records import read

TIME = r"[\d.]+ (?:s|minutes|hours)"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_adapt_writes_a_run_that_loads(labelled_run, data):
    assert names(labelled_run.parent) == ["labelled"]
    assert {"adapter.json", "adapter.safetensors", "metrics.jsonl", "run.json"} <= set(names(labelled_run))
    run = json.loads((labelled_run / "run.json").read_text())
    assert run["settings"]["labels"] == "y"
    assert run["resolved"]["steps"] == 5
    assert run["features"]["at"]["spec"] == str(data / "train.npz")
    assert (run["features"]["rows"], run["features"]["width"]) == (240, 12)
    kinds = [record["kind"] for record in read(labelled_run / "metrics.jsonl")]
    assert kinds[-1] == "fit"
    assert set(kinds[:-1]) == {"step"}
    adapter = Adapter.load(labelled_run)
    assert adapter.fc_.dim == 4
    assert adapter.settings_.as_dict() == run["resolved"]


def test_adapt_says_what_it_did(querykey, data, tmp_path):
    said = querykey("adapt", data / "train.npz", "--out", tmp_path / "run", "--dim", 4, *FAST)
    assert said.code == 0
    assert "memory: loss about 1 MiB (dense, " in said.err
    assert "soft_whitening 0.25" in said.err
    assert f"{tmp_path / 'run'}: 12 -> 4, 10 steps" in said.flat
    assert "not validated: trained distillation; nothing here can tell what it is worth" in said.flat
    assert "closed form soft_whitening" in " ".join(said.flat.split())


def test_adapt_shows_start_closed_form_and_trained_with_their_intervals(querykey, data, tmp_path):
    said = querykey(
        "adapt", data / "train.npz", "--out", tmp_path / "run", "--labels", "y", "--dim", 4, *FAST
    )
    kinds = ("start  ", "closed form ", "trained ")
    lines = [line for line in said.out.splitlines() if line.strip().startswith(kinds)]
    assert [line.split()[0] for line in lines] == ["start", "closed", "trained"]
    assert lines[1].split()[-2].startswith("[")
    assert all(len(line) <= 80 for line in lines)


def test_the_same_seed_gives_the_same_run(querykey, data, tmp_path):
    outs = [tmp_path / name for name in ("a", "b", "c")]
    for out, seed in zip(outs, (3, 3, 4), strict=True):
        querykey(
            "adapt",
            data / "train.npz",
            "--out",
            out,
            "--dim",
            4,
            "--seed",
            seed,
            "--set",
            "n_iter_no_change=99",
            *FAST,
        )
    weights = [(out / "adapter.safetensors").read_bytes() for out in outs]
    assert weights[0] == weights[1]


def test_a_run_file_says_the_same_as_options(querykey, data, tmp_path):
    (tmp_path / "run.toml").write_text(
        'labels = "y"\ndim = 4\nsteps = 5\nbatch_size = 32\nn_iter_no_change = 9\n'
    )
    querykey("adapt", data / "train.npz", "--out", tmp_path / "a", "--run-file", tmp_path / "run.toml")
    querykey("adapt", data / "train.npz", "--out", tmp_path / "b", "--labels", "y", "--dim", 4, *FAST)
    settings = [json.loads((tmp_path / name / "run.json").read_text())["settings"] for name in "ab"]
    assert settings[0] == settings[1]
    weights = [(tmp_path / name / "adapter.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_a_resolved_run_can_be_fitted_again(querykey, labelled_run, data, tmp_path):
    """run.json holds all that a fit needs: the same settings give the same weights."""
    settings = json.loads((labelled_run / "run.json").read_text())["settings"]
    given = [f"{key}={json.dumps(value)}" for key, value in flat(settings).items() if value is not None]
    options = [part for setting in given for part in ("--set", setting)]
    querykey("adapt", data / "train.npz", "--out", tmp_path / "again", *options)
    again = (tmp_path / "again" / "adapter.safetensors").read_bytes()
    assert again == (labelled_run / "adapter.safetensors").read_bytes()


def test_what_was_lowered_for_the_data_is_a_note(querykey, data, tmp_path):
    said = querykey(
        "adapt", data / "train.npz", "--out", tmp_path / "run", "--set", "batch_size=4000", "--set", "steps=1"
    )
    assert said.code == 0
    assert said.err.startswith("note: ")
    assert "lowered batch_size 4000 to" in said.err
    assert ".py" not in said.err


def test_evaluate_stands_beside_every_baseline(querykey, labelled_run, data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(labelled_run, run)
    shutil.rmtree(run / "baselines", ignore_errors=True)
    said = querykey("evaluate", run, "--on", data / "test.npz", "--out", tmp_path / "report.json")
    assert said.code == 0, said.err
    methods = [
        "frozen",
        "truncated",
        "pca",
        "whitened_pca",
        "random_projection",
        "lda",
        "no_memory",
        "adapter",
    ]
    for method in methods:
        assert f"\n{method}" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(methods) <= set(report["methods"])
    assert report["protocol"]["baselines_fitted_on"] == "the training items"
    assert report["protocol"]["trained_on"]["rows"] == 240
    assert "no_memory" in names(run / "baselines")
    assert "fitting the same FC layer without a memory" in said.err
    # the second time it is there
    again = querykey("evaluate", run, "--on", data / "test.npz")
    assert again.err == ""
    assert again.out.splitlines()[2] == said.out.splitlines()[2]


def test_the_baseline_without_memory_differs_in_the_memory_alone(querykey, labelled_run, data):
    querykey("evaluate", labelled_run, "--on", data / "test.npz")
    plain, full = (
        json.loads((folder / "run.json").read_text())["settings"]
        for folder in (labelled_run / "baselines" / "no_memory", labelled_run)
    )
    assert plain.pop("memory") == full.pop("memory") | {"kind": "in_batch"}
    assert plain == full


def test_evaluate_says_when_it_sees_the_training_rows(querykey, labelled_run, data):
    said = querykey("evaluate", labelled_run, "--on", data / "train.npz")
    assert said.code == 0
    assert "is what the run was fitted on" in said.err
    head = said.out.splitlines()[0]
    assert "R@1" in head
    assert "kNN" not in head  # each row would find itself


def test_evaluate_goes_on_without_the_training_features(querykey, data, tmp_path):
    shutil.copy(data / "train.npz", tmp_path / "train.npz")
    querykey("adapt", tmp_path / "train.npz", "--out", tmp_path / "run", "--dim", 4, "--labels", "y", *FAST)
    (tmp_path / "train.npz").unlink()
    said = querykey("evaluate", tmp_path / "run", "--on", data / "test.npz")
    assert said.code == 0
    assert "the training features cannot be read" in said.err
    shutil.copy(data / "test.npz", tmp_path / "train.npz")
    said = querykey("evaluate", tmp_path / "run", "--on", data / "test.npz")
    assert "has changed since the fit: baselines are fitted on the test rows" in said.err


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_transform_writes_unit_rows(querykey, labelled_run, data, tmp_path, suffix):
    out = tmp_path / f"Z{suffix}"
    said = querykey("transform", labelled_run, data / "test.npz", "--out", out)
    assert said.code == 0
    Z = np.load(out) if suffix == ".npy" else load_file(out)["Z"]
    assert (Z.shape, Z.dtype) == ((90, 4), np.float32)
    np.testing.assert_allclose(np.linalg.norm(Z, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(Z, Adapter.load(labelled_run).transform(np.load(data / "test.npz")["X"]))
    assert names(tmp_path) == [out.name]


def test_search_by_id_shows_before_and_after(querykey, labelled_run, data):
    said = querykey("search", labelled_run, data / "test.npz", "--query", "7", "-k", 3)
    assert said.code == 0
    before, after = said.out.split("after: through the adapter")
    assert "before: the frozen features" in before
    for part in (before, after):
        rows = [line.split() for line in part.splitlines() if line.strip()[:1].isdigit()]
        assert [row[0] for row in rows] == ["1", "2", "3"]
        assert "7" not in [row[-2] for row in rows]  # a row does not find itself


def test_search_by_text_asks_the_model_of_the_features(querykey, text_run, text_features):
    said = querykey("search", text_run, text_features, "--query", "plum and fig")
    assert said.code == 0, said.err
    first = next(line for line in said.out.splitlines() if line.strip().startswith("1 "))
    assert "1.000" in first
    assert "plum and fig" in first or "fig and plum" in first
    assert "fruit" in first


def test_a_source_is_embedded_once_to_be_evaluated(querykey, text_run, data):
    arguments = (
        "evaluate",
        text_run,
        "--on",
        data / "texts.csv",
        "--column",
        "text",
        "--label-column",
        "kind",
    )
    said = querykey(*arguments)
    assert said.code == 0, said.err
    assert "\nadapter" in said.out
    (cached,) = (text_run / "cache").iterdir()
    written = (cached / "meta.json").stat().st_mtime_ns
    assert querykey(*arguments).code == 0
    assert (cached / "meta.json").stat().st_mtime_ns == written


def test_a_run_is_a_model(querykey, text_run, data, tmp_path):
    out = tmp_path / "adapted"
    said = querykey("embed", data / "texts.csv", "--model", text_run, "--out", out, "--column", "text")
    assert said.code == 0, said.err
    assert "32 rows of 4 numbers" in said.flat
    stored = np.load(out / "vectors.npy")
    np.testing.assert_allclose(np.linalg.norm(stored, axis=1), 1, rtol=1e-5)


def test_pairs_and_queries_alone(querykey, data, tmp_path):
    """side=query: documents stay as they are, queries are transformed at full width."""
    features, run = tmp_path / "features", tmp_path / "run"
    said = querykey(
        "embed", data / "texts.csv", "--model", "cli.models:letters", "--out", features, "--column", "text",
        "--pair-column", "question",
    )  # fmt: skip
    assert said.code == 0, said.err
    said = querykey("adapt", features, "--out", run, "--pairs", "--side", "query", *FAST)
    assert said.code == 0, said.err
    said = querykey("evaluate", run, "--on", features)
    assert said.code == 0, said.err
    assert "NDCG@10" in said.out
    # a fit this short may return its start, which moves nothing; this one does
    moved = Adapter.load(run)
    with torch.no_grad():
        moved.fc_.weight.copy_(torch.eye(32).roll(1, dims=0))
    moved.save(tmp_path / "moved")
    for option, side in (((), "items"), (("--queries",), "queries")):
        out = tmp_path / f"{side}.npy"
        assert querykey("transform", tmp_path / "moved", features, "--out", out, *option).code == 0
    frozen = np.load(features / "vectors.npy")
    frozen = frozen / np.linalg.norm(frozen, axis=1, keepdims=True)
    np.testing.assert_allclose(np.load(tmp_path / "items.npy"), frozen, atol=1e-6)
    asked = np.load(features / "queries" / "vectors.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "queries.npy"), moved.transform(asked))
    assert np.load(tmp_path / "queries.npy").shape == (8, 32)
    said = querykey("embed", data / "texts.csv", "--model", run, "--out", tmp_path / "x", "--column", "text")
    assert said.code == 2
    assert "transforms only queries" in said.err


def test_embed_does_nothing_the_second_time(querykey, data, tmp_path):
    arguments = ("embed", data / "texts.csv", "--column", "text", "--out", tmp_path / "f", "--model")
    assert querykey(*arguments, "cli.models:letters").code == 0
    written = (tmp_path / "f" / "vectors.npy").stat().st_mtime_ns
    assert querykey(*arguments, "cli.models:letters").err == ""
    assert (tmp_path / "f" / "vectors.npy").stat().st_mtime_ns == written
    said = querykey(*arguments, "cli.models:other_letters")
    assert "embedding again" in said.err
    assert (tmp_path / "f" / "vectors.npy").stat().st_mtime_ns != written


def test_doctor_says_what_to_type(querykey, data, text_features):
    assert "Give a SOURCE or FEATURES" in querykey("doctor").flat
    said = querykey("doctor", data / "train.npz")
    assert said.code == 0
    assert f"querykey adapt {data / 'train.npz'} --out RUN --labels y" in said.out
    assert "240 rows in 6 classes" in said.out
    said = querykey("doctor", text_features)
    assert f"querykey adapt {text_features} --out RUN --labels label" in said.out
    assert "cli.models:letters" in said.out
    assert "rows are few" in said.flat
    assert re.search(rf"cost: about {TIME}, {TIME} of it training of [\d,]+ steps; \d+ MiB", said.flat)
    said = querykey("doctor", data / "texts.csv", "--column", "text")
    assert "32 texts" in said.out
    said = querykey("doctor", data / "texts.csv", "--column", "text", "--model", "cli.models:letters")
    assert re.search(rf"cost: about {TIME} for 32 items \(batches of \d+\)", said.flat)
    assert "querykey embed" in said.out


def test_what_doctor_says_to_type_works(querykey, data, tmp_path):
    said = querykey("doctor", data / "train.npz")
    command = next(line for line in said.out.splitlines() if line.startswith("use:")).split("querykey ", 1)[1]
    arguments = command.replace("RUN", str(tmp_path / "run")).split()
    assert querykey(*arguments, *FAST).code == 0


def test_doctor_warns_of_traps(querykey, tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 80)).astype(np.float32)
    X[1::2] = X[::2]
    y = np.zeros(60, dtype=int)
    np.savez(tmp_path / "one.npz", X=X, y=y)
    said = querykey("doctor", tmp_path / "one.npz").flat
    assert "all labels are of one class" in said
    assert "50% of the rows repeat an earlier one" in said
    assert "fewer rows than dimensions (60 < 80)" in said
    assert "--labels y" not in said
    y[:] = np.arange(60)
    np.savez(tmp_path / "many.npz", X=X, y=y)
    assert "every class has one row" in querykey("doctor", tmp_path / "many.npz").flat
    y[:] = np.arange(60) // 2
    y[:2], y[59] = -1, 99
    np.savez(tmp_path / "some.npz", X=X, y=y)
    said = querykey("doctor", tmp_path / "some.npz").flat
    assert "2 of 30 classes have one row" in said
    assert "2 rows have no label" in said


def test_help_explains_the_grammar(querykey):
    said = querykey("help", "sources")
    assert "hf:NAME" in said.out
    assert "timm:NAME" in said.out
    assert "BEIR" in said.out
    assert "loss.temperature" in querykey("help", "settings").out
    assert "querykey help sources" in querykey("help").out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_lists_each_command_by_its_own_first_line(querykey, name):
    module, function, line = COMMANDS[name]
    command = getattr(import_module(f"querykey.cli.{module}"), function)
    assert command.__doc__.splitlines()[0] == line
    said = querykey(name, "--help")
    assert said.code == 0
    assert line.split()[0] in said.out
    assert line in querykey("--help").flat
