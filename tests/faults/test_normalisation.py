"""Rows of any magnitude are scaled to length 1."""

import json

import numpy as np
import onnxruntime
import pytest
import torch

from querykey import Adapter
from querykey.dictionaries.bank import MemoryBank
from querykey.encoders.heads import FCLayer
from querykey.evaluation.baselines import fit_baselines
from querykey.export import export_onnx, export_safetensors
from querykey.lookup.nearest import nearest
from querykey.losses import nt_xent
from querykey.runtime import load

ROWS = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
FACTORS = [1e25, 1e-30]


@pytest.mark.parametrize("factor", FACTORS)
def test_rows_of_any_magnitude_are_adapted_alike(factor):
    adapter = Adapter(dim=3, steps=0, batch_size=32).fit(ROWS.numpy())
    moved = adapter.transform((ROWS * factor).numpy())
    np.testing.assert_allclose(moved, adapter.transform(ROWS.numpy()), atol=1e-5)
    double = adapter.transform(ROWS.double().numpy() * 1e200)
    np.testing.assert_allclose(double, adapter.transform(ROWS.numpy()), atol=1e-5)


@pytest.mark.parametrize("factor", FACTORS)
def test_rows_of_any_magnitude_are_found_and_projected_alike(factor):
    assert nearest(ROWS * factor, ROWS, 5)[1].equal(nearest(ROWS, ROWS, 5)[1])
    assert nearest(ROWS, ROWS * factor, 5)[1].equal(nearest(ROWS, ROWS, 5)[1])
    for one in fit_baselines(ROWS, 4).values():
        torch.testing.assert_close(one.transform(ROWS * factor), one.transform(ROWS), atol=1e-5, rtol=0)


def test_a_loss_of_large_rows_is_that_of_their_directions():
    loss = nt_xent(ROWS * 1e25, ROWS.flip(1) * 1e25, temperature=0.5)
    torch.testing.assert_close(loss, nt_xent(ROWS, ROWS.flip(1), temperature=0.5))


@pytest.mark.parametrize("kind", ["linear", "two_layer", "residual"])
def test_an_exported_layer_scales_rows_of_any_magnitude(kind, tmp_path):
    fc = FCLayer(4, 4, kind=kind)
    with torch.no_grad():
        for weight in fc.parameters():
            weight.normal_(generator=torch.Generator().manual_seed(1))
    unit = torch.nn.functional.normalize(ROWS)
    expected = fc(unit).detach().numpy()
    export_onnx(fc, tmp_path / "onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "adapter.onnx"))
    for factor in FACTORS:
        (found,) = session.run(["embeddings"], {"features": (ROWS * factor).numpy()})
        np.testing.assert_allclose(found, expected, atol=1e-5)
    # the check of an export covers these magnitudes: lines of NumPy that lose them would be refused
    assert export_safetensors(fc, tmp_path / "plain").difference < 1e-5
    assert "np.abs(x).max" in " ".join(json.loads((tmp_path / "plain" / "fc.json").read_text())["how"])


@pytest.mark.parametrize("factor", FACTORS)
def test_a_layer_and_a_memory_bank_give_rows_of_length_one(factor):
    fc = FCLayer(4, 4, kind="residual")
    torch.testing.assert_close(fc(ROWS * factor).norm(dim=1), torch.ones(64))
    bank = MemoryBank(items=64, dim=4, momentum=0.0)
    bank.write(ROWS * factor, torch.arange(64))
    torch.testing.assert_close(bank.vectors.norm(dim=1), torch.ones(64))


@pytest.mark.parametrize("side", ["both", "query"])
def test_the_numpy_runtime_scales_rows_of_any_magnitude(side, tmp_path):
    adapter = Adapter(dim=4, steps=0, batch_size=32, side=side)
    adapter.fit_pairs(ROWS, ROWS.flip(1)) if side == "query" else adapter.fit(ROWS)
    adapter.save(tmp_path / "a")
    loaded = load(tmp_path / "a")
    for move in (loaded.transform, loaded.transform_documents):
        expected = move(ROWS.numpy())
        for rows in ((ROWS * 1e25).numpy(), (ROWS * 1e-30).numpy(), ROWS.double().numpy() * 1e200,
                     ROWS.double().numpy() * 1e-200):  # fmt: skip
            np.testing.assert_allclose(move(rows), expected, atol=1e-5)
            np.testing.assert_allclose(move(rows[0]), expected[0], atol=1e-5)
