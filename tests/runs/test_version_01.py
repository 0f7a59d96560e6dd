"""Folders that version 0.1 wrote are read, without a warning."""

import shutil
import warnings

import numpy as np
import pytest
from architecture.source import ROOT

from querykey import Adapter, load_encoder, read_source, resume
from querykey.runs.adapt import load_run
from querykey.runtime import load

FIXTURES = ROOT / "tests/fixtures"


def test_an_adapter_run_is_read_with_its_settings_under_their_new_names():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = load_run(FIXTURES / "run-0.1")
    assert (run.settings.dim, run.settings.labels, run.settings.steps) == (4, "y", 10)
    rows = np.eye(24, dtype=np.float32)
    np.testing.assert_allclose(
        run.adapter.transform(rows), load(FIXTURES / "run-0.1").transform(rows), rtol=0, atol=1e-6
    )
    assert isinstance(run.adapter, Adapter)


def test_a_pretraining_is_read_as_a_model():
    pytest.importorskip("PIL")
    source = read_source("sklearn:digits")
    assert load_encoder(FIXTURES / "pretraining-0.1").encode(source.items[:3]).shape == (3, 16)


def test_a_pretraining_is_trained_for_longer(tmp_path):
    folder = shutil.copytree(FIXTURES / "pretraining-0.1", tmp_path / "run")
    before = load_encoder(folder).key
    resume(folder, epochs=1.0)
    assert load_encoder(folder).key != before
