"""Outputs have the permissions that the umask gives, whoever wrote their bytes."""

import os
import stat

import numpy as np
import pytest
from frozen_toys import WORDS, text_encoder, text_source
from safetensors.numpy import save_file

from querykey import Adapter, pretrain
from querykey.export import export_onnx, export_safetensors
from querykey.features.embed import embed
from querykey.io.atomic import new_file


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def assert_modes(path, umask):
    inside = [path, *path.rglob("*")] if path.is_dir() else [path]
    for one in inside:
        mode = stat.S_IMODE(one.stat().st_mode)
        if one.name == "lock":
            continue
        assert mode == (0o777 if one.is_dir() else 0o666) & ~umask, f"{one}: {mode:o}"


def test_the_weights_of_an_adapter_and_its_exports(tmp_path, umask):
    rows = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    adapter = Adapter(dims=[4, 2], bits=[8], steps=0, batch_size=8, validation_fraction=0.0)
    adapter.fit(rows, [0, 1] * 20).save(tmp_path / "model")
    export_safetensors(adapter.fc_, tmp_path / "tensors", dims=[2])
    export_onnx(adapter.fc_, tmp_path / "graph", dims=[2], codes=adapter.codes_)
    for name in ("model", "tensors", "graph"):
        assert_modes(tmp_path / name, umask)
    assert (tmp_path / "model" / "codes.safetensors").is_file()
    assert (tmp_path / "graph" / "codes.onnx").is_file()


def test_an_array_of_adapted_rows(tmp_path, umask):
    with new_file(tmp_path / "Z.safetensors") as file:
        save_file({"Z": np.zeros((2, 2), np.float32)}, file)
    assert_modes(tmp_path / "Z.safetensors", umask)


def test_a_store_of_features(tmp_path, umask):
    embed(text_source(WORDS), text_encoder(), tmp_path / "f")
    assert_modes(tmp_path / "f", umask)


def test_a_pretraining(tmp_path, umask):
    pretrain(
        "sklearn:digits",
        out=tmp_path / "run",
        method="simclr",
        backbone="small_cnn:4",
        batch_size=32,
        **{"head.dim": 16},
        precision="float32",
        layout="contiguous",
        held_out=40,
        num_evals=0,
        views="digits",
        **{"views.size": 8},
        steps=1,
    )
    assert_modes(tmp_path / "run", umask)
