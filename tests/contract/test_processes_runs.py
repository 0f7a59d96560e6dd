"""Whole runs over processes: what is measured, looked at, saved and stopped is the same for all."""

import pytest
import torch
from process_courses import STEPS, WAYS, run
from process_toys import distance, together

from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.errors import ConfigError, RangeError

EXACT = ("candidates", "queries", "fill", "age_max", "age_mean", "knn_queries", "width_z")
CLOSE = ("loss", "drift_1", "drift_2", "positive_score", "effective_rank_h")


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    return together("process_courses:every_course", 2, tmp_path_factory.mktemp("courses"))


def of(way, found):
    return {key.removeprefix(f"{way}: "): value for key, value in found.items() if key.startswith(f"{way}: ")}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_over_processes_is_the_run_of_one(way, several):
    found, wanted = of(way, several[0]), run(SINGLE_PROCESS, WAYS[way])
    assert found.keys() == wanted.keys()
    compared = 0
    for key, value in wanted.items():
        name = key.split()[-1]
        if key.startswith(("untrained", "done", "saved", "steps")) or name in EXACT:
            assert torch.equal(found[key], value), key
        elif key.startswith(("model", "optimizer")) or name in CLOSE:
            assert distance(found[key], value) <= 5e-3, (key, distance(found[key], value))
            compared += 1
    assert compared > 10
    assert f"look {STEPS} loss" in found


@pytest.mark.parametrize("way", [*WAYS, "stopped", "lost", "timed"])
def test_all_processes_go_the_same_way(way, several):
    first, other = (of(way, member) for member in several)
    assert first.keys() == other.keys()
    for key, value in first.items():
        assert torch.equal(other[key], value), key


def test_a_stop_of_one_process_stops_all(several):
    found = of("stopped", several[0])
    assert found["done"] == 2
    assert found["saved"].tolist() == [2]


def test_an_image_that_one_process_loses_is_lost_to_all(several):
    found = of("lost", several[0])
    assert found["done"] == 9
    written = found["model.dictionary.written"]
    from process_courses import IMAGES, LOST, _pixels

    from querykey.pretraining.images import train_val_split

    trained = train_val_split(_pixels().ids, torch.arange(IMAGES) % 2, held_out=6, seed=0).train.tolist()
    assert LOST in trained
    assert written[trained.index(LOST)] == 0
    assert (written > 0).sum() >= 40


def test_processes_that_find_other_images_all_say_so(several):
    assert all(member["other images"] for member in several)


def test_settings_that_processes_cannot_share_are_refused():
    for processes, settings, error, said in (
        (ProcessGroup(0, 3), WAYS["moco"], RangeError, "groups cannot be distributed over 3 processes"),
        (
            ProcessGroup(0, 2),
            {"method": "simclr", "batch_norm": "split", "batch_norm.groups": 2, "steps": 1},
            ConfigError,
            "split batch norm has groups of each view in simclr",
        ),
        (
            ProcessGroup(0, 5),
            {"method": "simclr", "steps": 1},
            RangeError,
            "a batch of 8 images over 5 processes",
        ),
    ):
        with pytest.raises(error, match=said):
            run(processes, settings)
