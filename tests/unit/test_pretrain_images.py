"""Pretraining on images as they come: damaged ones, of several sizes, decoded by worker processes."""

import shutil

import pytest
import torch
from pretraining_toys import TINY, after, put_stripes

from querykey import pretrain, resume
from querykey.errors import DataError, SourceError
from querykey.training import calibration

HERE = TINY | {"batch_size": 8, "view_size": 12, "image_size": 16, "held_out": 2, "looks": 1, "steps": 3}


@pytest.fixture(autouse=True)
def _measured_at_once(monkeypatch):
    monkeypatch.setattr(calibration, "TRIALS", 1)
    monkeypatch.setattr(calibration, "STEADY_TRIALS", 1)


def weights(run):
    return run.encoder.encoder.state_dict()


def same(one, other):
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def test_a_damaged_image_is_left_out_with_one_note(tmp_path):
    images = put_stripes(tmp_path / "images")
    whole = (images / "down" / "3.png").read_bytes()
    (images / "down" / "3.png").write_bytes(whole[: len(whole) // 2])
    said, begun = [], []
    run = pretrain(images, notify=said.append, begin=begun.append, **HERE)
    assert run.is_finished
    assert len(said) == 1
    assert said[0].startswith("1 of 24 image cannot be decoded and is left out; the first: ")
    assert "3.png" in said[0]
    assert len(begun[0].images.pixels) == 23


def test_more_than_a_tenth_damaged_stops_it(tmp_path):
    images = put_stripes(tmp_path / "images")
    for number in range(4):
        (images / "down" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="more than a tenth of the 24 images cannot be decoded"):
        pretrain(images, out=tmp_path / "run", **HERE)
    assert not (tmp_path / "run").exists()


def test_images_decoded_by_workers_give_the_same_weights_as_held_ones(tmp_path):
    images = put_stripes(tmp_path / "images", channels=3)
    settings = HERE | {"views": "small_images"}
    held = pretrain(images, **settings)
    said = []
    state = torch.get_rng_state()
    by_workers = pretrain(
        images, memory_limit=0, workers=1, notify=said.append, out=tmp_path / "run", **settings
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert "decoded anew each time they are asked for, by 1 worker processes" in said[0]
    assert same(held, by_workers)
    alone = pretrain(images, memory_limit=0, workers=0, out=tmp_path / "parted", stop=after(1), **settings)
    assert not alone.is_finished
    assert same(held, resume(tmp_path / "parted", memory_limit=0, workers=0))


def test_one_set_of_workers_serves_the_whole_start(tmp_path, monkeypatch):
    """Calibration measures steps, not how long it takes to start processes."""
    made = []
    from querykey.data import pixel_batches

    class Counted(pixel_batches.RowLoader):
        def __init__(self, *given):
            made.append(1)
            super().__init__(*given)

    monkeypatch.setattr(calibration, "STEADY_TRIALS", 5)
    monkeypatch.setattr(pixel_batches, "RowLoader", Counted)
    images = put_stripes(tmp_path / "images")
    pretrain(images, memory_limit=0, workers=1, **HERE)
    assert len(made) <= 4


def test_modes_and_sizes_may_be_mixed(tmp_path):
    put_stripes(tmp_path / "images" / "gray", count=6, side=20)
    put_stripes(tmp_path / "images" / "colour", count=6, side=33, channels=3)
    run = pretrain(tmp_path / "images", **HERE | {"image_size": None, "views": "auto", "held_out": 0})
    assert run.encoder.channels == 3
    assert run.settings.image_size == 64
    assert run.report["end"]["effective_rank_h"] > 1


def test_what_holds_no_images(tmp_path):
    (tmp_path / "texts.csv").write_text("text\none\ntwo\n")
    with pytest.raises(SourceError, match="holds texts, not images"):
        pretrain(tmp_path / "texts.csv", column="text", **HERE)
    with pytest.raises(SourceError, match="nothing at"):
        pretrain(tmp_path / "none", **HERE)
    shutil.rmtree(tmp_path, ignore_errors=True)
