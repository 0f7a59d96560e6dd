"""What the caller has set in PyTorch changes no result."""

import numpy as np
import pytest
import torch
from ambient import EXACT, default_dtype, threads
from frozen_toys import image_encoder, images, text_encoder, text_source
from pretraining_toys import DIGITS, TINY

from querykey import Adapter, load_encoder, pretrain
from querykey.evaluation.baselines import fit_baselines
from querykey.evaluation.knn import knn_predict
from querykey.evaluation.linear_evaluation import linear_evaluation
from querykey.export import export_onnx, export_safetensors
from querykey.features.embed import embed
from querykey.lookup.nearest import nearest
from querykey.runtime import load

ROWS = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 4


def moved(steps):
    return (
        Adapter(dim=3, steps=steps, batch_size=32, validation_fraction=0.0).fit(ROWS, LABELS).transform(ROWS)
    )


@pytest.fixture(scope="module")
def expected_rows():
    return {steps: moved(steps) for steps in (0, 5)}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("steps", [0, 5])
@pytest.mark.parametrize("state", EXACT)
def test_a_fit_is_the_same_in_every_state(state, steps, expected_rows):
    with EXACT[state]():
        found = moved(steps)
    assert found.dtype == torch.float32
    assert found.equal(expected_rows[steps])


TEXTS, IMAGES = text_encoder(), image_encoder()


def computed(folder):
    """What is measured, embedded, saved and exported, as arrays by name."""
    texts = text_source([f"word {chr(97 + row % 26) * (1 + row % 5)}" for row in range(20)])
    found = {"texts": embed(texts, TEXTS, folder / "f", batch_size=4).vectors}
    found["images"] = IMAGES.encode(images(3))
    found["scores"], found["nearest"] = nearest(ROWS[:8], ROWS, 3)
    found["kNN"] = knn_predict(ROWS[:48], LABELS[:48], ROWS[48:], k=3)
    linear = linear_evaluation(ROWS[:48], LABELS[:48], ROWS[48:], LABELS[48:], seed=0)
    found["linear"] = linear.correct
    for name, baseline in fit_baselines(ROWS, 2).items():
        found[name] = baseline.transform(ROWS)
    adapter = Adapter(dims=[3, 2], bits=[8], candidates="closed_form", batch_size=32, validation_fraction=0.0)
    adapter.fit(ROWS).save(folder / "a")
    found["codes"] = adapter.quantize(ROWS, dim=2)
    found["decoded"] = adapter.code(dim=2).decode(found["codes"])
    found["loaded"] = Adapter.load(folder / "a").transform(ROWS)
    found["NumPy"] = torch.from_numpy(load(folder / "a").transform(ROWS.numpy()))
    for name, export in (("onnx", export_onnx), ("safetensors", export_safetensors)):
        export(adapter.fc_, folder / name, dims=[2])
    return {name: np.asarray(value) for name, value in found.items()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return computed(tmp_path_factory.mktemp("expected"))


@pytest.mark.parametrize("state", EXACT)
def test_what_is_measured_embedded_and_exported_is_the_same_in_every_state(state, expected, tmp_path):
    with EXACT[state]():
        found = computed(tmp_path)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def pretrained():
    run = pretrain(DIGITS, method="moco", **TINY | {"num_evals": 0, "steps": 1})
    return load_encoder(run).encode([np.eye(8, dtype=np.float32)])


@pytest.fixture(scope="module")
def expected_h():
    return pretrained()


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("state", ["float64", "inference", "autocast", "meta", "deterministic"])
def test_a_pretraining_is_the_same_in_every_state(state, expected_h):
    with EXACT[state]():
        h = pretrained()
    assert h.dtype == torch.float32
    assert h.equal(expected_h)


def test_another_number_of_threads_changes_the_last_digits_at_most(expected_rows):
    with threads():
        found = moved(0)
        assert torch.get_num_threads() == 2
    torch.testing.assert_close(found, expected_rows[0], atol=1e-5, rtol=0)


def test_the_state_of_the_caller_comes_back(tmp_path):
    with default_dtype(torch.float64), torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(ValueError, match="NaN"):
            Adapter(dim=3, steps=0, batch_size=32).fit(ROWS * torch.nan)
        computed(tmp_path)
        assert torch.get_default_dtype() == torch.float64
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")


def test_rows_made_in_inference_mode_are_fitted():
    with torch.inference_mode():
        rows = ROWS.clone()
    assert Adapter(dim=3, steps=5, batch_size=32).fit(rows, LABELS).transform(rows).shape == (64, 3)
