"""Readers of files that may be damaged or a stranger's: what comes out is an answer or a QuerykeyError.

`make soak` tries many more (FUZZ_EXAMPLES).
"""

import os
from contextlib import suppress

import numpy as np
import pytest
import torch
from damaging import damaged_bytes, damaged_json, in_place
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pretraining_toys import DIGITS, TINY, after

from querykey import Adapter, pretrain
from querykey.adapter.checkpoint import read_saved
from querykey.errors import DataWarning, QuerykeyError
from querykey.features.features import features_from_array, read_features, write_features
from querykey.io.records import read
from querykey.pretraining import autotune
from querykey.pretraining.checkpoint import latest_checkpoint
from querykey.pretraining.saved_encoder import read_encoder
from querykey.pretraining.settings.methods import given_settings
from querykey.pretraining.settings.resolve import resolve_settings
from querykey.runs.adapt import adapt, load_run
from querykey.runs.adapter_settings import read_run
from querykey.runs.data import DataAt
from querykey.runs.pretrain_folder import RunFolder, is_pretraining
from querykey.runs.pretrain_settings import read_pretrain_run

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
many = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES <= 40, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip

PRETRAIN_TOML = b"""
data = "photos"
method = "moco-v2"
minutes = 2.5
batch_size = 64
seed = 3
backbone = { name = "small_cnn:8", stem = "small" }
loss = { kind = "info_nce", temperature = 0.2 }
[dictionary]
capacity = 512
[views]
crop_scale = [0.2, 1.0]
flip = 0.5
"""
ADAPT_TOML = b"""
dim = 16
steps = 100
labels = "y"
loss = { kind = "info_nce", temperature = 0.1 }
memory = { kind = "cross_batch", capacity = 512 }
[selection]
negatives = 10
"""


def read_settings(path):
    run = read_pretrain_run(path)
    run.pop("data", None)
    save_every, keep = run.pop("save_every", None), run.pop("keep", None)
    asked = given_settings(**run)
    resolve_settings(asked, images=5000, channels=3, side=32)
    return save_every, keep


def read_pretraining(file):
    folder = file.parent
    is_pretraining(folder)
    run = RunFolder.read(folder)
    with suppress(QuerykeyError):
        run.require_unchanged(latest_checkpoint(folder / "checkpoints").about)
        run.prepare_resume(save_every=None)
    return run.at, run.settings, run.decoded_size


def read_store(file):
    folder = file.parent
    features = read_features(folder, verify=True)
    return np.asarray(features.vectors).sum(), list(features.ids), list(features.previews), features.labels


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Of each kind a whole file, by name: (file, reader)."""
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "TRIALS", 1)
        patch.setattr(autotune, "STEADY_TRIALS", 1)
        pretrain(DIGITS, out=folder / "run", steps=2, **TINY | {"num_evals": 0})
        pretrain(DIGITS, out=folder / "half", steps=2, stop=after(1), **TINY | {"num_evals": 0})
    rows = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    np.savez(folder / "X.npz", X=rows.numpy())
    write_features(features_from_array(rows, [row % 3 for row in range(60)]), folder / "store")
    adapt(
        DataAt(str(folder / "X.npz"), None, None, None, None),
        read_run(None, ["steps=2", "dim=3", "batch_size=16"]),
        folder / "adapted",
    )
    (folder / "pretrain.toml").write_bytes(PRETRAIN_TOML)
    (folder / "adapt.toml").write_bytes(ADAPT_TOML)
    kept, half = folder / "half" / "checkpoints" / "step-000000001", folder / "half"

    def of_folder(reader):
        return lambda file: reader(file.parent)

    return {
        "run file": (folder / "pretrain.toml", read_settings),
        "adapter's run file": (folder / "adapt.toml", read_run),
        "checkpoint": (kept.with_suffix(".safetensors"), of_folder(latest_checkpoint)),
        "checkpoint.json": (kept.with_suffix(".json"), of_folder(latest_checkpoint)),
        "run.json": (half / "run.json", read_pretraining),
        "metrics": (half / "metrics.jsonl", read),
        "encoder": (folder / "run" / "encoder.safetensors", of_folder(read_encoder)),
        "encoder.json": (folder / "run" / "encoder.json", of_folder(read_encoder)),
        "adapter": (folder / "adapted" / "adapter.safetensors", of_folder(read_saved)),
        "adapter.json": (folder / "adapted" / "adapter.json", of_folder(Adapter.load)),
        "adapter's run.json": (folder / "adapted" / "run.json", of_folder(load_run)),
        "store meta.json": (folder / "store" / "meta.json", read_store),
        "store vectors": (folder / "store" / "vectors.npy", read_store),
        "store items": (folder / "store" / "items.parquet", read_store),
        "arrays": (folder / "X.npz", read_features),
    }  # fmt: skip


KINDS = (
    "run file", "adapter's run file", "checkpoint", "checkpoint.json", "run.json", "metrics", "encoder",
    "encoder.json", "adapter", "adapter.json", "adapter's run.json", "store meta.json", "store vectors",
    "store items", "arrays",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_are_read(files, kind):
    file, reader = files[kind]
    assert reader(file) is not None


@pytest.mark.parametrize("kind", KINDS)
@many
@given(data=st.data())
def test_damaged_bytes_give_a_result_or_a_querykey_error(files, kind, data):
    file, reader = files[kind]
    with in_place(file, data.draw(damaged_bytes(file.read_bytes()))), suppress(QuerykeyError, DataWarning):
        reader(file)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.endswith(".json")])
@many
@given(data=st.data())
def test_replaced_json_values_give_a_result_or_a_querykey_error(files, kind, data):
    file, reader = files[kind]
    with in_place(file, data.draw(damaged_json(file.read_bytes()))), suppress(QuerykeyError, DataWarning):
        reader(file)
