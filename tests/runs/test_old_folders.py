"""Folders that version 0.1 wrote are read, resumed and reported."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from querykey import load_encoder, resume
from querykey.cli.main import app
from querykey.errors import StoreError
from querykey.pretraining.saved_encoder import read_encoder
from querykey.runs.pretrain_folder import RunFolder

OLD = Path(__file__).parents[1] / "fixtures" / "pretraining-0.1"
"""photos: 24 images; run: stopped after 3 of 6 steps; finished: never stopped; rows.npy: h of 4 images."""


@pytest.fixture
def old(tmp_path):
    """A copy that may be written to."""
    return shutil.copytree(OLD, tmp_path / "old")


def first_images():
    return sorted((OLD / "photos").rglob("*.png"), key=lambda file: file.name)[:4]


def test_a_finished_pretraining_of_version_0_1_gives_the_same_rows():
    encoder = read_encoder(OLD / "finished").encoder
    pixels = np.stack([np.asarray(Image.open(file)) for file in first_images()])[:, None] / 255.0
    with torch.no_grad():
        h, _ = encoder(torch.from_numpy(pixels).float())
    np.testing.assert_allclose(h, np.load(OLD / "rows.npy"), atol=1e-6)
    shown = load_encoder(OLD / "finished").encode([Image.open(file) for file in first_images()])
    assert shown.shape == h.shape


def test_a_pretraining_that_version_0_1_began_is_resumed_to_the_same_weights(old):
    done = resume(old / "run", old / "photos")
    assert done.is_finished
    whole = read_encoder(OLD / "finished").encoder.state_dict()
    for name, value in done.encoder.encoder.state_dict().items():
        torch.testing.assert_close(value, whole[name], atol=1e-5, rtol=1e-4)
    assert RunFolder.read(old / "run").is_finished


def test_a_run_of_version_0_1_is_stopped_and_resumed_again(old):
    resume(old / "run", old / "photos", stop=lambda: True, save_every=0.0)
    done = resume(old / "run", old / "photos")
    whole = read_encoder(OLD / "finished").encoder.state_dict()
    for name, value in done.encoder.encoder.state_dict().items():
        torch.testing.assert_close(value, whole[name], atol=1e-5, rtol=1e-4)


def test_a_finished_pretraining_of_version_0_1_is_trained_for_longer(old):
    done = resume(old / "finished", old / "photos", epochs=4.0)
    assert (done.is_finished, done.settings.steps) == (True, 8)


def test_the_report_of_a_pretraining_of_version_0_1_has_a_command_that_repeats_it(old):
    told = CliRunner().invoke(app, ["report", str(old / "finished"), "--out", str(old / "page.html")])
    assert told.exit_code == 0, told.output
    page = (old / "page.html").read_text()
    for setting in ("key_encoder.momentum=0.9", "views.crop_scale=[0.5, 1.0]", "dictionary.capacity=12"):
        assert setting in page


@pytest.mark.parametrize(
    ("table", "key", "message"),
    [
        ("settings", "epochz", r"run.json: settings.epochz: no such key; did you mean epochs\?"),
        ("asked", "head.dims", r"run.json: asked.head.dims: no such key"),
        (None, "epochs", r"run.json: epochs: no such key; remove it"),
    ],
)
def test_a_key_of_run_json_that_does_not_exist_is_an_error(old, table, key, message):
    file = old / "run" / "run.json"
    described = json.loads(file.read_text())
    (described if table is None else described[table])[key] = 3
    file.write_text(json.dumps(described))
    with pytest.raises(StoreError, match=message):
        resume(old / "run", old / "photos")
