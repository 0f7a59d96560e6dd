"""The estimator: scikit-learn's own conformance suite, and what it does not ask."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from querykey import Adapter
from querykey.adapter import fit
from querykey.distributed.process_group import ProcessGroup
from querykey.errors import (
    ConfigError,
    DataError,
    MissingPathError,
    ModelMismatchError,
    OutputExistsError,
    RangeError,
    ShapeError,
    StoreError,
)
from querykey.features.features import features_from_array
from querykey.losses.by_name import loss_names, takes_target


def test_scikit_learns_conformance_suite_passes():
    """In a process of its own: the suite passes types that the runtime type check of these tests refuses."""
    script = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from sklearn.utils.estimator_checks import check_estimator\n"
        "from querykey import Adapter\n"
        "checks = check_estimator(Adapter(steps=1))\n"
        "assert len(checks) > 40, len(checks)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_row_of_zeros_is_left_out_with_a_warning_and_many_are_an_error():
    X, y = blobs()
    X[3] = 0
    with pytest.warns(UserWarning, match="left 1 of 160 rows out of training: they are zero"):
        adapter = Adapter(dim=4, steps=2, batch_size=32).fit(X, y)
    assert np.isfinite(adapter.transform(X)).all()
    X[:20] = 0
    with pytest.raises(DataError, match="20 of 160 rows of X are zero and have no direction"):
        Adapter(dim=4, steps=2, batch_size=32).fit(X, y)


def blobs(classes=8, items=20, width=12, seed=0):
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(classes, width))
    y = np.repeat(np.arange(classes), items)
    return (centres[y] + draw.normal(size=(len(y), width))).astype(np.float32), y


@pytest.fixture(scope="module")
def fitted_once():
    X, y = blobs()
    return Adapter(dim=4, steps=30, batch_size=32).fit(X, y)


@pytest.fixture
def fitted(fitted_once):
    return copy.deepcopy(fitted_once)


def test_rows_come_out_with_length_one_in_float32(fitted):
    Z = fitted.transform(blobs(seed=1)[0])
    assert (Z.shape, Z.dtype) == ((160, 4), np.float32)
    np.testing.assert_allclose(np.linalg.norm(Z, axis=1), 1, atol=1e-6)


def names_of(adapter):
    return [one["name"] for one in adapter.candidates_]


def noisy(seed=0):
    """Sixty classes in eight columns, hidden from the frozen rows by noise in sixteen others."""
    draw = np.random.default_rng(seed)
    y = np.repeat(np.arange(60), 20)
    signal = draw.normal(size=(60, 8))[y] + 0.3 * draw.normal(size=(1200, 8))
    return np.hstack([signal, 1.2 * draw.normal(size=(1200, 16))]), y


def test_same_seed_same_bits():
    X, y = noisy()
    first, second, other = (
        Adapter(dim=4, steps=5, batch_size=32, random_state=s).fit(X, y).transform(X) for s in (0, 0, 1)
    )
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != other.tobytes()


def test_tensors_come_out_for_tensors(fitted):
    X = torch.from_numpy(blobs()[0])
    assert isinstance(fitted.transform(X), torch.Tensor)
    np.testing.assert_array_equal(fitted.transform(X).numpy(), fitted.transform(X.numpy()))


def test_works_in_a_pipeline_and_a_grid():
    X, y = blobs()
    grid = GridSearchCV(
        make_pipeline(PCA(8), Adapter(steps=2, batch_size=32)), {"adapter__dim": [2, 4]}, cv=2
    )
    grid.fit(X, y)
    assert grid.best_params_["adapter__dim"] == 4
    assert 0.5 < grid.best_score_ <= 1


def test_clone_and_set_output(fitted):
    assert clone(fitted).get_params() == fitted.get_params()
    assert fitted.get_feature_names_out().tolist() == ["adapter0", "adapter1", "adapter2", "adapter3"]


def test_labels_may_be_strings_and_unlabelled_rows_take_part():
    X, y = blobs()
    names = np.array(["abcdefgh"[c] for c in y])
    by_name, by_number = (Adapter(dim=4, steps=8, batch_size=32).fit(X, labels) for labels in (names, y))
    assert by_name.transform(X).tobytes() == by_number.transform(X).tobytes()
    some = np.where(np.arange(len(y)) % 3 == 0, -1, y)
    assert "trained nca" in names_of(Adapter(dim=4, steps=3, batch_size=32).fit(X, some))


def test_a_class_of_one_item_serves_as_negatives():
    X, y = blobs()
    y = y.copy()
    y[:5] = np.arange(100, 105)
    assert "trained nca" in names_of(Adapter(dim=4, steps=3, batch_size=32).fit(X, y))


def test_specialising_raises_recall_beyond_the_frozen_rows():
    X, y = noisy()
    adapter = Adapter(dim=24).fit(X[::2], y[::2])
    start = Adapter(dim=24, candidates="frozen", steps=0).fit(X[::2], y[::2])
    assert start.report_["verdict"] == "start kept"
    assert adapter.score(X[1::2], y[1::2]) > start.score(X[1::2], y[1::2]) + 0.2
    assert adapter.report_["verdict"] == "better"


def test_a_learning_rate_that_wrecks_the_layer_is_not_returned():
    X, y = noisy()
    adapter = Adapter(dim=12, steps=25, batch_size=32, learning_rate=1e3).fit(X, y)
    assert not adapter.report_["candidate"].startswith("trained")
    trained = [one for one in adapter.candidates_ if one["name"].startswith("trained")]
    assert trained
    assert all(one["score"] <= adapter.report_["best"] + 0.05 for one in trained)


def test_products_in_bfloat16_round_training_alone():
    X, y = blobs()
    fits = {
        name: Adapter(dim=4, steps=8, batch_size=32, precision=name).fit(X, y)
        for name in ("float32", "bfloat16")
    }
    rounded, exact = fits["bfloat16"], fits["float32"]
    assert rounded.fc_.weight.dtype == torch.float32
    np.testing.assert_allclose(np.linalg.norm(rounded.transform(X), axis=1), 1, atol=1e-6)
    trained = [
        [each["score"] for each in one.candidates_ if each["name"].startswith("trained")]
        for one in (rounded, exact)
    ]
    assert trained[0] != trained[1]
    assert trained[0] == pytest.approx(trained[1], abs=0.02)
    closed = [[each["score"] for each in one.candidates_[:5]] for one in (rounded, exact)]
    assert closed[0] == closed[1]


def test_the_faster_precision_is_measured_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("QUERYKEY_CACHE", str(tmp_path))
    X, y = blobs()
    auto = Adapter(dim=4, steps=2, batch_size=32, precision="auto")
    # what several processes send each other is JSON
    monkeypatch.setattr(ProcessGroup, "broadcast_object", lambda _, value: json.loads(json.dumps(value)))
    bits = set()
    for is_faster in (True, False):  # faster in bfloat16; under another load slower
        monkeypatch.setattr(fit, "is_clearly_faster", lambda *_, answer=is_faster: answer)
        adapter = auto.fit(X, y)
        assert adapter.settings_.precision == "bfloat16"
        bits.add(adapter.transform(X).tobytes())
    assert len(bits) == 1
    monkeypatch.setenv("QUERYKEY_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(fit, "is_clearly_faster", lambda *_: False)
    assert auto.fit(X, y).settings_.precision == "float32"


@pytest.mark.parametrize("name", loss_names())
def test_every_loss_needs_no_more_than_its_name(name):
    X, y = blobs()
    adapter = Adapter(dim=4, loss=name, steps=3, batch_size=32).fit(X, None if takes_target(name) else y)
    assert np.isfinite(adapter.transform(X)).all()
    assert adapter.settings_.loss.kind == name


def test_pairs_bring_queries_to_their_documents():
    draw = np.random.default_rng(0)
    D = draw.normal(size=(400, 16))
    Q = D * np.repeat([-1, 1], [6, 10]) + 0.1 * draw.normal(size=D.shape)  # six columns are turned round
    adapter = Adapter(dim=16, steps=150, side="query", learning_rate=0.03).fit_pairs(Q[:300], D[:300])

    def hits(queries, documents):
        return float(((queries @ documents.T).argmax(1) == np.arange(len(queries))).mean())

    unit = D / np.linalg.norm(D, axis=1, keepdims=True)
    assert (
        hits(adapter.transform(Q[300:]), adapter.transform_documents(D[300:]))
        > hits(Q[300:], unit[300:]) + 0.3
    )
    np.testing.assert_allclose(adapter.transform_documents(D), unit, atol=1e-6)


def test_pairs_may_be_many_to_many():
    X, _ = blobs()
    pairs = [(q, d) for q in range(60) for d in (q, q + 1)]
    adapter = Adapter(dim=6, steps=5, batch_size=16).fit_pairs(X[:60], X[:70] + 0.01, pairs=pairs)
    assert adapter.transform(X).shape == (160, 6)


def test_saved_and_loaded_it_gives_the_same_bits(fitted, tmp_path):
    X = blobs()[0]
    fitted.save(tmp_path / "adapter")
    loaded = Adapter.load(tmp_path / "adapter")
    assert loaded.transform(X).tobytes() == fitted.transform(X).tobytes()
    assert loaded.report_ == fitted.report_
    assert not [p for p in tmp_path.rglob("*") if p.suffix in {".pkl", ".pt", ".bin"}]
    with pytest.raises(OutputExistsError):
        fitted.save(tmp_path / "adapter")


def test_a_damaged_adapter_is_refused(fitted, tmp_path):
    fitted.save(tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    with pytest.raises(StoreError, match="damaged or was changed"):
        Adapter.load(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter.json").write_text("[]")
    with pytest.raises(StoreError, match="does not describe an adapter"):
        Adapter.load(tmp_path / "adapter")
    with pytest.raises(MissingPathError, match="no adapter here"):
        Adapter.load(tmp_path / "nowhere")


def test_features_of_another_model_are_refused_unless_allowed():
    X, y = blobs()
    adapter = Adapter(dim=4, steps=3, batch_size=32).fit(features_from_array(X, model_key="a" * 64), y)
    assert adapter.model_key_ == "a" * 64
    others = features_from_array(X, model_key="b" * 64)
    with pytest.raises(ModelMismatchError, match="embed with the same model, or pass any_model=True"):
        adapter.transform(others)
    assert adapter.transform(others, any_model=True).shape == (160, 4)
    assert adapter.transform(X).shape == (160, 4)


def test_one_row_a_class_is_whitened_and_not_validated():
    X, _ = blobs()
    adapter = Adapter(dim=4).fit(X, np.arange(160))
    assert adapter.report_["verdict"] == "not validated"
    assert adapter.report_["candidate"] == "soft_whitening 0.25"
    trained = Adapter(dim=4, steps=5).fit(X, np.arange(160))
    assert trained.report_["steps_taken"] == 5


def test_the_data_clip_batch_and_k_with_one_warning():
    X, y = blobs(classes=3, items=4)
    wanted = "12 rows to train on: lowered batch_size 128 to 12, selection.negatives 32 to 11"
    with pytest.warns(UserWarning, match=wanted) as seen:
        Adapter(dim=4, steps=2, negatives=32).fit(X, y)
    assert len(seen) == 1


def test_the_default_dim_is_64_or_the_width():
    X, _ = blobs()
    settings = Adapter(steps=0).fit(X).settings_
    assert (settings.dim, settings.dims, settings.sizes) == (12, (), (12,))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"dim": 13}, RangeError, "dim must be from 1 to the width of the features, 12; got 13"),
        ({"validation_fraction": 0.7}, RangeError, "validation_fraction: must be at most 0.5, got 0.7"),
        ({"batch_size": 1}, RangeError, "batch_size: must be at least 2, got 1"),
        ({"capacity": 64}, RangeError, "capacity 64 is below batch_size 128"),
        ({"side": "query", "dim": 4}, ConfigError, 'side="query" leaves documents 12 wide'),
        ({"loss": "score_distillation"}, ConfigError, "keeps the frozen scores and takes no labels"),
        (
            {"loss": "circle", "loss_options": {"temperature": 1}},
            ConfigError,
            "loss.temperature: no such key of this kind",
        ),
    ],
)
def test_invalid_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        Adapter(**settings).fit(*blobs())


def test_data_with_nothing_to_learn_are_refused():
    X, y = blobs()
    with pytest.raises(DataError, match="the labels name 1 class; at least 2 are needed"):
        Adapter(dim=4).fit(X, np.zeros(160, dtype=int))
    with pytest.raises(ShapeError, match=r"y has shape \(3,\) for 160 rows"):
        Adapter(dim=4).fit(X, y[:3])
    with pytest.raises(ShapeError, match="160 queries and 50 documents"):
        Adapter(dim=4).fit_pairs(X, X[:50])
    for hole in (0.0, np.nan, np.inf):
        holed = torch.from_numpy(X.copy())
        holed[3] = hole
        with pytest.raises(DataError, match="3"):
            Adapter(dim=4).fit(holed, y)
