"""Every export serves every size, and codes with the bits of `Adapter.quantize`."""

import json
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from querykey import Adapter
from querykey.encoders.frozen.encoder import load_frozen_encoder
from querykey.encoders.heads import FCLayer
from querykey.errors import ExportError
from querykey.export import Origin, export_onnx, export_safetensors, export_sentence_transformer

WIDTH, DIMS = 24, (24, 16, 8)


def sized(kind="linear", side="both"):
    """An adapter with codes, in whose layer every parameter counts."""
    draw = np.random.default_rng(0)
    X = draw.standard_normal((120, WIDTH)).astype(np.float32)
    if side == "query":
        adapter = Adapter(bits=[8, 1], side="query", steps=0, batch_size=32).fit_pairs(X[:60], X[60:])
    else:
        adapter = Adapter(dims=DIMS, bits=[8, 1], fc=kind, steps=0, batch_size=32).fit(X)
    layer = FCLayer(WIDTH, WIDTH, kind=kind)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    adapter.fc_ = layer
    return adapter


def rows_of_all_magnitudes(count=500):
    draw = np.random.default_rng(2)
    return (draw.standard_normal((count, WIDTH)) * 10.0 ** draw.uniform(-20, 15, (count, 1))).astype("f4")


@pytest.mark.parametrize(
    ("kind", "side"),
    [("linear", "both"), ("residual", "both"), ("two_layer", "both"), ("linear", "query")],
)
def test_onnx_gives_every_size_and_the_same_codes(kind, side, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    adapter, X = sized(kind, side), rows_of_all_magnitudes()
    done = export_onnx(
        adapter.fc_, tmp_path / "out", origin=Origin(side), dims=adapter.settings_.sizes,
        codes=adapter.codes_,
    )  # fmt: skip
    assert done.files == ("README.md", "adapter.onnx", "codes.onnx")
    session = runtime.InferenceSession(str(tmp_path / "out" / "adapter.onnx"))
    for name, size in zip(session.get_outputs(), adapter.settings_.sizes, strict=True):
        assert name.name == ("embeddings" if size == WIDTH else f"embeddings_{size}")
        assert name.shape == ["rows", size]
        (Z,) = session.run([name.name], {"features": X})
        np.testing.assert_allclose(Z, adapter.transform(X, dim=size), rtol=0, atol=1e-5)
    session = runtime.InferenceSession(str(tmp_path / "out" / "codes.onnx"))
    assert len(session.get_outputs()) == len(adapter.codes_) == (2 if side == "query" else 6)
    for dim, bits in adapter.codes_:
        (codes,) = session.run([f"{'int8' if bits == 8 else 'bits'}_{dim}"], {"features": X})
        want = adapter.quantize(X, dim=dim, bits=bits)
        assert codes.dtype == want.dtype
        np.testing.assert_array_equal(codes, want)


def test_the_code_of_the_readme_gives_codes(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    adapter = sized()
    export_onnx(adapter.fc_, tmp_path / "out", dims=DIMS, codes=adapter.codes_)
    monkeypatch.chdir(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    names = {"features": rows_of_all_magnitudes(9)}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, names)
    np.testing.assert_array_equal(names["codes"], adapter.quantize(names["features"], dim=8, bits=1))
    assert "`embeddings_16`, `embeddings_8`" in text


def test_an_adapter_of_one_size_and_no_codes_has_one_file(tmp_path):
    pytest.importorskip("onnxruntime")
    assert export_onnx(sized().fc_, tmp_path / "out").files == ("README.md", "adapter.onnx")


def test_codes_that_differ_in_a_bit_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    adapter = sized()
    quantize = "querykey.runtime.forward.LoadedAdapter.quantize"
    monkeypatch.setattr(quantize, lambda *_, **__: np.zeros((1, WIDTH), dtype=np.int8))
    with pytest.raises(ExportError, match=r"codes.onnx gives other codes of 24 numbers at 8 bits"):
        export_onnx(adapter.fc_, tmp_path / "out", dims=DIMS, codes=adapter.codes_)
    assert list(tmp_path.iterdir()) == []


def test_plain_tensors_name_their_sizes(tmp_path):
    export_safetensors(sized().fc_, tmp_path / "out", dims=DIMS)
    assert json.loads((tmp_path / "out" / "fc.json").read_text())["dims"] == list(DIMS)


TEXTS = ["a cat", "dogs and birds", "zebra"]


@pytest.mark.parametrize("ends_with_normalize", [False, True])
def test_a_sentence_transformer_truncates_and_its_readme_makes_codes(ends_with_normalize, tmp_path):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    alphabet = "?abcdefghijklmnopqrstuvwxyz: "
    tokenizer = Tokenizer(models.WordLevel({one: n for n, one in enumerate(alphabet)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    weights = np.random.default_rng(3).normal(size=(len(alphabet), WIDTH)).astype(np.float32)
    modules = [StaticEmbedding(tokenizer, embedding_weights=weights)]
    modules += [Normalize()] if ends_with_normalize else []
    base = SentenceTransformer(
        modules=modules, device="cpu", prompts={"find": "find: "}, default_prompt_name="find"
    )
    base.save(str(tmp_path / "base"), create_model_card=False)
    encoder, adapter = load_frozen_encoder(f"st:{tmp_path / 'base'}"), sized()
    origin = Origin("both", encoder.key, encoder.spec, encoder.prompt, encoder.dtype)
    out = tmp_path / "out"
    export_sentence_transformer(adapter.fc_, out, origin=origin, dims=DIMS, codes=adapter.codes_)
    features = encoder.encode(TEXTS)
    for size in DIMS:
        model = SentenceTransformer(str(out), device="cpu", local_files_only=True, truncate_dim=size)
        Z = model.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
        with torch.no_grad():
            want = F.normalize(adapter.fc_(F.normalize(features, dim=1))[:, :size], dim=1)
        np.testing.assert_allclose(Z, want, rtol=0, atol=1e-5)
    adapter.save(tmp_path / "run")
    text = (out / "README.md").read_text()
    (code,) = re.findall(r"```python\n(from querykey.*?)```", text, re.DOTALL)
    names = {"texts": TEXTS, "SentenceTransformer": SentenceTransformer}
    exec(
        code.replace("PATH OF THIS FOLDER", str(out)).replace("PATH OF THE RUN", str(tmp_path / "run")), names
    )
    np.testing.assert_array_equal(names["codes"], adapter.quantize(features.numpy(), dim=8, bits=1))
