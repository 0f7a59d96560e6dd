"""Pretraining on images as they come: damaged ones, of several sizes, decoded by worker processes."""

import shutil
from dataclasses import replace

import pytest
import torch
from pretraining_toys import TINY, after, put_stripes

from querykey import pretrain, read_source, resume
from querykey.errors import ConfigError, DataError, SourceError
from querykey.pretraining import autotune

HERE = TINY | {"batch_size": 8, "views.size": 12, "image_size": 16, "held_out": 2, "num_evals": 1, "steps": 3}


@pytest.fixture(autouse=True)
def _measured_at_once(monkeypatch):
    monkeypatch.setattr(autotune, "TRIALS", 1)
    monkeypatch.setattr(autotune, "STEADY_TRIALS", 1)


def weights(run):
    return run.encoder.encoder.state_dict()


def same(one, other):
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def test_a_damaged_image_is_left_out_with_one_note(tmp_path):
    images = put_stripes(tmp_path / "images")
    whole = (images / "down" / "3.png").read_bytes()
    (images / "down" / "3.png").write_bytes(whole[: len(whole) // 2])
    said, begun = [], []
    run = pretrain(images, notify=said.append, on_fit_start=begun.append, **HERE)
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
    assert "decoded on each access, by 1 worker processes" in said[0]
    assert same(held, by_workers)
    alone = pretrain(images, memory_limit=0, workers=0, out=tmp_path / "parted", stop=after(1), **settings)
    assert not alone.is_finished
    assert same(held, resume(tmp_path / "parted", memory_limit=0, workers=0))


def test_one_set_of_workers_serves_the_whole_start(tmp_path, monkeypatch):
    """Calibration measures steps, not how long it takes to start processes."""
    made = []
    from querykey.data.pixels import pixels as pixel_batches

    class Counted(pixel_batches.RowLoader):
        def __init__(self, *given):
            made.append(1)
            super().__init__(*given)

    monkeypatch.setattr(autotune, "STEADY_TRIALS", 5)
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


def _then_lost(images, *names):
    """For `on_fit_start`: images that are gone when the first step asks for them."""

    def lose(_):
        for name in names:
            (images / name).unlink()

    return lose


@pytest.mark.parametrize("method", ["simclr", "moco", "memory-bank", "xbm"])
def test_an_image_lost_amid_a_run_is_left_out_of_its_batches_and_told_once(method, tmp_path):
    images = put_stripes(tmp_path / "images", count=20)
    source, begun, said, taken = read_source(images), [], [], []

    def on_fit_start(course):
        begun.append(course)
        _then_lost(images, "down/3.png", "across/5.png")(course)
        walk = course.images.walk
        course.images.walk = lambda *given, **options: (
            taken.append(one) or one for one in walk(*given, **options)
        )

    settings = (
        HERE
        | {"method": method, "steps": 8, "num_evals": 4}
        | ({"batch_norm.groups": 2} if method == "moco" else {})
    )
    run = pretrain(
        images, memory_limit=0, workers=0, notify=said.append, on_fit_start=on_fit_start, **settings
    )
    assert run.is_finished
    (course,) = begun
    told = [words for words in said if "png" in words]
    assert len(told) == 2
    assert all(sum(name in words for words in told) == 1 for name in ("down/3.png", "across/5.png"))
    pixels = course.images.pixels
    lost = {source.ids.index("down/3.png"), source.ids.index("across/5.png")}
    assert {row for row, _ in pixels.damaged} == lost
    for pair in taken:
        rows = course.images.rows[pair.ids]
        assert not lost & set(rows.tolist())
        assert len(pair.view_1) == len(pair.view_2) == len(pair.ids)
        if pair.labels is not None:
            assert torch.equal(pair.labels, torch.from_numpy(source.labels)[rows])
    assert any(len(pair.ids) < 8 for pair in taken)


def test_views_of_a_batch_with_a_lost_image_are_those_of_the_images_that_are_left(tmp_path):
    images, begun = put_stripes(tmp_path / "images"), []
    pretrain(images, memory_limit=0, workers=0, on_fit_start=begun.append, **HERE | {"steps": 1})
    course = begun[0].images
    (whole,) = course.walk(0, 1)
    (images / read_source(images).ids[int(course.rows[whole.ids[2]])]).unlink()
    (left,) = course.walk(0, 1)
    kept = torch.tensor([0, 1, 3, 4, 5, 6, 7])
    assert torch.equal(left.ids, whole.ids[kept])
    assert torch.equal(left.view_1, whole.view_1[kept])
    assert torch.equal(left.view_2, whole.view_2[kept])


def test_the_second_view_may_differ_from_the_first(tmp_path):
    images, begun = put_stripes(tmp_path / "images", channels=3), []
    settings = HERE | {"views": "small_images", "seed": 4}
    second = {"blur": 1.0, "jitter_probability": 0.0}
    pretrain(images, on_fit_start=begun.append, stop=lambda: True, second_view=second, **settings)
    pretrain(images, on_fit_start=begun.append, stop=lambda: True, **settings)
    (apart,), (alike,) = (list(course.images.walk(0, 1)) for course in begun)
    assert torch.equal(apart.view_1, alike.view_1)
    first, other = begun[0].images.views
    assert other == replace(first, **second)
    assert begun[1].images.views == (first, first)
    found, _ = begun[0].images.pixels.batch(rows := begun[0].images.rows[apart.ids])
    assert torch.equal(apart.view_2, other(found, rows, seed=4, epoch=0, view=1))


def test_a_method_of_one_view_has_no_second(tmp_path):
    images = put_stripes(tmp_path / "images")
    with pytest.raises(ConfigError, match="xbm takes one view of an image; leave out second_view"):
        pretrain(images, method="xbm", second_view={"flip": 0.0}, **HERE)
