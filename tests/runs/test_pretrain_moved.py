"""A run folder on another machine: other paths, another device, the same images."""

import json
import shutil

import pytest
from pretraining_toys import TINY, after, put_stripes

from querykey import pretrain
from querykey.data.readers.open import read_source
from querykey.errors import ConfigError, MissingPathError
from querykey.pretraining import autotune
from querykey.runs.pretrain import resume

HERE = TINY | {"steps": 4, "batch_size": 8, "views.size": None, "views": "auto", "held_out": 2}


@pytest.fixture(autouse=True)
def _measured_at_once(monkeypatch):
    monkeypatch.setattr(autotune, "TRIALS", 1)


@pytest.fixture
def moved(tmp_path):
    """A stopped run and its images, both at another place; and the same run, never stopped."""
    images, run = put_stripes(tmp_path / "here" / "images"), tmp_path / "here" / "run"
    whole = pretrain(images, **HERE)
    pretrain(images, out=run, stop=after(2), **HERE)
    (tmp_path / "here").rename(tmp_path / "there")
    return tmp_path / "there" / "run", tmp_path / "there" / "images", whole


def weights(run):
    return {name: value.tolist() for name, value in run.encoder.encoder.state_dict().items()}


def described(run):
    return json.loads((run / "run.json").read_text())


def test_images_that_were_moved_are_named_and_the_run_ends_with_the_same_bits(moved):
    run, images, whole = moved
    with pytest.raises(
        MissingPathError, match=r"images are not at .*here/images any more.*give their present place"
    ):
        resume(run)
    stopped = resume(run, images, stop=after(1))
    assert stopped.report["steps_taken"] == 3
    assert described(run)["data"]["at"]["spec"] == str(images)
    assert weights(resume(run)) == weights(whole)  # the new place is written down


def test_images_may_come_as_an_object(moved):
    run, images, whole = moved
    assert weights(resume(run, read_source(images))) == weights(whole)


def test_other_images_are_refused_by_their_fingerprint_whatever_their_path(moved):
    run, images, _ = moved
    shutil.copy(images / "down" / "0.png", images / "down" / "new.png")
    with pytest.raises(ConfigError, match="is not what the run was trained on: its fingerprint"):
        resume(run, images)
    assert described(run)["data"]["at"]["spec"] != str(images)


def test_a_device_that_is_not_there_is_one_message_and_another_may_be_named(moved):
    run, images, whole = moved
    for file in (run / "run.json", *(run / "checkpoints").glob("*.json")):
        # as on a machine with an accelerator; the checkpoint agrees
        text = json.loads(file.read_text())
        if "about" in text:
            text["version"] = 1  # without a checksum of the description
            text["about"]["run"]["device"] = "cuda:77"
        else:
            text["device"] = "cuda:77"
        file.write_text(json.dumps(text))
    with pytest.raises(ConfigError, match=r"was trained on cuda:77: .*give another device"):
        resume(run, images)
    said = []
    assert resume(run, images, device="cpu", stop=after(1), notify=said.append).report["steps_taken"] == 3
    assert any(words.startswith("device was cuda:77 and is cpu: numbers may differ") for words in said)
    assert described(run)["device"] == "cpu"
    assert {"step": 2, "device": "cpu"} in described(run)["changes"]
    assert weights(resume(run)) == weights(whole)
