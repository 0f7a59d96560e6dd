"""The report of pretraining: from records alone, verdicts by the rule, nothing that is not measured."""

import json
import math

import pytest

from querykey.config.old_names import PRETRAINING
from querykey.config.settings import current
from querykey.errors import MissingPathError
from querykey.io.study_folder import StoredStudy, cells_of
from querykey.pretraining.settings.methods import METHODS, given_settings
from querykey.reports.markdown.pretraining import pretraining_report
from querykey.reports.verdicts import over_seeds, wilson
from querykey.studies.catalogue.results_pretraining import RESULTS_PRETRAINING, STEPS_IN_TEN_MINUTES
from querykey.studies.data_sets import CIFAR10
from querykey.studies.engine.measure_encoders import peak_memory
from querykey.studies.engine.run import Budget, _description

ABOUT = {"name": "cifar10", "fingerprint": ""}
RUN = {"seconds": 120.0, "images_seen": 120_000, "views_share_of_step": 0.13, "steps_taken": 4,
       "peak_memory": 800_000_000}  # fmt: skip
STUDIES = [study for _, study in RESULTS_PRETRAINING]


def cell(method, seed=0, *, looks=(), pretext=0.5, **shares):
    values = {name.replace("_", " "): [round(1000 * share), 1000] for name, share in shares.items()}
    return {
        "kind": "cell", "method": method, "seed": seed, "values": values,
        "run": RUN | {"looks": list(looks), "end": {"pretext": pretext}},
        "settings": {"epochs": 2.5, "steps": 1200, "batch_size": 256},
    }  # fmt: skip


def report_of(*records):
    """Of all studies, each with its own of the records."""
    plans = [_description(study, list(study.arms), ABOUT, Budget(), is_trial=False) for study in STUDIES]
    plans = json.loads(json.dumps(plans))
    return pretraining_report([StoredStudy("", plan, cells_of(plan, records)) for plan in plans])


def rows_of(report, head):
    lines = report.split(head)[1].splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in table}


def questions(report):
    lines = report.split("### Questions")[1].splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith(("| Is ", "| With "))]
    return {row[0].removeprefix("| "): row[3] for row in rows}


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_every_question_is_about_arms_that_can_be_trained(study):
    names = [arm.name for arm in study.arms]
    assert len(set(names)) == len(names)
    for question in study.questions:
        assert {question.ours[0], question.theirs[0]} <= set(names)
        assert all(arm.seeds >= 3 for arm in study.arms)
    if study.name in ("questions", "dictionaries", "omniglot"):
        assert {arm for one in study.questions for arm, _ in (one.ours, one.theirs)} == set(names)
    for arm in study.arms:
        assert given_settings(**current(dict(arm.settings), PRETRAINING, warn=False))


def test_every_method_has_its_steps():
    assert set(STEPS_IN_TEN_MINUTES) == set(METHODS)


def test_a_verdict_is_the_interval_over_seeds():
    records = []
    for seed, (better, alike) in enumerate([(0.60, 0.50), (0.62, 0.56), (0.61, 0.52)]):
        records.append(cell("simclr", seed, linear_h=better, linear_z=0.5, kNN_h=0.5, kNN_z=0.4))
        records.append(cell("head none", seed, linear_h=0.7, linear_z=0.5, kNN_h=0.5, kNN_z=0.4))
        records.append(cell("head linear", seed, linear_h=alike + 0.08, linear_z=0.5, kNN_h=0.5, kNN_z=0.4))
    said = questions(report_of(*records))
    assert said["Is h better than g(h)?"] == "**yes**"
    assert said["Is an MLP head better than none?"] == "**no**"
    assert said["Is an MLP head better than a linear one?"] == "**can't tell**"
    assert said["Is normalised z better than unnormalised?"] == "not measured yet"


def test_one_seed_gives_no_verdict():
    record = cell("simclr", 0, linear_h=0.6, linear_z=0.5, kNN_h=0.5, kNN_z=0.4)
    assert questions(report_of(record))["Is h better than g(h)?"] == "**can't tell**"


def test_the_same_records_give_the_same_bytes_and_the_newest_of_a_cell_counts():
    old = cell("10 minutes", 0, kNN_h=0.1, linear_h=0.1, kNN_z=0.1, linear_z=0.1, kNN_untrained=0.3,
               linear_untrained=0.4)  # fmt: skip
    new = cell("10 minutes", 0, kNN_h=0.6, linear_h=0.7, kNN_z=0.5, linear_z=0.6, kNN_untrained=0.3,
               linear_untrained=0.4)  # fmt: skip
    pixels = cell("pixels", 0, kNN_pixels=0.31, linear_pixels=0.41)
    report = report_of(old, new, pixels)
    assert report == report_of(new, pixels)
    assert "| **10 minutes** | 0.600 [" in report
    assert report.index("raw pixels") < report.index("untrained |") < report.index("**10 minutes**")


def test_without_measurements_the_report_is_empty():
    assert pretraining_report([]) == report_of() == ""


def test_intervals_by_hand():
    """Wilson's for 0 of n is [0, z^2 / (n + z^2)]; of the t distribution with 2 degrees 4.303 s / sqrt(3)."""
    low, high = wilson(0, 100)
    assert low == pytest.approx(0.0, abs=1e-12)
    assert high == pytest.approx(1.959964**2 / (100 + 1.959964**2))
    mean, _, high = over_seeds([0.1, 0.2, 0.3])
    assert high - mean == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    assert math.isinf(over_seeds([0.1])[2])


def test_data_that_are_not_there_are_one_message(tmp_path):
    with pytest.raises(
        MissingPathError, match=r"cifar10 is not there; give the folder that holds the data sets"
    ):
        CIFAR10.open(tmp_path)


def test_the_methods_stand_beside_untrained_and_xbm_apart():
    scores = {"kNN_h": 0.6, "linear_h": 0.65, "kNN_untrained": 0.36, "linear_untrained": 0.43}
    records = [cell("xbm, methods", **scores), cell("moco, methods", **scores | {"kNN_h": 0.5})]
    rows = rows_of(report_of(*records), "one dictionary against another")
    assert [*rows] == ["10 minutes", "---", "untrained", "**moco**", "xbm (with labels)"]
    assert rows["untrained"][0] == "0.360 [0.331, 0.390]"
    assert rows["**moco**"][0].startswith("0.500 [")
    assert rows["**moco**"][2:] == ["512", "2.5", "800 MB"]


def test_questions_of_accuracy_and_of_the_pretext_task():
    records = []
    for seed, apart in enumerate((0.10, 0.11, 0.12)):
        records.append(cell("moco", seed, pretext=0.4, kNN_h=0.5 + apart, linear_h=0.6))
        records.append(cell("not shuffled", seed, pretext=0.5 + apart, kNN_h=0.5, linear_h=0.6))
    report = report_of(*records)
    said = {row: cells[2] for row, cells in rows_of(report, "Questions about queues").items() if "?" in row}
    assert said["Is shuffling better than not?"] == "**yes**"
    assert said["Is the pretext task solved more often without shuffling?"] == "**yes**"
    assert said["Is momentum 0.99 better than 0?"] == "not measured yet"
    assert "1200 steps of 256 images" in report.replace("1,200", "1200")


def test_drift_by_age_and_step():
    looks = [
        {"step": 0},
        {"step": 50, "drift_1": 0.2, "drift_9": 0.8},
        {"step": 99, "drift_1": 0.1, "drift_9": 0.4},
    ]
    records = []
    for seed in range(3):
        scores = {"R@1_z": 0.7, "R@1_h": 0.8, "untrained_R@1_h": 0.4}
        records.append(cell("xbm", seed, looks=looks, **scores))
        records.append(cell("no memory", seed, **scores | {"R@1_z": 0.6}))
    report = report_of(*records)
    assert "| Does a memory help at batch 16, in other alphabets? | 0.700 against 0.600 |" in report
    rows = rows_of(report, "Drift: mean squared distance")
    assert rows["steps taken"] == ["1 step old", "9 steps old"]
    assert rows["50"] == ["0.200", "0.800"]
    assert rows["99"] == ["0.100", "0.400"]


def test_nothing_is_reported_of_what_is_not_measured():
    assert "Omniglot" not in report_of(cell("moco", kNN_h=0.5, linear_h=0.6))


def test_the_peak_is_of_what_ran_inside():
    with peak_memory() as before:
        pass
    with peak_memory() as peak:
        room = bytearray(200_000_000)
        room[::4096] = b"x" * len(room[::4096])
    del room
    assert peak.bytes is None or peak.bytes - before.bytes > 150_000_000
